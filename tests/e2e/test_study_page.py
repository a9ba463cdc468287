"""A study's page in headless Chromium: it opens without errors, loads nothing, runs nothing, and fits a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slime_ray.search import importance
from slime_ray.search.findings import find
from slime_ray.search.report.page import render_contrasts, render_study
from tests.browser import chromium
from tests.surfaces import ablation_of, judged_of, space_of, study_of

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

HOSTILE = (
    "</style><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"><svg onload=window.hacked=1>"
)
PAGES = ("study", "judged", "ablation", "sensitivity")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Address of a page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance, "_DRAWS", 10)
        texts = [
            render_study(find(study_of(), space_of())),
            render_study(find(judged_of(study_of()), space_of())),
            render_contrasts(ablation_of()),
            render_contrasts(ablation_of(alone=True)),
        ]
    found = {}
    for name, text in zip(PAGES, texts, strict=True):
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
        found[name] = (folder / f"{name}.html").as_uri()
    return found


def run(browser: WebDriver, script: str) -> Any:
    """What a script gives."""
    return browser.execute_script(script)


def texts(browser: WebDriver, selector: str) -> list[str]:
    """What elements say."""
    return run(browser, f"return [...document.querySelectorAll('{selector}')].map(node => node.textContent.trim())")


@pytest.mark.parametrize("name", PAGES)
def test_no_error_no_request_and_no_script(browser: WebDriver, pages: dict[str, str], name: str) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(pages[name])
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [each["request"]["url"] for each in sent if each["documentURL"] == browser.current_url] == [pages[name]]
    assert run(browser, "return document.scripts.length") == 0
    # Every place that the navigation goes to is there.
    links = run(browser, "return [...document.querySelectorAll('nav a')].map(node => node.getAttribute('href'))")
    assert len(links) >= 3
    assert run(browser, "return [...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")


def test_every_trial_is_in_the_table_and_on_the_charts(browser: WebDriver, pages: dict[str, str]) -> None:
    browser.get(pages["study"])
    evidence = study_of()
    states = [trial.state for trial in evidence.trials]
    assert sorted(texts(browser, "#trials tbody td:nth-child(2)")) == sorted(states)
    assert "the loss was not finite at step 31" in texts(browser, "#trials tr.failed td.text")
    searched = [trial for trial in evidence.trials if trial.point]
    finished = sum(trial.state == "finished" for trial in searched)
    assert run(browser, "return document.querySelectorAll('#front figure .spot').length") == finished
    stopped = sum(trial.state == "stopped" for trial in searched)
    panels = len(space_of().parameters)
    assert run(browser, "return document.querySelectorAll('#slices figure .spot.stopped').length") == stopped * panels
    assert run(browser, "return document.querySelectorAll('#curves figure .cross').length") == stopped
    assert run(browser, "return document.querySelectorAll('#noise .dot').length") == 6


def test_who_was_judged_is_shown_with_its_lead(browser: WebDriver, pages: dict[str, str]) -> None:
    browser.get(pages["judged"])
    judgment = judged_of(study_of()).judgment
    assert judgment is not None
    numbers = [each.number for each in judgment.trials]
    assert texts(browser, "#judged tbody th") == [f"trial {number}" for number in numbers]
    assert texts(browser, "#judged tbody td:nth-child(3)") == ["+0.620+0.210 to +1.030", "+0.410−0.020 to +0.840", "–"]
    assert texts(browser, "#best thead th")[1] == f"Best (trial {numbers[0]})"
    assert texts(browser, ".lead")[0].startswith(
        f"Trial {numbers[0]} has the highest score of 3 judged (mean grade, 1 to 10): 7.410"
    )


def test_an_ablation_names_what_is_undecided(browser: WebDriver, pages: dict[str, str]) -> None:
    browser.get(pages["ablation"])
    found = ablation_of()
    for name in found.objectives:
        undecided = sum(row.differences[name].undecided for row in found.rows if row.differences)
        assert undecided
        assert len(texts(browser, f"#{name} .verdict")) == undecided
    same = sum(row.same for row in found.rows) - 1
    assert texts(browser, "#accuracy td.none") == ["is full SLIME"] * same
    assert texts(browser, "#failures tbody td") == ["the loss was not finite at step 31"]


def test_a_difference_stands_where_its_axis_says(browser: WebDriver, pages: dict[str, str]) -> None:
    browser.get(pages["ablation"])
    # In pixels: every dot is on the side of the dashed line at 0 on which its figure is.
    sides = """const at = node => { const box = node.getBoundingClientRect(); return box.x + box.width / 2; };
        return [...document.querySelectorAll('#accuracy tbody tr')].filter(row => row.querySelector('.dot')).map(row =>
          [Math.sign(Math.round(at(row.querySelector('.dot')) - at(row.querySelector('.mark')))),
           row.querySelector('b').textContent[0]])"""
    found = run(browser, sides)
    assert len(found) > 10
    assert all((side >= 0) == (sign in "+0") for side, sign in found)


@pytest.mark.parametrize("name", PAGES)
def test_light_dark_and_a_phone(browser: WebDriver, pages: dict[str, str], name: str) -> None:
    browser.get(pages[name])
    seen = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        seen.append(run(browser, "return getComputedStyle(document.body).backgroundColor"))
    assert seen == ["rgb(253, 253, 252)", "rgb(21, 24, 28)"]
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert run(browser, "return document.documentElement.scrollWidth") == 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_what_failed_trials_say_stays_text(browser: WebDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "_DRAWS", 2)
    evidence = study_of()
    trials = [replace(each, reason=HOSTILE if each.state == "failed" else each.reason) for each in evidence.trials]
    (tmp_path / "hostile.html").write_text(
        render_study(find(replace(evidence, name=HOSTILE, trials=tuple(trials)), space_of())), encoding="utf-8"
    )
    browser.get((tmp_path / "hostile.html").as_uri())
    assert run(browser, "return window.hacked") is None
    assert run(browser, "return document.querySelectorAll('script, img, [onload], [onerror]').length") == 0
    assert texts(browser, "h1") == [HOSTILE]
    assert HOSTILE in texts(browser, "#trials tr.failed td.text")


def test_a_study_in_which_nothing_finished_has_a_page(browser: WebDriver, tmp_path: Path) -> None:
    evidence = study_of(6, seeds=1)
    failed = tuple(replace(each, state="failed", values={}, curve=()) for each in evidence.trials)
    page = render_study(find(replace(evidence, trials=failed, measured={}), space_of()))
    (tmp_path / "nothing.html").write_text(page, encoding="utf-8")
    browser.get((tmp_path / "nothing.html").as_uri())
    assert texts(browser, ".lead") == ["No trial finished, so nothing was found."]
    assert len(texts(browser, "#trials tbody tr")) == 6
