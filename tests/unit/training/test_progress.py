"""What a log shows of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from slime_ray.runs import Run
from slime_ray.training.progress import Progress


def test_a_log_ends_with_the_last_step_and_skips_evaluations_and_half_written_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, "small", "0123456789abcdef")
    run.folder.mkdir()
    with Progress(run, steps=20):
        run.log({"step": 9, "loss": 0.75, "rewards/margins": 1.5})
        run.log({"step": 20, "loss": 0.25, "rewards/margins": 2.5})
        run.log({"step": 20, "eval_loss": 0.5})
        with run.metrics_file.open("a", encoding="utf-8") as file:
            file.write('{"step": 21, "lo')
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "small-01234567: 20 steps"
    assert lines[-1] == "small-01234567: step 20/20 loss 0.25  rewards/margins 2.5"
