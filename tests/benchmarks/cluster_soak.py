"""What a cluster keeps of jobs that are over: 20 short trainings in a row, submitted to `ray start` nodes.

    python -m tests.benchmarks.cluster_soak [--jobs 20]

After each job: actors and placement groups that live, and of all of the cluster's own processes (job workers have
ended) open files and resident memory, and what lies in its folder. Ray's log monitors keep the logs of ended workers
open, a thousand at most, and are counted by themselves. Growth is the slope over the second half of the jobs, when all
that is started once has been started.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.conftest import SETTINGS, preference_rows, write_rows, write_tiny_model
from tests.started_cluster import StartedCluster

# Ray starts and ends idle workers as it sees fit; they are told from its servers by their titles.
_IDLE = "ray::IDLE"
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_SETTLED_S = 5.0


def main() -> None:
    """Print what is left after each job, and how it grows, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, StartedCluster() as cluster:
        recipe = prepare(Path(folder))
        cluster.start_head(cpus=0)
        cluster.start_workers(2)
        rows = [after(cluster, recipe, number) for number in range(options.jobs)]
    show(rows)


def prepare(folder: Path) -> Path:
    """A recipe of three steps on two workers."""
    write_tiny_model(folder / "tiny", seed=0)
    data = write_rows(folder / "pairs.jsonl", preference_rows(41, seed=0))
    values = SETTINGS | {
        "runs_dir": str(folder / "runs"),
        "model.name": str(folder / "tiny"),
        "data.train": [str(data)],
        "training.num_workers": 2,
    }
    recipe = folder / "recipe.toml"
    recipe.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return recipe


def after(cluster: StartedCluster, recipe: Path, number: int) -> dict[str, float]:
    """Run one job, another than the ones before, and look at what is left."""
    began = time.monotonic()
    answer = cluster.run("submit", "train", recipe.name, f"training.seed={number}", folder=recipe.parent)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    seconds = time.monotonic() - began
    time.sleep(_SETTLED_S)
    row = {"seconds": seconds, **left(cluster)}
    print(f"job {number}: {row}", file=sys.stderr, flush=True)
    return row


def left(cluster: StartedCluster) -> dict[str, float]:
    """What the cluster holds now."""
    nodes = [node for node in (cluster.head, *cluster.workers) if node is not None]
    processes = [each for node in nodes for each in psutil.Process(node.process.pid).children(recursive=True)]
    servers = [process for process in processes if not process.name().startswith("ray::") or process.name() in _AGENTS]
    monitors = [process for process in servers if any("log_monitor.py" in word for word in process.cmdline())]
    actors = cluster.state("actors")
    groups = cluster.state("placement_groups")
    return {
        "living actors": sum(actor["state"] not in ("DEAD",) for actor in actors),
        "placement groups": sum(group["state"] not in ("REMOVED",) for group in groups),
        "processes of jobs": sum(p.name().startswith("ray::") and p.name() not in (_IDLE, *_AGENTS) for p in processes),
        "open files": sum(process.num_fds() for process in servers if process not in monitors),
        "open files of log monitors": sum(process.num_fds() for process in monitors),
        "memory, MB": sum(process.memory_info().rss for process in servers) / 1e6,
        "disk, MB": cluster.disk_bytes() / 1e6,
    }


def show(rows: Sequence[dict[str, float]]) -> None:
    """The table: after the first job, half of them and the last, and growth a job."""
    half = len(rows) // 2
    places = {"after job 1": 0, f"after job {half}": half - 1, f"after job {len(rows)}": len(rows) - 1}
    print(f"| {len(rows)} jobs | {' | '.join(places)} | growth a job, second half |")
    print("|---|" + "---:|" * (len(places) + 1))
    for name in rows[0]:
        values = [row[name] for row in rows]
        later = values[half:]
        slope = statistics.linear_regression(range(len(later)), later).slope if len(later) > 1 else 0.0
        shown = " | ".join(f"{values[place]:,.0f}" for place in places.values())
        print(f"| {name} | {shown} | {slope:+.2f} |")


if __name__ == "__main__":
    main()
