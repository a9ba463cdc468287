"""A run's own side of its certificate, and a whole certificate against transformers' model behind a loopback server."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slime_ray.config.data import DataConfig
from slime_ray.data.chat_format import ChatFormat
from slime_ray.data.split import part_of
from slime_ray.errors import ModelError, RunError
from slime_ray.overrides import load_recipe
from slime_ray.runs import Run
from slime_ray.serving.certificate import Certificate, certify, read_certificate
from slime_ray.serving.trained import Trained, _rows
from slime_ray.storage import json_hash
from slime_ray.training.fit import train
from tests.conftest import preference_rows, recipe_writer, write_rows
from tests.json_server import json_server

MAX_LENGTH = 96


@pytest.fixture(scope="module")
def trained_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, preference_file: Path, held_out_file: Path
) -> Run:
    write = recipe_writer(tmp_path_factory.mktemp("run"), model=tiny_model, data=preference_file)
    return train(load_recipe(write({"data.eval": [str(held_out_file)], "training.max_steps": 1}), []))


@pytest.fixture(scope="module")
def trained(trained_run: Run) -> Trained:
    return Trained.of(f"run:{trained_run.name}", runs_dir=trained_run.runs_dir, pairs=100)


@torch.no_grad()
def own_logps(model: Any, ids: list[int]) -> list[float]:
    """Of all tokens after the first, by the model's own logits."""
    logps_LV = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, :-1], -1)
    return logps_LV.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1).tolist()


def test_log_probabilities_are_those_of_the_final_model(trained_run: Run, trained: Trained) -> None:
    final = AutoModelForCausalLM.from_pretrained(trained_run.final, dtype=torch.float64)
    sides = [side for sample in trained.samples for side in sample.sides]
    assert len(sides) == 14  # two answers of each of the 7 held-out pairs
    for side, logps in zip(sides, trained.logps(sides), strict=True):
        expected = own_logps(final, side.prompt + side.answer)[len(side.prompt) - 1 :]
        assert logps == pytest.approx(expected, abs=1e-9)


def test_prompts_are_whole_and_answers_cut_as_in_training(trained: Trained) -> None:
    cut = [sample for sample in trained.samples if sample.sides[0].prompt != sample.prompt_ids]
    assert len(cut) == 1  # of 7 rows the fourth is too long
    (sample,) = cut
    assert len(sample.prompt_ids) > MAX_LENGTH >= max(len(side.prompt) + len(side.answer) for side in sample.sides)
    assert len(sample.sides[0].prompt) == MAX_LENGTH // 2
    assert (sample.prompt_ids[0], sample.prompt_ids[-47:]) == (sample.sides[0].prompt[0], sample.sides[0].prompt[1:])


def test_what_a_server_stores_and_stops_at(trained: Trained) -> None:
    assert trained.dtype == "float32"  # trained in float64, which no server has
    assert (trained.end_of_turn, trained.listed) == (1, (1,))
    assert trained.ordinary != 1
    assert trained.data == "data.eval"


def test_the_same_rows_are_drawn_whatever_their_order(tmp_path: Path) -> None:
    rows = preference_rows(30, seed=0)
    forth, back = write_rows(tmp_path / "forth.jsonl", rows), write_rows(tmp_path / "back.jsonl", rows[::-1])
    (some, place), (again, _) = (_rows(DataConfig(train=[str(path)]), 5) for path in (forth, back))
    assert [row.prompt for row in some] == [row.prompt for row in again]
    assert [row.prompt[0]["content"] for row in some] != [row["prompt"] for row in rows[:5]]
    assert (len(some), place) == (5, "data.train")


def test_rows_are_those_that_training_held_out(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "rows.jsonl", preference_rows(30, seed=0)))
    data = DataConfig.model_validate({"train": [path], "part": "preference", "split": {"sft": 0.3, "preference": 0.3}})
    rows, place = _rows(data, 30)
    assert {part_of(row.prompt, data.split) for row in rows} == {"heldout"}
    assert place == "the held-out part of data.train"
    rest = write_rows(tmp_path / "others.jsonl", preference_rows(3, seed=9))
    named, place = _rows(data.model_copy(update={"eval": [str(rest)]}), 30)
    assert {row.source.rpartition(":")[0] for row in named} == {str(rest)}
    assert place == "data.eval"


def test_todays_date_is_the_only_difference_of_todays_prompt(trained: Trained, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}{{ strftime_now('%Y') }}" + tokenizer.chat_template
    dated = replace(trained, chat=ChatFormat.of(tokenizer))
    sample = trained.samples[0]
    year = str(datetime.datetime.now().year)
    # One beginning for each, where the template alone would give three.
    assert dated.today(sample) == [0, *tokenizer(year)["input_ids"], *sample.prompt_ids]
    assert trained.today(sample) == sample.prompt_ids


