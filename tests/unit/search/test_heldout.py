"""The two parts of the held-out pairs, the figures on them, and what may not be held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slime_ray.config.data import DataConfig
from slime_ray.errors import ConfigError, DataError
from slime_ray.search.heldout import FILE, HeldOut, read_heldout, refuse_known
from slime_ray.search.objectives import check_reportable, figure, pair_values
from slime_ray.training.scoring import Answer, Score
from tests.conftest import write_rows


def pair(prompt: str, number: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": f"yes {number}", "rejected": f"no {number}", **more}


@pytest.fixture
def file(tmp_path: Path) -> str:
    """30 pairs of 10 prompts."""
    rows = [pair(f"prompt {number % 10}", number) for number in range(30)]
    return str(write_rows(tmp_path / "pairs.jsonl", rows))


def test_the_parts_are_halves_that_share_no_prompt(file: str, tmp_path: Path) -> None:
    parts = HeldOut.of(file)
    lines = [[int(source.rpartition(":")[2]) for source in part] for part in (parts.selecting, parts.reporting)]
    assert sorted(lines[0] + lines[1]) == list(range(1, 31))
    selecting, reporting = ({line % 10 for line in part} for part in lines)
    assert not selecting & reporting
    assert len(selecting) == len(reporting) == 5
    assert HeldOut.of(file) == parts
    parts.write(tmp_path / FILE)
    assert read_heldout(tmp_path) == parts


def test_the_parts_do_not_depend_on_the_order_of_rows(file: str, tmp_path: Path) -> None:
    lines = Path(file).read_text().splitlines(keepends=True)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(reversed(lines)))

    def prompts(parts: HeldOut) -> set[str]:
        own = Path(parts.entry).read_text().splitlines()
        return {own[int(source.rpartition(":")[2]) - 1] for source in parts.selecting}

    assert prompts(HeldOut.of(file)) == prompts(HeldOut.of(str(other)))


def test_a_score_falls_apart_with_its_pairs(file: str) -> None:
    parts = HeldOut.of(file)
    sources = tuple(f"{file}:{line}" for line in range(1, 31) if line != 4)  # one does not fit the model
    answers = tuple(Answer(source, "", source, "", None, None) for source in sources)
    numbers = tuple(float(line) for line in range(len(sources)))
    both = parts.parts(Score("m", sources, numbers, numbers, answers))
    assert [set(part.sources) for part in both] == [
        set(parts.selecting) - {f"{file}:4"},
        set(parts.reporting) - {f"{file}:4"},
    ]
    for part in both:
        assert [answer.greedy for answer in part.answers] == list(part.sources)
        assert part.chosen == tuple(float(sources.index(source)) for source in part.sources)


def test_one_prompt_cannot_be_divided(tmp_path: Path) -> None:
    file = str(write_rows(tmp_path / "one.jsonl", [pair("a", 1), pair(" a ", 2)]))
    with pytest.raises(DataError, match=r"1 usable prompt; held-out pairs are divided by prompt"):
        HeldOut.of(file)


START = Score("start", ("f:1", "f:2", "f:3"), (-2.0, -1.0, -3.0), (-2.5, -0.5, -3.5), ())
TRAINED = Score(
    "trained",
    ("f:1", "f:2", "f:3"),
    (-1.5, -1.25, -3.0),
    (-1.0, -4.0, -3.0),  # the third is a draw, which is not right
    (
        Answer("f:1", "p", "g", "s", greedy_passed=True, sampled_passed=False),
        Answer("f:2", "p", "g", "s", greedy_passed=True, sampled_passed=True),
        Answer("f:3", "p", "g", "s", greedy_passed=None, sampled_passed=None),
    ),
)


def test_figures_are_means_over_pairs() -> None:
    assert pair_values("accuracy", TRAINED, START) == {"f:1": 0.0, "f:2": 1.0, "f:3": 0.0}
    assert pair_values("chosen_logp", TRAINED, START) == {"f:1": 0.5, "f:2": -0.25, "f:3": 0.0}
    assert pair_values("checked_greedy", TRAINED, START) == {"f:1": 1.0, "f:2": 1.0}
    assert pair_values("checked_sampled", TRAINED, START) == {"f:1": 0.0, "f:2": 1.0}
    assert figure("accuracy", TRAINED, START) == pytest.approx(1 / 3)
    assert figure("chosen_logp", TRAINED, START) == pytest.approx(0.25 / 3)
    assert figure("checked_sampled", TRAINED, START) == 0.5
    assert figure("checked_greedy", START, START) != figure("checked_greedy", START, START)  # nothing to average


def test_a_check_is_needed_in_both_parts(tmp_path: Path) -> None:
    check = {"kind": "equals", "answer": "4"}
    rows = [pair(f"prompt {number}") for number in range(10)]
    file = write_rows(tmp_path / "pairs.jsonl", [*rows, pair("checked", check=check)])
    parts = HeldOut.of(str(file))
    assert sum(parts.checks) == 1
    check_reportable(("accuracy", "chosen_logp"), parts)
    with pytest.raises(ConfigError, match=r"no trial can report checked_sampled: .* has 1 pairs with a `check`"):
        check_reportable(("accuracy", "checked_sampled"), parts)


def test_held_out_prompts_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    held = write_rows(tmp_path / "held.jsonl", [pair(text) for text in ("new", "b", "c", "also new")])
    train = write_rows(tmp_path / "train.jsonl", [pair(text) for text in ("a", " c", "b", "b")])
    data = DataConfig(train=[str(train)])
    with pytest.raises(DataError) as raised:
        refuse_known(str(held), data, stopping=False)
    assert str(raised.value).startswith(
        f"{held}:2: its prompt is in the recipe's data.train too ({train}:4), as are those of 1 more held-out pairs"
    )


def test_pairs_that_stop_trials_do_not_report_either(tmp_path: Path) -> None:
    held = write_rows(tmp_path / "held.jsonl", [pair("a"), pair("b")])
    train = write_rows(tmp_path / "train.jsonl", [pair("c")])
    data = DataConfig(train=[str(train)], eval=[str(held)])
    refuse_known(str(held), data, stopping=False)
    with pytest.raises(DataError, match=r"held\.jsonl:1: its prompt is in the recipe's data\.eval too"):
        refuse_known(str(held), data, stopping=True)


def test_only_the_part_that_is_trained_on_counts(tmp_path: Path) -> None:
    from slime_ray.data.split import part_of

    rows = [pair(f"prompt {number}") for number in range(60)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    data = DataConfig(train=[str(train)], part="preference")
    parts = [part_of([{"role": "user", "content": row["prompt"]}], data.split) for row in rows]
    others = [row for row, part in zip(rows, parts, strict=True) if part != "preference"]
    refuse_known(str(write_rows(tmp_path / "others.jsonl", others)), data, stopping=False)
    with pytest.raises(DataError, match=f"as are those of {len(rows) - len(others) - 1} more"):
        refuse_known(str(train), data, stopping=False)
