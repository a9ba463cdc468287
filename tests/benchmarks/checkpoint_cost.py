"""What checkpoints cost the quickstart's preference stage at the default interval, as a share of its time.

Two views of it. Accounted: the time that steps stood still for a copy to host memory, and all processor time of the
thread that writes, as if none of it had been spare. Compared: the loop's time with the default checkpoints over that
with only the last one, in turns in one process, since these machines are noisy.

    python -m tests.benchmarks.checkpoint_cost [ROUNDS]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from slime_ray.overrides import load_recipe
from slime_ray.quickstart.models import write_model
from slime_ray.quickstart.rows import write_parts
from slime_ray.training import worker
from slime_ray.training.fit import train
from slime_ray.training.saver import Saver

RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "quickstart" / "slime.toml"
ONLY_THE_LAST = ["checkpoint.every_minutes=1e6", 'checkpoint.best_metric=""']


@dataclass
class Clock:
    """Seconds that calls took, by wall clock or by processor time of their thread."""

    read: Callable[[], float]
    spent: list[float] = field(default_factory=list)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            started = self.read()
            try:
                return function(*arguments, **options)
            finally:
                self.spent.append(self.read() - started)

        return timed


def main(rounds: int) -> None:
    """Print the figures of some rounds; each trains the stage twice."""
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    stalls, writes, loops = Clock(time.perf_counter), Clock(time.thread_time), Clock(time.perf_counter)
    Saver.save = stalls.around(Saver.save)
    Saver._write = writes.around(Saver._write)
    worker.run_loop = loops.around(worker.run_loop)
    with tempfile.TemporaryDirectory() as folder:
        parts = write_parts(Path(folder, "data"), seed=0)
        base = write_model(Path(folder, "base"), str(parts["sft"]), seed=0)
        places = [f"model.name={base}", f'data.train=["{parts["preference"]}"]', f'data.eval=["{parts["validation"]}"]']
        ratios, shares = [], []
        for number in range(rounds):
            seconds = {}
            for name, settings in (("default", []), ("only the last", ONLY_THE_LAST)):
                runs_dir = f"runs_dir={folder}/{number}-{name.replace(' ', '-')}"
                before = len(stalls.spent), len(writes.spent)
                train(load_recipe(RECIPE, [*places, *settings, runs_dir, "training.num_workers=0"]))
                seconds[name] = loops.spent[-1]
                stall, write = sum(stalls.spent[before[0] :]), sum(writes.spent[before[1] :])
                share = (stall + write) / loops.spent[-1]
                print(
                    f"round {number + 1}, {name}: loop {loops.spent[-1]:.1f} s, "
                    f"{len(writes.spent) - before[1]} checkpoints, stood still {stall:.3f} s, writing {write:.3f} s "
                    f"of processor time: {share:.2%}",
                    flush=True,
                )
                if name == "default":
                    shares.append(share)
            ratios.append(seconds["default"] / seconds["only the last"])
        print(f"accounted: at most {max(shares):.2%} of the loop's time")
        spread = f"from {min(ratios) - 1:+.2%} to {max(ratios) - 1:+.2%}"
        print(f"compared: {median(ratios) - 1:+.2%} (median of {rounds} rounds, {spread})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
