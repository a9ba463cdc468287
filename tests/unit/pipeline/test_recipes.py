"""A pipeline's recipes: what is refused before anything is begun, and which override is whose."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from slime_ray.errors import SlimeRayError
from slime_ray.overrides import load_evaluation, load_serving
from slime_ray.pipeline.recipes import load
from tests.conftest import write_rows
from tests.unit.pipeline.conftest import URL, Lines, change

RECIPE = Path("recipes/pipeline.toml")
ROOT = Path(__file__).parents[3]

Change = Callable[[], Any]


def remove(path: str) -> Change:
    return lambda: os.unlink(path)


def changed(file: str, **settings: Any) -> Change:
    return lambda: change(file, **settings)


NOT_TOGETHER: dict[str, tuple[Change, str]] = {
    "no recipe": (remove("recipes/serve.toml"), r"recipes/serve\.toml: no such recipe"),
    "an unknown key": (
        changed("evaluate", judge__basline="sft"),
        r"evaluate\.toml: judge\.basline .* judge\.baseline\?",
    ),
    "a parent that comes later": (
        changed("pipeline", train=["slime.toml", "sft.toml"]),
        r"pipeline\.toml: train: slime starts from run:sft; put that recipe before it",
    ),
    "one that starts from itself": (changed("sft", model__name="run:sft"), r"sft starts from run:sft"),
    "a recipe twice": (
        changed("pipeline", train=["sft.toml", "sft.toml"]),
        r"train: two recipes are called sft; give one of them another name",
    ),
    "a misspelt model": (
        changed("evaluate", models__slim__base_url=URL),
        r"evaluate\.toml: models\.slim: the endpoint serves no 'slim'; it serves base, sft, slime",
    ),
    "no served model": (
        changed(
            "evaluate",
            **{f"models__{name}__model": f"the-{name}" for name in ("base", "sft", "slime")},
        ),
        r"the endpoint serves base, sft, slime, and none of base, sft, slime is asked there",
    ),
    "another place for runs": (
        changed("serve", runs_dir="elsewhere"),
        r"serve\.toml: runs_dir = 'elsewhere', but run:sft is made in 'runs'",
    ),
    "a network without a key": (changed("serve", host="0.0.0.0"), r"host = '0\.0\.0\.0' and no API key is set"),
}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("case", NOT_TOGETHER)
def test_recipes_that_do_not_fit_together_are_refused(case: str) -> None:
    make, sentence = NOT_TOGETHER[case]
    make()
    with pytest.raises(SlimeRayError, match=sentence):
        load(RECIPE, [])


def taken_port() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    change("serve", port=listener.getsockname()[1])
    return listener


def another_recipe(**settings: Any) -> Change:
    """A third recipe, which trains on what the second one does."""

    def make() -> None:
        change("slime", name="more", loss__kind="sft", **settings)
        os.rename("recipes/slime.toml", "recipes/more.toml")
        change("slime")
        change("pipeline", train=["sft.toml", "more.toml", "slime.toml"])

    return make


EARLY: dict[str, tuple[Change, str]] = {
    "no held-out data": (another_recipe(data__eval=["data/none.jsonl"]), r"data/none\.jsonl"),
    "no data of the last stage": (remove("data/preference.jsonl"), r"data/preference\.jsonl"),
    "no model": (changed("sft", model__name="./nothing"), r"model\.name = './nothing'"),
    "no template": (changed("slime", model__chat_template="no.jinja"), r"model\.chat_template = 'no\.jinja'"),
    "no questions": (remove("data/questions.jsonl"), r"data/questions\.jsonl"),
    "no checkpoint to serve": (
        changed("serve", models__base__source="./nothing"),
        r"models\.base\.source = './nothing'",
    ),
    "a run that nobody trains": (changed("serve", models__base__source="run:other"), r"run:other: no finished run"),
    "no key for a judge": (
        changed("evaluate", judge__models__j__base_url=URL, judge__models__j__api_key_env="NO_SUCH_VARIABLE"),
        r"judge\.models\.j\.api_key_env = 'NO_SUCH_VARIABLE': the environment has no such variable",
    ),
    "a judge that is down": (
        changed("evaluate", judge__models__j__base_url=URL),
        r"judge\.models\.j\.base_url = .*: no answer",
    ),
    "another model that is down": (
        changed("evaluate", models__other__base_url="http://127.0.0.1:2/v1"),
        r"models\.other\.base_url = .*: no answer",
    ),
    "a taken port": (taken_port, r"host = '127\.0\.0\.1', port = \d+: cannot listen there"),
    "no usable row": (
        lambda: write_rows(Path("data/preference.jsonl"), [{"prompt": "a", "chosen": "b", "rejected": "b"}]),
        r"data/preference\.jsonl: none of its 1 rows is usable",
    ),
}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("case", EARLY)
def test_what_would_show_after_the_training_shows_before_it(case: str, lines: Lines) -> None:
    make, sentence = EARLY[case]
    held = make()
    with pytest.raises(SlimeRayError, match=sentence), held if isinstance(held, socket.socket) else nullcontext():
        lines.run()
    assert not any(line.startswith("train") for line in lines.said)
    assert not list(Path("runs").glob("sft*"))


@pytest.mark.usefixtures("project")
def test_rows_that_cannot_teach_are_told_or_stop_a_strict_pipeline(lines: Lines) -> None:
    bad = {"prompt": "a", "chosen": "b", "rejected": "b"}
    write_rows(Path("data/preference.jsonl"), [{"prompt": "a", "chosen": "yes", "rejected": "no"}, bad])
    with pytest.raises(SlimeRayError, match=r"data/preference\.jsonl: 1 rows cannot teach, and data\.strict is on"):
        lines.run("train.data.strict=true")
    assert lines.said[:2] == [
        "inspect: data/sft.jsonl: 16 rows, 16 usable",
        "inspect: data/preference.jsonl: 2 rows, 1 usable, skipped: chosen_equals_rejected 1",
    ]


@pytest.mark.usefixtures("project")
def test_a_key_that_the_endpoint_asks_for_has_to_be_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_RAY_API_KEYS", "me=a-key-of-some-length-0123456789")
    with pytest.raises(SlimeRayError, match=r"models\.base\.api_key_env: the endpoint asks .* none is set"):
        load(RECIPE, [])
    change("evaluate", **{f"models__{name}__api_key_env": "OUR_KEY" for name in ("base", "sft", "slime")})
    monkeypatch.setenv("OUR_KEY", "another-key-of-some-length-98765")
    with pytest.raises(SlimeRayError, match="what OUR_KEY holds is none of them") as error:
        load(RECIPE, [])
    assert "another-key" not in str(error.value)
    monkeypatch.setenv("OUR_KEY", "a-key-of-some-length-0123456789")
    assert load(RECIPE, []).served == {"base": "base", "sft": "sft", "slime": "slime"}


@pytest.mark.usefixtures("project")
def test_an_override_is_the_stage_s_that_its_key_begins_with() -> None:
    found = load(
        RECIPE, ["train.training.seed=7", "serve.port=8123", "evaluate.judge.baseline=base", "certify_pairs=5"]
    )
    assert [recipe.training.seed for recipe in found.train] == [7, 7]
    assert (found.serve.port, found.evaluate.judge.baseline, found.certify_pairs) == (8123, "base", 5)
    with pytest.raises(SlimeRayError, match=r"certify_pair is not a setting; did you mean certify_pairs\?"):
        load(RECIPE, ["certify_pair=5"])


@pytest.mark.usefixtures("project")
def test_what_is_not_evaluated_is_not_served() -> None:
    change("evaluate", models__base__base_url=None, models__slime__model="sft")
    found = load(RECIPE, [])
    assert found.served == {"sft": "sft", "slime": "sft"}
    assert list(found.serve.models) == ["sft"]


def test_the_quickstart_evaluates_what_it_serves_and_serves_what_it_trains() -> None:
    folder = ROOT / "jobs" / "recipes" / "quickstart"
    found = load(folder / "pipeline.toml", [])
    assert [recipe.name for recipe in found.train] == ["quickstart/sft", "quickstart/sft-continued", "quickstart/slime"]
    assert set(found.served) == set(load_evaluation(folder / "evaluate.toml").models)
    assert {model.source for model in load_serving(folder / "serve.toml").models.values()} == {
        "runs/quickstart/base",
        *(f"run:{recipe.name}" for recipe in found.train),
    }
    assert {model.temperature for model in found.evaluate.models.values()} == {None}, "the questions' own"