@pytest.mark.parametrize("name", ["runs/tiny", "org/name", "run"])
def test_only_a_run_can_be_certified(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{name}: only a run has a training"):
        Trained.of(name, runs_dir=tmp_path, pairs=1)


def test_final_files_that_were_changed_are_refused(trained_run: Run, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained_run.folder, runs / trained_run.name)
    card = runs / trained_run.name / "final" / "README.md"
    card.write_bytes(bytes(reversed(card.read_bytes())))  # as long as before
    with pytest.raises(RunError, match="not those that the run's manifest lists"):
        Trained.of(f"run:{trained_run.name}", runs_dir=runs, pairs=1)


class Transformers:
    """What vLLM answers, by transformers' own model, tokenizer and generation config of a folder."""

    def __init__(self, folder: Path, *, max_model_len: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        self.max_model_len = max_model_len

    def models(self, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"data": [{"id": "served", "max_model_len": self.max_model_len}]}

    def chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        (number,) = body.get("allowed_token_ids", [5])
        given = [number] if number in self.stops else [number] * body["max_tokens"]
        choice = {"token_ids": given, "finish_reason": "stop" if number in self.stops else "length"}
        return self._fitting(ids, {"prompt_token_ids": ids, "choices": [choice]})

    def completions(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids = body["prompt"]
        told = [
            {str(token): {"logprob": logp}} for token, logp in zip(ids[1:], own_logps(self.model, ids), strict=True)
        ]
        return self._fitting(
            ids, {"system_fingerprint": "transformers", "choices": [{"prompt_logprobs": [None, *told]}]}
        )

    def _fitting(self, ids: list[int], answer: Any) -> tuple[int, Any]:
        return (200, answer) if len(ids) < self.max_model_len else (400, {"error": {"message": "too long"}})

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        with json_server(
            {"/models": self.models, "/chat/completions": self.chat, "/completions": self.completions}
        ) as url:
            yield url


@pytest.fixture
def server(trained_run: Run) -> Transformers:
    return Transformers(trained_run.final, max_model_len=256)


def certified(server: Transformers, run: Run) -> Certificate:
    with server.served() as url:
        return certify(f"run:{run.name}", runs_dir=run.runs_dir, base_url=url, model="served", pairs=7)


def test_a_server_of_the_same_model_passes(server: Transformers, trained_run: Run) -> None:
    found = certified(server, trained_run)
    manifest = trained_run.manifest()
    assert manifest is not None
    assert found.passed, found.reasons
    assert (found.prompts.compared, found.prompts.skipped, found.likelihoods.answers) == (7, 0, 14)
    assert found.likelihoods.max_difference is not None
    assert 0 < found.likelihoods.max_difference < 1e-4  # float32 on one side, float64 on the other
    assert (found.run, found.hash, found.server) == (trained_run.name, trained_run.hash, "transformers")
    assert read_certificate(trained_run.folder, files_hash=json_hash(manifest.files)) == found


def test_rows_that_the_server_has_no_room_for_are_left_out(server: Transformers, trained_run: Run) -> None:
    server.max_model_len = 90
    found = certified(server, trained_run)
    assert found.passed
    assert (found.prompts.compared, found.prompts.skipped) == (6, 1)
    assert found.likelihoods.answers + found.likelihoods.skipped == 14
    server.max_model_len = 16
    found = certified(server, trained_run)
    assert not found.passed
    assert found.reasons[-1] == "no answers were compared (14 are longer than the server takes)"


def test_another_head_fails(server: Transformers, trained_run: Run) -> None:
    with torch.no_grad():
        server.model.lm_head.weight[100:] += 0.05
    found = certified(server, trained_run)
    assert not found.passed
    assert len(found.reasons) == 1
    assert "log-probabilities are" in found.reasons[0]


def test_another_chat_template_fails(server: Transformers, trained_run: Run) -> None:
    server.tokenizer.chat_template = "{{ bos_token }}" + server.tokenizer.chat_template
    found = certified(server, trained_run)
    assert found.prompts.mismatches == 7
    assert len(found.reasons) == 1
    assert "from token 1: trained on '<|begin|><|user|>" in found.reasons[0]
    assert "served '<|begin|><|begin|><|user|>" in found.reasons[0]


def test_a_server_that_does_not_stop_fails(server: Transformers, trained_run: Run) -> None:
    server.stops = []
    assert certified(server, trained_run).reasons == ("the server goes on after the stop token 1",)


def test_a_server_that_stops_anywhere_fails(server: Transformers, trained_run: Run) -> None:
    server.stops = list(range(300))
    found = certified(server, trained_run)
    assert found.reasons == (f"the server stops after token {found.stops.ordinary}, which ends no answer",)
    assert found.stops.stopping == (1,)
