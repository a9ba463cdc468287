"""What stands for a model's content."""

from __future__ import annotations

from pathlib import Path

from slime_ray.manifest import Lineage
from slime_ray.model.source import find_model
from slime_ray.runs import Run


def finished(run: Run, weights: bytes) -> None:
    run.final.mkdir(parents=True, exist_ok=True)
    (run.final / "model.safetensors").write_bytes(weights)
    made_from = {"data": "data", "model": "model", "parent": None, "versions": {}}
    run.finish(Lineage(name=run.name, recipe=run.recipe, hash=run.hash, **made_from))


def test_a_run_trained_again_has_its_name_but_other_content(tmp_path: Path) -> None:
    run = Run(tmp_path, "sft", "0123456789abcdef")
    finished(run, b"one")
    first = find_model("run:sft", runs_dir=tmp_path)
    finished(run, b"two")
    again = find_model("run:sft", runs_dir=tmp_path)
    assert again.hash == first.hash
    assert again.content != first.content
