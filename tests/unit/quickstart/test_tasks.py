"""The demonstration's data: parts, their promises, and the bytes they are written as."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import pytest

from slime_ray.errors import DataError
from slime_ray.evaluation.checks import passes
from slime_ray.quickstart.rows import BAD_ANSWERS, generate_parts, preference_row, write_parts
from slime_ray.quickstart.tasks import KINDS

PAIRED = ("preference", "validation", "test")
SMALL = {"sft": 40, "preference": 40, "validation": 20, "test": 20}


@pytest.fixture(scope="module")
def parts() -> dict[str, list[dict[str, Any]]]:
    return generate_parts()


def prompt_of(row: dict[str, Any]) -> str:
    return json.dumps(row["prompt"] if "prompt" in row else row["messages"][:-1])


def test_the_default_sizes(parts: dict[str, list[dict[str, Any]]]) -> None:
    assert {part: len(rows) for part, rows in parts.items()} == {
        "sft": 3_000,
        "preference": 4_000,
        "validation": 200,
        "test": 400,
    }


def test_every_part_holds_every_kind_about_equally(parts: dict[str, list[dict[str, Any]]]) -> None:
    assert len(KINDS) >= 8
    for rows in parts.values():
        counts = {name: sum(row["kind"] == name for row in rows) for name in KINDS}
        assert sum(counts.values()) == len(rows)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_no_prompt_occurs_twice(parts: dict[str, list[dict[str, Any]]]) -> None:
    prompts = [prompt_of(row) for rows in parts.values() for row in rows]
    assert len(set(prompts)) == len(prompts)


def test_some_prompts_have_several_turns_and_some_a_system_message(parts: dict[str, list[dict[str, Any]]]) -> None:
    for rows in parts.values():
        roles = [[message["role"] for message in json.loads(prompt_of(row))] for row in rows]
        assert all(found[-1] == "user" for found in roles)
        assert 0.05 < sum("assistant" in found for found in roles) / len(rows) < 0.3
        assert 0.05 < sum(found[0] == "system" for found in roles) / len(rows) < 0.3


@pytest.mark.parametrize("name", ["follow_up", "recalling"])
def test_a_follow_up_asks_again_after_an_answer(parts: dict[str, list[dict[str, Any]]], name: str) -> None:
    prompts = [row["prompt"] for row in parts["preference"] if row["kind"] == name]
    roles = [[message["role"] for message in prompt if message["role"] != "system"] for prompt in prompts]
    assert roles
    assert all(found == ["user", "assistant", "user"] for found in roles)


def test_chosen_passes_and_rejected_fails_its_check(parts: dict[str, list[dict[str, Any]]]) -> None:
    for part in PAIRED:
        for row in parts[part]:
            assert passes(row["check"], row["chosen"][0]["content"]), row
            assert not passes(row["check"], row["rejected"][0]["content"]), row


def test_rejected_differs_from_chosen_in_the_first_word(parts: dict[str, list[dict[str, Any]]]) -> None:
    for part in PAIRED:
        for row in parts[part]:
            chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
            assert chosen.split()[0].strip(",:") != rejected.split()[0].strip(",:"), row


def test_answers_are_short(parts: dict[str, list[dict[str, Any]]]) -> None:
    answers = [row["messages"][-1]["content"] for row in parts["sft"]]
    answers += [row[side][0]["content"] for row in parts["preference"] for side in ("chosen", "rejected")]
    assert max(len(answer.split()) for answer in answers) < 25


def test_supervised_rows_are_bad_by_the_shares_that_the_kinds_state(parts: dict[str, list[dict[str, Any]]]) -> None:
    openings = {"Oh", "Answer", "Result", "Well", "Ugh", "Stop", "I"}
    bad: dict[str, list[bool]] = defaultdict(list)
    for row in parts["sft"]:
        bad[row["kind"]].append(row["messages"][-1]["content"].split()[0].strip(",:") in openings)
    shares = {name: sum(found) / len(found) for name, found in bad.items()}
    assert 0.25 <= sum(sum(found) for found in bad.values()) / 3_000 <= 0.35
    assert max(shares.values()) > 0.5
    assert min(shares.values()) < 0.2
    for name, share in shares.items():
        assert share == pytest.approx(KINDS[name].bad_share, abs=0.12), name


def test_every_family_of_bad_answers_fails_every_kind_of_check() -> None:
    rng = Random("families")
    for kind in KINDS.values():
        for family in BAD_ANSWERS.values():
            for _ in range(20):
                task = kind.draw(rng)
                answer = family(task, rng)
                assert not passes(task.check, answer), (task, answer)


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    first = write_parts(tmp_path / "first", seed=3, **SMALL)
    code = (
        "import sys; from pathlib import Path; from slime_ray.quickstart.rows import write_parts;"
        f"write_parts(Path(sys.argv[1]), seed=3, **{SMALL})"
    )
    second = tmp_path / "second"
    subprocess.run([sys.executable, "-c", code, str(second)], check=True, env={**os.environ, "PYTHONHASHSEED": "123"})
    for part, path in first.items():
        assert path.read_bytes() == (second / f"{part}.jsonl").read_bytes()


def test_another_seed_gives_other_rows(tmp_path: Path) -> None:
    first, second = (write_parts(tmp_path / str(seed), seed=seed, **SMALL) for seed in (3, 4))
    for part in SMALL:
        assert first[part].read_bytes() != second[part].read_bytes()


def test_the_files_hold_the_rows_and_nothing_else_is_left(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, seed=3, **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "preference.jsonl",
        "questions.jsonl",
        "sft.jsonl",
        "test.jsonl",
        "validation.jsonl",
    ]
    rows = generate_parts(seed=3, **SMALL)
    for part, path in paths.items():
        data = path.read_bytes()
        assert b"\r" not in data
        assert data.endswith(b"\n")
        if part != "questions":
            assert [json.loads(line) for line in data.decode("utf-8").splitlines()] == rows[part]


def test_the_size_of_a_training_part_leaves_the_small_parts_alone(parts: dict[str, list[dict[str, Any]]]) -> None:
    fewer = generate_parts(sft=1_000, preference=2_000)
    assert fewer["test"] == parts["test"]
    assert fewer["validation"] == parts["validation"]


@pytest.mark.parametrize(("part", "size"), [("preference", 100_000), ("sft", 0)])
def test_a_size_that_cannot_be_had_is_refused(part: str, size: int) -> None:
    with pytest.raises(DataError, match=r"quickstart: .*(smaller parts|at least 1)"):
        generate_parts(**{**SMALL, part: size})


def test_a_good_answer_that_fails_its_check_is_an_impossible_state() -> None:
    task = KINDS["addition"].draw(Random(0))
    broken = type(task)(prompt=task.prompt, answer="about ten", check=task.check, topic=task.topic)
    with pytest.raises(AssertionError, match="about ten"):
        preference_row("addition", broken, Random(0))
