"""A pipeline's stages: their order, what is left out, what is done again, and that no endpoint stays up."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slime_ray.errors import EndpointError, Interrupted, ServingError
from slime_ray.overrides import load_recipe
from slime_ray.pipeline import certificates
from slime_ray.pipeline import endpoint as places
from slime_ray.pipeline.stages import Outcome
from slime_ray.serving.certificate import Certificate
from slime_ray.training.fit import train
from tests.conftest import write_rows
from tests.evaluations import question_rows, rows
from tests.openai_server import Body, Fault, OpenAIServer
from tests.unit.pipeline.conftest import Endpoints, Finished, Lines, change

EVALUATION = Path("evaluations/evaluate")
# An evaluation that nobody was asked for yet.
ANEW = "evaluate.evaluations_dir=anew"
ALL = ("base", "sft", "slime")


def trained(name: str) -> list[Path]:
    return sorted(path.parent for path in Path("runs").glob(f"{name}-*/manifest.json"))


def written() -> dict[str, int]:
    """When each file of runs and evaluation was written."""
    found = [*Path("runs").rglob("*"), *EVALUATION.rglob("*")]
    return {str(path): path.stat().st_mtime_ns for path in found if path.is_file() and "lease" not in str(path)}


def test_all_stages_are_done_in_order(finished: Finished) -> None:
    assert finished.lines.stages == ["inspect", "train", "serve", "answer", "judge"]
    assert finished.endpoints.up == [ALL]
    assert sorted(finished.endpoints.asked) == sorted(ALL * 6)  # three questions of two turns
    report = finished.outcome.report
    assert {model.name: model.overall.judged for model in report.models} == dict.fromkeys(ALL, 6)
    assert finished.outcome.page.stat().st_size > 1000


def test_what_is_done_is_left_out(done: Outcome, lines: Lines, endpoints: Endpoints) -> None:
    before = written()
    again = lines.run()
    assert again == done
    assert written() == before
    assert endpoints.up == []
    assert [line for line in lines.said if "left out" not in line] == [
        f"train: {(Path.cwd() / run)} is there" for run in (*trained("sft"), *trained("slime"))
    ]


def test_the_command_serves_the_best_of_those_that_were_served(done: Outcome) -> None:
    best = done.report.models[0]
    assert best.overall.value == max(model.overall.value or 0 for model in done.report.models)
    sources = {"base": "tiny", "sft": f"run:{trained('sft')[0].name}", "slime": f"run:{trained('slime')[0].name}"}
    assert done.serve == f"slime-ray serve {sources[best.name]}"


def other_question() -> None:
    found = question_rows(3)
    write_rows(Path("data/questions.jsonl"), [*found[:2], found[2] | {"turns": ["Something else?", "And then?"]}])


def other_check() -> None:
    found = question_rows(3)
    check = {"kind": "exact", "value": "never said"}
    write_rows(Path("data/questions.jsonl"), [*found[:2], found[2] | {"checks": [check, check]}])


# What changes, what is asked again, and the stages that then have something to say.
AGAIN: dict[str, tuple[Callable[[], Any], tuple[str, ...], list[str]]] = {
    "a question": (other_question, ALL * 2, ["inspect", "train", "serve", "answer", "judge"]),
    "a check": (other_check, (), ["inspect", "train", "serve, answer", "judge"]),
    "the judge": (
        lambda: change("evaluate", judge__baseline="base"),
        (),
        ["inspect", "train", "serve, answer", "judge"],
    ),
    "the page": (lambda: os.unlink(EVALUATION / "report.html"), (), ["inspect", "train", "serve, answer", "judge"]),
    "the second training": (
        lambda: change("slime", loss__hard_margin=2.0),
        ("slime",) * 6,
        ["inspect", "train", "serve", "answer", "judge"],
    ),
    "where training runs": (
        lambda: change("slime", training__cpus_per_worker=2),
        (),
        ["inspect", "train", "serve, answer", "judge, report"],
    ),
}


@pytest.mark.parametrize("what", AGAIN)
def test_what_changed_is_done_again_and_no_more(what: str, done: Outcome, lines: Lines, endpoints: Endpoints) -> None:
    make, asked, stages = AGAIN[what]
    make()
    outcome = lines.run()
    assert tuple(sorted(endpoints.asked)) == tuple(sorted(asked))
    assert lines.stages == stages
    assert endpoints.up == ([tuple(dict.fromkeys(asked))] if asked else [])
    assert len(trained("sft")) == 1
    assert len(trained("slime")) == (2 if what == "the second training" else 1)
    assert (outcome.report == done.report) == (stages[-1] == "judge, report")
    assert outcome.report.baseline == ("base" if what == "the judge" else "sft")


def test_what_is_served_is_the_recipe_s_own_run_and_not_the_newest(
    done: Outcome, lines: Lines, endpoints: Endpoints
) -> None:
    newer = train(load_recipe("recipes/slime.toml", ["loss.hard_margin=2.0"]))
    assert lines.run() == done
    assert endpoints.up == []
    # Nor does a stage start from the newest one: that of another SFT would be another run.
    train(load_recipe("recipes/sft.toml", ["training.learning_rate=2e-3"]))
    assert lines.run() == done
    assert newer.name not in " ".join(lines.said)


@pytest.mark.usefixtures("done")
def test_models_for_which_there_is_no_room_are_asked_one_after_the_other(lines: Lines, endpoints: Endpoints) -> None:
    endpoints.room = 1
    # One of base's questions fails, and is to be told of in the end, though others were asked after it.
    endpoints.server = lambda cards: OpenAIServer(cards, faults=refuse_one)
    outcome = lines.run(ANEW)
    assert endpoints.up == [("base",), ("sft",), ("slime",)]
    assert "serve: 1 of 3 at a time: there is room for 1" in lines.said
    assert {model.name: model.overall.judged for model in outcome.report.models} == {"base": 4, "sft": 6, "slime": 6}
    assert [(row["stage"], row["model"], row["question_id"]) for row in rows(Path("anew/evaluate/failures.jsonl"))] == [
        ("answer", "base", 2),
        ("judge", "base", 2),
        ("judge", "base", 2),
    ]
    endpoints.server = OpenAIServer
    endpoints.asked.clear()
    outcome = lines.run(ANEW)
    assert endpoints.asked == ["base"] * 2
    assert {model.overall.judged for model in outcome.report.models} == {6}


def refuse_one(body: Body, _: int) -> Fault | None:
    asked = body["model"], body["messages"][-1]["content"]
    return Fault.REFUSED if asked == ("base", "Tell of 2.") else None


@pytest.mark.usefixtures("done")
def test_two_of_three_at_a_time_where_two_fit(lines: Lines, endpoints: Endpoints) -> None:
    endpoints.room = 2
    lines.run(ANEW)
    assert endpoints.up == [("base", "sft"), ("slime",)]


@pytest.mark.usefixtures("done")
def test_the_endpoint_is_taken_down_after_an_error(lines: Lines, endpoints: Endpoints) -> None:
    endpoints.server = lambda cards: OpenAIServer(cards, key="another")
    with pytest.raises(EndpointError, match="refuses the key"):
        lines.run(ANEW)
    assert endpoints.open == 0
    endpoints.server = OpenAIServer
    lines.run(ANEW)
    assert endpoints.up == [ALL, ALL]


@pytest.mark.usefixtures("done")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupt_takes_the_endpoint_down_and_keeps_what_was_answered(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, lines: Lines, endpoints: Endpoints
) -> None:
    def stop(request: int) -> None:
        if request == 7:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(places, "cluster", places.unwinding)
    before = signal.getsignal(number)
    change("evaluate", requests__concurrency=1)
    endpoints.server = lambda cards: OpenAIServer(cards, on_request=stop, latency_s=0.05)
    with pytest.raises(Interrupted, match="what was finished is kept"):
        lines.run(ANEW)
    assert endpoints.open == 0
    assert signal.getsignal(number) == before
    answered = len(endpoints.asked)
    endpoints.server = OpenAIServer
    outcome = lines.run(ANEW)
    assert {model.overall.judged for model in outcome.report.models} == {6}
    assert (endpoints.open, endpoints.heeded) == (0, True)
    # At most one request of each model was on its way.
    assert 18 <= len(endpoints.asked) <= 18 + 3
    assert len(endpoints.asked) - answered < 18


@pytest.mark.usefixtures("done")
def test_a_run_without_a_certificate_is_certified_while_it_is_up(
    monkeypatch: pytest.MonkeyPatch, lines: Lines, endpoints: Endpoints
) -> None:
    made: list[tuple[str, str, int, int]] = []

    def certify(name: str, *, model: str, pairs: int, **_: Any) -> Certificate:
        made.append((name, model, pairs, endpoints.open))
        certificate = json.loads(CERTIFICATE) | {"run": name.removeprefix("run:"), "passed": model == "sft"}
        manifest = json.loads((Path("runs") / certificate["run"] / "manifest.json").read_bytes())
        found = Certificate(**certificate, files=certificates.json_hash(manifest["files"]))
        found.write(Path("runs") / certificate["run"] / "certificate.json")
        return found

    monkeypatch.setattr(certificates, "certify", certify)
    with pytest.raises(ServingError, match=r"models\.slime: slime-\w+ failed its certificate: it differs"):
        lines.run(ANEW, "certify_pairs=4")
    sft, slime = trained("sft")[0].name, trained("slime")[0].name
    assert made == [(f"run:{sft}", "sft", 4, 1), (f"run:{slime}", "slime", 4, 1)]
    assert (endpoints.open, endpoints.asked) == (0, [])
    with pytest.raises(ServingError, match=r"failed its certificate"):
        lines.run(ANEW, "certify_pairs=4")
    lines.run(ANEW, "certify_pairs=4", "serve.force=true")
    assert len(made) == 2, "both have one"
    assert endpoints.up == [ALL, ALL]


CERTIFICATE = """{"hash": "0", "model": "m", "dtype": "float32", "data": "data.eval", "reasons": ["it differs"],
    "prompts": {"compared": 1, "mismatches": 0, "dated": 0, "skipped": 0, "first": null},
    "likelihoods": {"answers": 1, "tokens": 1, "skipped": 0, "not_finite": 0, "mean_difference": 1.0,
                    "max_difference": 1.0, "mean_limit": null, "max_limit": 0.001},
    "stops": {"end_of_turn": 1, "listed": [1], "stopping": [1], "ordinary": 5, "ordinary_stops": false},
    "server": null, "versions": {}, "made": "2026-11-22T00:00:00+00:00"}"""


@pytest.mark.usefixtures("done")
def test_adapters_are_merged_and_asked_with_the_engine_that_they_share(lines: Lines, endpoints: Endpoints) -> None:
    change("slime", lora__r=2, lora__alpha=4)
    outcome = lines.run()
    run = next(path for path in trained("slime") if (path / "final" / "adapter").is_dir())
    assert f"merge: {Path.cwd() / run / 'final'} is the merged model" in lines.said
    assert endpoints.up == [("sft", "slime")]
    assert endpoints.asked == ["slime"] * 6
    assert {model.overall.judged for model in outcome.report.models} == {6}


@pytest.mark.usefixtures("done")
def test_models_behind_other_endpoints_are_asked_there(lines: Lines, endpoints: Endpoints) -> None:
    with OpenAIServer({"other": None}) as server:
        change("evaluate", models__other__base_url=server.url)
        outcome = lines.run(ANEW)
        assert {model.name for model in outcome.report.models} == {*ALL, "other"}
        assert [served.body["model"] for served in server.served] == ["other"] * 6
    assert lines.run(ANEW) == outcome, "and none of them is needed again"
