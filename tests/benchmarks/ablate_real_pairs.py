"""SLIME without each of its parts, and other objectives, on real pairs with five seeds.

    python -m tests.benchmarks.ablate_real_pairs [--shared ../shared]

Data, model and SFT start are those of align_real_pairs.py; what is varied is in ablate_real_pairs.toml. Run again, it
goes on with what it lacks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from slime_ray.cli.terms import print_wide
from slime_ray.data.split import part_of
from slime_ray.overrides import load_recipe
from slime_ray.search.ablation import run_ablation
from slime_ray.search.report.table import contrasts_table
from slime_ray.search.shown import Shown
from slime_ray.training.fit import train
from tests.benchmarks.align_real_pairs import FILES, RECIPE, ROOT, SFT, make_model, usable, write_held_out


def main() -> None:
    """Do what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the folder that has data/preference/")
    files = [str(parser.parse_args().shared / "data" / "preference" / name) for name in FILES]
    data = f"data.train={json.dumps(files)}"
    heldout = write_parts(files, data)
    make_model(files)
    train(load_recipe(RECIPE, [data, "name=real-pairs/sft", *SFT]))
    with Shown() as shown:
        _, found = run_ablation(
            Path(__file__).with_suffix(".toml"),
            [],
            heldout=str(heldout),
            seeds=5,
            max_new_tokens=256,
            studies_dir="studies",
            alone=False,
            shown=shown,
        )
    print_wide(contrasts_table(found))


def write_parts(files: list[str], data: str) -> Path:
    """The preference part of the split as a file, and the whole held-out part, whose path is returned."""
    split = load_recipe(RECIPE, [data]).data.split
    held = write_held_out(files, split)
    heldout = ROOT / "heldout.jsonl"
    heldout.write_text(held.choose.read_text(encoding="utf-8") + held.report.read_text(encoding="utf-8"))
    rows = [
        json.dumps({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected})
        for pair in usable(files)
        if part_of(pair.prompt, split) == "preference"
    ]
    (ROOT / "preference.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return heldout


if __name__ == "__main__":
    main()
