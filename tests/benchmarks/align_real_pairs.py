"""The main job on real preference pairs: SFT, then four objectives from the same checkpoint with the same budget.

    python -m tests.benchmarks.align_real_pairs [--shared ../shared]

2,887 usable pairs of three published files (dpo_en_demo, orca_dpo_pairs, hh-rlhf harmless-base) are split by prompt
into an SFT part, a preference part and a held-out part of about 10 %. A small Llama is trained from random weights
through Ray Train. The held-out pairs are cut in two: each objective's learning rate is chosen among the same candidates
on the first half, and the table is of the second.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slime_ray.config.data import SplitConfig
from slime_ray.data.preferences import Preference, Skipped, read_preferences
from slime_ray.data.split import part_of, prompt_key
from slime_ray.overrides import load_recipe
from slime_ray.quickstart.models import make_llama, make_tokenizer
from slime_ray.training.fit import train
from slime_ray.training.scoring import Mean, Score, score

RECIPE = Path(__file__).with_suffix(".toml")
FILES = (
    "llama_factory/dpo_en_demo.json",
    "orca_dpo_pairs/validation.jsonl",
    "hh_rlhf/harmless-base/test.jsonl.gz",
)
ROOT = Path("runs/real-pairs")
SFT = ("loss.kind=sft", "data.part=sft", "training.epochs=4", "training.learning_rate=1e-3")
# The same candidates for every objective; the small model from random weights needs rates far above the paper's.
RATES = ("1e-4", "3e-4")
CONTENDERS = {
    "SFT continued": ("loss.kind=sft",),
    "SLIME": ("loss.kind=slime",),
    "SLIME, lambda_rejected 0.0005": ("loss.kind=slime", "loss.lambda_rejected=0.0005"),
    "DPO": ("loss.kind=dpo",),
    "SimPO": ("loss.kind=simpo",),
}


@dataclass(frozen=True)
class Held:
    """The two halves of the held-out pairs, as files: one to choose on, one to report."""

    choose: Path
    report: Path


def main() -> None:
    """Train what is not yet trained, and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the folder that has data/preference/")
    files = [str(parser.parse_args().shared / "data" / "preference" / name) for name in FILES]
    data = f"data.train={json.dumps(files)}"
    split = load_recipe(RECIPE, [data]).data.split
    held = write_held_out(files, split)
    make_model(files)

    start = str(train(load_recipe(RECIPE, [data, "name=real-pairs/sft", *SFT])).final)
    rows = {"random weights": figures(f"{ROOT}/base", held.report), "SFT": figures(start, held.report)}
    for label, settings in CONTENDERS.items():
        candidates: list[tuple[float, str, str]] = []
        for rate in RATES:
            name = f"real-pairs/{label.lower().replace(' ', '-').replace(',', '')}-{rate}"
            budget = ("data.part=preference", f"training.learning_rate={rate}")
            recipe = load_recipe(RECIPE, [data, f"name={name}", f"model.name={start}", *budget, *settings])
            final = str(train(recipe).final)
            candidates.append((figures(final, held.choose)["accuracy"].value, rate, final))
        _, rate, best = max(candidates)
        rows[f"{label} ({rate})"] = figures(best, held.report)
    print_table(rows)


def usable(files: list[str]) -> Iterator[Preference]:
    """All usable pairs of the files."""
    for file in files:
        yield from (row for row in read_preferences(file) if not isinstance(row, Skipped))


def write_held_out(files: list[str], split: SplitConfig) -> Held:
    """Cut the held-out part in two by prompt, so that no prompt is in both halves."""
    held = Held(ROOT / "choose.jsonl", ROOT / "report.jsonl")
    halves: dict[Path, list[str]] = {held.choose: [], held.report: []}
    for pair in usable(files):
        if part_of(pair.prompt, split) == "heldout":
            half = held.choose if int(prompt_key(pair.prompt)[-1], 16) < 8 else held.report
            halves[half].append(json.dumps({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}))
    ROOT.mkdir(parents=True, exist_ok=True)
    for path, lines in halves.items():
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return held


def make_model(files: list[str]) -> None:
    """A tokenizer of 2,048 tokens trained on the chosen answers, and a Llama of 2 layers x 256 with random weights."""
    folder = ROOT / "base"
    if not (folder / "model.safetensors").is_file():
        tokenizer = make_tokenizer((pair.chosen[-1]["content"] for pair in usable(files)), vocabulary=2048)
        tokenizer.save_pretrained(folder)
        make_llama(tokenizer, layers=2, hidden=256, heads=4, tied=True, seed=0).save_pretrained(folder)


def figures(model: str, pairs: Path) -> dict[str, Mean]:
    """The score's figures of a checkpoint; no answers are generated."""
    found: Score = score(model, str(pairs), runs_dir=Path("runs").absolute(), max_length=384, max_new_tokens=0)
    return found.means()


def print_table(rows: dict[str, dict[str, Mean]]) -> None:
    """The table as Markdown, means with 95 % intervals."""
    names = list(next(iter(rows.values())))
    print("| checkpoint | " + " | ".join(names) + " |")
    print("|---|" + "---:|" * len(names))
    for label, means in rows.items():
        cells = (f"{means[name].value:.3f} ± {means[name].half_width:.3f}" for name in names)
        print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
