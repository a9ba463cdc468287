"""An evaluation's files: what FastChat's and Arena-Hard's own tools read in them, and where failures stand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest

from slime_ray.errors import DataError
from slime_ray.evaluation.folder import About, EvaluationFolder
from slime_ray.evaluation.judgment_files import read_judgments
from tests.conftest import write_rows
from tests.evaluations import SERVED, Asked, contents, rows, run_evaluation, served_by, write_evaluation
from tests.openai_server import Body, Fault, OpenAIServer

SHARED = Path(__file__).parents[4] / "shared" / "data"
real_files = pytest.mark.skipif(not SHARED.is_dir(), reason="the real files lie beside the repository, in ../shared")
# A label's score for the answer shown as B, and its weight.
LABELS = {"A>>B": (0.0, 3), "A>B": (0.0, 1), "A=B": (0.5, 1), "B>A": (1.0, 1), "B>>A": (1.0, 3)}
ANSWERS = {3: "gpt-3.5-turbo-0125.jsonl", 4: "gpt-4-0314.jsonl"}
ARENA = {"judge.mode": "arena", "judge.baseline": "a"}


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with served_by() as server:
        yield server


def fastchat_means(folder: EvaluationFolder) -> dict[str, dict[int | None, float]]:
    """What FastChat's show_result.py makes of single judgments: by model the mean of turn 1, turn 2, and all rows."""
    scores: dict[str, dict[int | None, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in folder.judgments.glob("*_single.jsonl"):
        for row in rows(path):
            assert isinstance(row["judge"], list)
            assert row["user_prompt"]
            if row["score"] != -1:
                scores[row["model"]][row["turn"]].append(row["score"])
                scores[row["model"]][None].append(row["score"])
    return {model: {turn: fmean(values) for turn, values in turns.items()} for model, turns in scores.items()}


def fastchat_adjusted(folder: EvaluationFolder) -> dict[str, float]:
    """And of pair judgments: by model (wins + ties / 2) / n, two games that disagree being one tie."""
    points: dict[str, list[float]] = defaultdict(list)
    for path in folder.judgments.glob("*_pair.jsonl"):
        for row in rows(path):
            tie = row["g1_winner"] == "tie" or row["g1_winner"] != row["g2_winner"]
            for name in ("model_1", "model_2"):
                points[row[name]].append(0.5 if tie else float(row["g1_winner"] == name))
    return {model: 100 * fmean(values) for model, values in points.items()}


def arena_hard_rates(folder: EvaluationFolder) -> dict[str, float]:
    """What Arena-Hard's show_result.py makes of its judgments: the first game shows the baseline as A."""
    weighed: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for path in folder.judgments.glob("*/*.jsonl"):
        for row in rows(path):
            assert path.stem == row["model"]
            for game, swapped in zip(row["games"], (False, True), strict=True):
                score, weight = LABELS[game["score"]]
                assert game["judgment"]["answer"]
                weighed[row["model"]].append((1 - score if swapped else score, weight))
    return {name: 100 * sum(s * w for s, w in games) / sum(w for _, w in games) for name, games in weighed.items()}


def test_grades_are_what_fastchat_reads(server: OpenAIServer, tmp_path: Path) -> None:
    asked = Asked(server)
    folder, report = run_evaluation(write_evaluation(tmp_path, server.url, judge__repeats=2))
    assert asked.count == {"a": 6, "b": 6, "j": 2 * 2 * 6}
    found = {
        model.name: {None: model.overall.value} | {turn: each.value for turn, each in model.turns.items()}
        for model in report.models
    }
    theirs = fastchat_means(folder)
    assert found.keys() == theirs.keys() == {"a", "b"}
    for model, means in found.items():
        assert means == pytest.approx(theirs[model])
    read = read_judgments([folder.path], rule="strict")
    assert (len(read.grades), read.duplicates) == (24, 0)
    texts = {row["answer_id"]: row["choices"][0]["turns"] for row in rows(folder.answers / "a.jsonl")}
    assert [len(turns) for turns in texts.values()] == [2, 2, 2]
    assert rows(folder.failures) == []
    assert report.cost is not None
    assert report.cost.requests == 36
    assert "| a |" in (folder.path / "report.md").read_text(encoding="utf-8")
    assert "</html>" in (folder.path / "report.html").read_text(encoding="utf-8")


def test_games_are_what_fastchat_reads(server: OpenAIServer, tmp_path: Path) -> None:
    folder, report = run_evaluation(
        write_evaluation(tmp_path, server.url, models=("a", "b", "c"), judge__mode="pair", judge__rule="fastchat")
    )
    theirs = fastchat_adjusted(folder)
    assert {model.name: model.overall.value for model in report.models} == pytest.approx(theirs)
    assert len(read_judgments([folder.path], rule="strict").comparisons) == 3 * 6
    for row in rows(folder.judgments / "j_pair.jsonl"):
        # In the second game the judge saw model_2 as A.
        for game, shown in (("g1", "12"), ("g2", "21")):
            label = row[f"{game}_judgment"][-2 - 1]
            assert row[f"{game}_winner"] == ("tie" if label == "C" else f"model_{shown['AB'.index(label)]}")
    folder, report = run_evaluation(
        write_evaluation(tmp_path, server.url, models=("a", "b", "c"), judge__mode="pair", judge__baseline="b")
    )
    assert {model.name for model in report.models} == {"a", "c"}
    assert {row["model_1"] for row in rows(folder.judgments / "j_pair.jsonl")} == {"b"}


def test_labels_are_what_arena_hard_reads(server: OpenAIServer, tmp_path: Path) -> None:
    asked = Asked(server)
    folder, report = run_evaluation(
        write_evaluation(tmp_path, server.url, ARENA, models=("a", "b", "c"), judges=("j", "k"), judge__repeats=2)
    )
    # First turns alone are asked and judged.
    assert asked.count == {"a": 3, "b": 3, "c": 3, "j": 2 * 2 * 2 * 3, "k": 2 * 2 * 2 * 3}
    assert all(len(row["choices"][0]["turns"]) == 1 for row in rows(folder.answers / "b.jsonl"))
    assert sorted(str(path.relative_to(folder.judgments)) for path in folder.judgments.glob("*/*")) == [
        "j/b.jsonl", "j/c.jsonl", "k/b.jsonl", "k/c.jsonl",
    ]  # fmt: skip
    theirs = arena_hard_rates(folder)
    assert {model.name: model.overall.value for model in report.models} == pytest.approx(theirs)
    assert all(model.disagreement is not None and model.repeat_sd is not None for model in report.models)


def test_a_game_without_its_twin_is_not_exported(tmp_path: Path) -> None:
    def faults(body: Body, attempt: int) -> Fault | None:
        prompt = body["messages"][-1]["content"]
        return Fault.NO_VERDICT if body["model"] == "j" and prompt.find("aaa") > prompt.find("bbb") >= 0 else None

    answers = {name: [{"question_id": 1, "choices": [{"index": 0, "turns": [name * 3]}]}] for name in ("a", "b")}
    files = {f"models.{name}.answers": str(write_rows(tmp_path / f"{name}.jsonl", answers[name])) for name in answers}
    asked = write_rows(tmp_path / "one.jsonl", [{"question_id": 1, "category": "stem", "turns": ["Why?"]}])
    with OpenAIServer(dict.fromkeys(SERVED), faults=faults) as server:
        recipe = write_evaluation(
            tmp_path, server.url, files, models=(), judge__mode="pair", questions__path=str(asked)
        )
        folder, report = run_evaluation(recipe)
    assert list(folder.judgments.rglob("*.jsonl")) == []
    assert [(row["swapped"], row["kind"]) for row in rows(folder.failures)] == [(True, "unparsable")]
    assert all(model.overall.value is None for model in report.models)


def test_failures_are_counted_and_never_among_the_judgments(tmp_path: Path) -> None:
    strikes = True

    def faults(body: Body, attempt: int) -> Fault | None:
        text = body["messages"][-1]["content"]
        if strikes and body["model"] == "b" and "2" in text:
            return Fault.FILTERED
        return Fault.NO_VERDICT if strikes and body["model"] == "j" and "Tell of 3" in text else None

    with OpenAIServer(dict.fromkeys(SERVED), faults=faults) as server:
        recipe = write_evaluation(tmp_path, server.url)
        folder, report = run_evaluation(recipe)
        failed = {model.name: (model.failed, model.answers_failed) for model in report.models}
        # Question 1 asks "And 2?" in its second turn, question 2 in its first.
        assert failed == {
            "a": ({"unparsable": 2}, {}),
            "b": ({"no_answer": 4, "unparsable": 2}, {"content_filter": 2}),
        }
        text = "".join(path.read_text(encoding="utf-8") for path in folder.judgments.rglob("*.jsonl"))
        assert "$ERROR$" not in text
        assert all(1 <= row["score"] <= 10 for row in rows(folder.judgments / "j_single.jsonl"))
        assert len(rows(folder.judgments / "j_single.jsonl")) == 12 - 8
        assert [row["question_id"] for row in rows(folder.answers / "b.jsonl")] == [3]
        stages = [(row["stage"], row["kind"]) for row in rows(folder.failures)]
        assert stages.count(("answer", "content_filter")) == 2
        assert len(stages) == 2 + 8
        # A second run tries the failed ones alone, and then nothing is left of them.
        strikes, asked = False, Asked(server)
        folder, report = run_evaluation(recipe)
        assert asked.count == {"b": 3, "j": 4 + 4}
        assert rows(folder.failures) == []
        assert len(rows(folder.judgments / "j_single.jsonl")) == 12


@real_files
def test_real_answers_judged_by_rules(tmp_path: Path) -> None:
    answers = {"models.llama.answers": str(SHARED / "mt_bench/model_answer/Meta-Llama-3-8B-Instruct-Normal.jsonl")}
    questions = str(SHARED / "mt_bench/question.jsonl")
    recipe = write_evaluation(tmp_path, "", answers, models=(), judges=(), questions__path=questions)
    folder, report = run_evaluation(recipe)
    assert fastchat_means(folder)["llama"][None] == pytest.approx(report.models[0].overall.value)
    assert (report.questions, report.rows, report.models[0].failed) == (80, 160, {})
    assert rows(folder.questions)[0]["turns"] == rows(Path(questions))[0]["turns"]
    assert not report.judges[0].comparable
    before = contents(folder)
    run_evaluation(recipe)
    assert contents(folder) == before


@real_files
@pytest.mark.parametrize(("mode", "scale"), [("grade", "grades"), ("pair", "wins"), ("arena", "wins")])
def test_arena_hards_answers_judged_by_rules(tmp_path: Path, mode: str, scale: str) -> None:
    data = SHARED / "arena_hard" / "v0.1"
    settings = {f"models.gpt-{n}.answers": str(data / "model_answer" / name) for n, name in ANSWERS.items()}
    settings |= {"questions.path": str(data / "question.jsonl"), "judge.mode": mode, "judge.baseline": "gpt-4"}
    path = write_evaluation(tmp_path, "", settings, models=(), judges=(), questions__limit=100)
    folder, report = run_evaluation(path)
    assert (report.scale, report.questions) == (scale, 100)
    found = {model.name: model.overall.value for model in report.models}
    if mode == "grade":
        assert found == pytest.approx({name: means[None] for name, means in fastchat_means(folder).items()})
    elif mode == "arena":
        assert found == pytest.approx(arena_hard_rates(folder))
        assert [row["uid"] for row in rows(folder.judgments / "rubric" / "gpt-3.jsonl")][:2] == [
            row["uid"] for row in rows(folder.questions)[:2]
        ]
    assert set(rows(folder.answers / "gpt-4.jsonl")[0]) == {
        "uid", "ans_id", "model", "messages", "tstamp", "metadata", "truncated",
    }  # fmt: skip


def test_a_folder_begins_as_a_new_evaluation_and_keeps_its_id(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "night")
    assert folder.about().id != folder.about().id
    assert not folder.path.exists()
    folder.note(id="x")
    folder.note_unfinished("answers", "the budget is spent")
    folder.note_unfinished("judgments", "it was interrupted")
    assert folder.about().partial == (
        "the answers are not all there: the budget is spent; the judgments are not all there: it was interrupted"
    )
    folder.note_unfinished("answers", None)
    assert folder.about() == About(id="x", unfinished={"judgments": "it was interrupted"})
    folder.note_unfinished("judgments", None)
    assert folder.about().partial is None


def test_the_runs_behind_models_are_noted_for_those_that_were_asked_now(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    folder.note_runs({"sft": "sft@1", "slime": "slime@1", "file": None})
    folder.note_runs({"slime": "slime@2"})
    assert folder.about().runs == {"sft": "sft@1", "slime": "slime@2"}
    folder.note_runs({"sft": None})
    assert folder.about().runs == {"slime": "slime@2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Invalid JSON: EOF while parsing"),
        (b'{"id": 3}', "id: Input should be a valid string"),
        (b'{"id": "x", "partia": 1}', "partia: Extra inputs are not permitted"),
        (b"\xff", "Invalid JSON"),
    ],
)
def test_a_record_that_was_edited_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "evaluation.json"
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        EvaluationFolder(tmp_path).about()
    assert str(error.value).startswith(f"{file}: {message}")
    assert str(error.value).endswith("; put the original back, or remove the folder")
