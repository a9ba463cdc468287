"""The trainer's side of a certificate: held-out rows as training tokenises them, and their likelihoods."""

from __future__ import annotations

import heapq
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from slime_ray.config.data import DataConfig
from slime_ray.config.model import ModelConfig
from slime_ray.config.recipe import Recipe
from slime_ray.data.chat_format import ChatFormat, load_tokenizer
from slime_ray.data.collation import RowTokens, pack, pad
from slime_ray.data.preferences import Demonstration, Preference, Skipped, read_any
from slime_ray.data.split import part_of, prompt_key
from slime_ray.data.tokenization import tokenize
from slime_ray.errors import DataError, ModelError, RunError
from slime_ray.manifest import Manifest, versions
from slime_ray.model.loading import load_model
from slime_ray.model.policy import Policy
from slime_ray.model.source import ModelSource, find_model
from slime_ray.runs import Run, find_run, read_recipe
from slime_ray.serving.comparison import Dtype
from slime_ray.storage import folder_files, json_hash

Row = Preference | Demonstration


@dataclass(frozen=True, slots=True)
class Side:
    """Token ids of a prompt and one answer to it, cut as training cuts them."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row: its prompt's tokens, uncut, and both its answers; a demonstration has one."""

    row: Row
    prompt_ids: list[int]
    sides: tuple[Side, ...]


@dataclass(frozen=True)
class Trained:
    """A finished run's model, with rows to look at it by.

    Attributes:
        manifest: the run's.
        files: the hash of final/'s files.
        source: final/.
        settings: how its weights are loaded.
        chat: tokenizer and chat template, as the run was given them: not those that it saved.
        samples: rows, at least one.
        data: where they come from.
        dtype: that the weights are stored in, for a server: it has no float64.
        listed: eos_token_id of the generation config.
    """

    manifest: Manifest
    files: str
    source: ModelSource
    settings: ModelConfig
    chat: ChatFormat
    samples: tuple[Sample, ...]
    data: str
    dtype: Dtype
    listed: tuple[int, ...]

    @classmethod
    def of(cls, name: str, *, runs_dir: Path, pairs: int) -> Trained:
        """Find the run and draw `pairs` of its rows, the same ones every time.

        Raises:
            ModelError: the name is not that of a run.
            RunError: there is no such finished run, or final/ is not what it wrote.
            DataError: its data cannot be read, or no row is usable.
        """
        if not name.startswith("run:"):
            raise ModelError(
                f"{name}: only a run has a training that a server can be compared with; expected run:NAME, no folder "
                "and no hub name"
            )
        manifest = find_run(runs_dir, name.removeprefix("run:"))
        run = Run(runs_dir, manifest.recipe, manifest.hash)
        if folder_files(run.final) != manifest.files:
            raise RunError(
                f"{run.final}: its files are not those that the run's manifest lists; put them back, or remove "
                f"{run.folder} and train it again"
            )
        recipe = read_recipe(run)
        chat = ChatFormat.of(_tokenizer(recipe, manifest, runs_dir))
        rows, data = _rows(recipe.data, pairs)
        samples = tuple(sample for row in rows if (sample := _sample(row, recipe.data, chat)) is not None)
        if not samples:
            raise DataError(
                f"{data} of {manifest.name}: no row is usable under the run's tokenizer and data.max_length"
            )
        stored = json.loads((run.final / "config.json").read_bytes()).get("dtype")
        stops = json.loads((run.final / "generation_config.json").read_bytes()).get("eos_token_id")
        return cls(
            manifest=manifest,
            files=json_hash(manifest.files),
            source=ModelSource(str(run.final), None, manifest.hash, json_hash(manifest.files), manifest.name),
            settings=ModelConfig(name=str(run.final), dtype=recipe.model.dtype),
            chat=chat,
            samples=samples,
            data=data,
            dtype=cast(Dtype, stored) if stored in ("bfloat16", "float16") else "float32",
            listed=tuple(stops) if isinstance(stops, list) else () if stops is None else (stops,),
        )

    @property
    def versions(self) -> dict[str, str]:
        """Of what computes the trainer's side."""
        found = versions()
        return {package: found[package] for package in ("slime-ray", "torch", "transformers")}

    @property
    def end_of_turn(self) -> int:
        """The token that the template puts after an answer."""
        return self.chat.require_end_of_turn()

    @property
    def ordinary(self) -> int:
        """A token of an answer that ends none."""
        ends = {self.end_of_turn, *self.listed}
        return next(
            token for sample in self.samples for side in sample.sides for token in side.answer if token not in ends
        )

    def today(self, sample: Sample) -> list[int]:
        """The prompt's tokens with today's date, where the chat template prints it; training has one date for ever."""
        tokenizer, row = self.chat.tokenizer, sample.row
        tools = list(row.tools) if row.tools else None
        text = tokenizer.apply_chat_template(list(row.prompt), tools=tools, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(cast(str, text), add_special_tokens=False)["input_ids"]
        while ids[:2] == [self.chat.bos_id] * 2:
            ids = ids[1:]
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of some tokens, with the special ones."""
        return cast(str, self.chat.tokenizer.decode(ids, skip_special_tokens=False))

    @torch.no_grad()
    def logps(self, sides: Sequence[Side]) -> list[list[float]]:
        """log pi(token | context) of every token of each answer, in nats, as training computes it on a CPU.

        Raises:
            ModelError: the weights cannot be loaded.
        """
        model = load_model(self.source, self.settings)
        policy = Policy(model, lora=None, device=torch.device("cpu"))
        model.eval()
        nothing = np.zeros(0, np.int32)
        found = []
        for side in sides:
            row = RowTokens(np.array(side.prompt, np.int32), np.array(side.answer, np.int32), nothing)
            packed = policy.layout == "packed"
            batch = pack([row], rows=(0,)) if packed else pad([row], rows=(0,), pad_id=0, left=False)
            found.append(policy.completion_logps(batch).tolist())
        return found


def _tokenizer(recipe: Recipe, manifest: Manifest, runs_dir: Path) -> PreTrainedTokenizerBase:
    """What the run was given. What it saved in final/ is what a server loads: compared with itself it says little."""
    settings = recipe.model
    # A recipe names its parent by what was newest then.
    parent = f"run:{manifest.parent}" if manifest.parent else settings.name
    key = "model.tokenizer" if settings.tokenizer else "model.name"
    source = find_model(settings.tokenizer or parent, runs_dir=runs_dir, key=key)
    return load_tokenizer(source.pinned, settings.chat_template)


def _rows(data: DataConfig, count: int) -> tuple[list[Row], str]:
    """Rows that were held out, as training evaluates; of a run that held none out, rows that it was trained on."""
    held_out = "the held-out part of data.train"
    places = [
        ("data.eval", data.eval),
        (held_out, data.train if data.part != "all" else []),
        ("data.train", data.train),
    ]
    for place, entries in places:
        usable = (row for row in _usable(entries) if place != held_out or part_of(row.prompt, data.split) == "heldout")
        # By the hash of the prompt: a sample that does not depend on the order of the rows, without keeping them all.
        if rows := heapq.nsmallest(count, usable, key=lambda row: prompt_key(row.prompt)):
            return rows, place
    raise DataError(f"data.train = {', '.join(data.train)}: no usable row; run `slime-ray inspect` on it")


def _usable(entries: Sequence[str]) -> Iterator[Row]:
    return (row for entry in entries for _, row in read_any(entry) if not isinstance(row, Skipped))


def _sample(row: Row, data: DataConfig, chat: ChatFormat) -> Sample | None:
    """A row's tokens; None if it is unusable."""
    # A server cuts no prompt, so prompts are compared whole.
    whole = tokenize(row, chat, max_length=sys.maxsize, prompt_room=sys.maxsize, turns="last")
    cut = tokenize(row, chat, max_length=data.max_length, prompt_room=data.prompt_room, turns="last")
    if isinstance(whole, Skipped) or isinstance(cut, Skipped):
        return None
    answers = [cut.chosen_ids] if cut.rejected_ids is None else [cut.chosen_ids, cut.rejected_ids]
    return Sample(row, whole.prompt_ids, tuple(Side(cut.prompt_ids, answer) for answer in answers))
