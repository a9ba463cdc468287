"""What pruning removes, and that everything else in a runs folder stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slime_ray.checkpoints import MANIFEST, CheckpointManifest, folder_of
from slime_ray.config.recipe import Recipe
from slime_ray.lease import Entry, Holder, acquire
from slime_ray.manifest import Lineage
from slime_ray.pruning import prune, removable
from slime_ray.runs import Run
from slime_ray.storage import folder_files, is_local, place, write_bytes

Tree = dict[str, bytes | None]


@pytest.fixture(params=["disk", "memory"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A runs folder, on a disk or behind a URL."""
    return (tmp_path if request.param == "disk" else place(f"memory:/{tmp_path}")) / "runs"


def begin(runs: Path, name: str = "sft", *, digit: str = "1", **checkpoint: object) -> tuple[Run, Lineage]:
    """Begin a run whose recipe has these settings of checkpoints."""
    run = Run(runs, name, digit * 64)
    values = {"model": {"name": "m"}, "data": {"train": ["d"]}, "checkpoint": checkpoint}
    values |= {"name": name, "runs_dir": str(runs)}
    lineage = Lineage(name=run.name, recipe=name, hash=run.hash, data="d", model="m", parent=None, versions={})
    run.begin(Recipe.model_validate(values), lineage)
    run.log({"step": 1, "loss": 0.5})
    return run, lineage


def finish(run: Run, lineage: Lineage) -> None:
    for name in ("config.json", "model.safetensors"):
        write_bytes(run.final / name, b"final")
    steps = (
        [int(path.name[-8:]) for path in run.checkpoints.iterdir() if path.name[-8:].isdigit()]
        if run.checkpoints.exists()
        else []
    )
    run.log({"step": max(steps, default=1), "loss": 0.4})
    run.finish(lineage)


def save(run: Run, step: int, *, loss: float | None = None, of: str | None = None) -> None:
    """Write a checkpoint of 100 bytes and a manifest."""
    folder = folder_of(run.checkpoints, step)
    write_bytes(folder / "model.safetensors", b"w" * 100)
    evaluation = {} if loss is None else {"eval_loss": loss}
    manifest = CheckpointManifest(run=of or run.hash, step=step, evaluation=evaluation, files=folder_files(folder))
    manifest.write(folder / MANIFEST)


def tree(folder: Path) -> Tree:
    """Every file below a folder with its content, and on a disk every folder."""
    paths = [path for path in folder.rglob("*") if is_local(path) or path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def without(before: Tree, *gone: str) -> Tree:
    return {name: data for name, data in before.items() if not any(f"{name}/".startswith(f"{g}/") for g in gone)}


def removed(runs: Path) -> list[tuple[str, str]]:
    """Prune, see that nobody's run was left alone, and return what went and why."""
    found, left = prune(runs)
    assert left == []
    return [(str(item.path.relative_to(runs)), item.reason) for item in found]


def checkpoint(run: Run, step: int) -> str:
    return f"{run.name}/checkpoints/step-{step:08d}"


def test_of_a_finished_run_the_best_stays(runs: Path) -> None:
    run, lineage = begin(runs)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None)):
        save(run, step, loss=loss)
    finish(run, lineage)
    before = tree(runs)
    assert removed(runs) == [(checkpoint(run, step), "its run is finished") for step in (1, 3, 4)]
    assert tree(runs) == without(before, *(checkpoint(run, step) for step in (1, 3, 4)))
    assert run.state() == "finished"


def test_what_pruning_kept_it_keeps(runs: Path) -> None:
    run, lineage = begin(runs)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        save(run, step, loss=loss)
    finish(run, lineage)
    removed(runs)
    before = tree(runs)
    assert removed(runs) == []
    assert tree(runs) == before


def test_of_a_finished_run_whose_last_is_the_best_none_stays(runs: Path) -> None:
    run, lineage = begin(runs)
    for step, loss in ((1, 3.0), (2, 2.0)):
        save(run, step, loss=loss)
    finish(run, lineage)
    before = tree(runs)
    assert removed(runs) == [
        (checkpoint(run, 1), "its run is finished"),
        (checkpoint(run, 2), "its run is finished, and final/ has its weights"),
    ]
    assert tree(runs) == without(before, checkpoint(run, 1), checkpoint(run, 2))


def test_of_a_finished_run_that_was_never_evaluated_none_stays(runs: Path) -> None:
    run, lineage = begin(runs)
    for step in (1, 2):
        save(run, step)
    finish(run, lineage)
    assert removed(runs) == [(checkpoint(run, step), "its run is finished") for step in (1, 2)]


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({"keep_last": 2}, [1, 3]),
        ({"keep_last": 1}, [1, 3, 4]),
        ({"keep_last": 1, "best_is": "highest"}, [2, 3, 4]),
        ({"keep_last": 2, "best_metric": ""}, [1, 2, 3]),
        ({"keep_last": 5}, []),
    ],
)
def test_of_an_unfinished_run_what_its_recipe_says_stays(settings: dict[str, Any], gone: list[int], runs: Path) -> None:
    run, _ = begin(runs, **settings)
    for step, loss in enumerate((9.0, 1.0, 3.0, 2.0, 4.0), 1):
        save(run, step, loss=loss)
    before = tree(runs)
    assert removed(runs) == [(checkpoint(run, step), "neither among the last nor the best") for step in gone]
    assert tree(runs) == without(before, *(checkpoint(run, step) for step in gone))


def test_what_is_no_checkpoint_of_the_run_goes(runs: Path) -> None:
    run, _ = begin(runs, keep_last=1)
    for step in (1, 2, 3):
        save(run, step)
    save(run, 4, of="2" * 64)
    (folder_of(run.checkpoints, 2) / MANIFEST).write_bytes(b"{")
    folder_of(run.checkpoints, 5).mkdir()
    write_bytes(folder_of(run.checkpoints, 6) / "model.safetensors", b"w" * 1000)
    before = tree(runs)
    gone = [2, 4, 5, 6]
    expected = [(checkpoint(run, step), "not complete") for step in gone]
    assert removed(runs) == [*expected, (checkpoint(run, 1), "neither among the last nor the best")]
    assert tree(runs) == without(before, checkpoint(run, 1), *(checkpoint(run, step) for step in gone))


def test_a_stray_file_among_checkpoints_is_not_ours(tmp_path: Path) -> None:
    run, _ = begin(tmp_path)
    save(run, 1)
    write_bytes(run.checkpoints / ".nfs0001", b"")
    before = tree(tmp_path)
    assert removed(tmp_path) == []
    assert tree(tmp_path) == before


def test_all_that_was_removed_is_told(runs: Path) -> None:
    run, lineage = begin(runs)
    write_bytes(folder_of(run.checkpoints, 1) / "half", b"")
    finish(run, lineage)
    write_bytes(run.folder / "manifest.json", b"{")
    before = tree(runs)
    found, left = prune(runs)
    assert len(left) == 1
    assert tree(runs) == without(before, *(str(item.path.relative_to(runs)) for item in found))


def test_what_was_freed_is_told(runs: Path) -> None:
    run, _ = begin(runs, keep_last=1)
    for step in (1, 2):
        save(run, step)
    manifest = (folder_of(run.checkpoints, 1) / MANIFEST).stat().st_size
    (item,), left = prune(runs)
    assert (item.path, item.size, left) == (folder_of(run.checkpoints, 1), 100 + manifest, [])


def test_models_metrics_caches_and_what_is_not_ours_stay(runs: Path) -> None:
    run, lineage = begin(runs, "llama/sft")
    save(run, 1)
    write_bytes(run.best / "model.safetensors", b"best")
    finish(run, lineage)
    for name in (
        ".cache/tokens/checkpoints/step-00000001/rows",
        "references/a.safetensors",
        "llama/notes/checkpoints/step-00000001/half",  # a folder without a lineage is no run
        "notes.txt",
        f"{run.name}/checkpoints.txt",
    ):
        write_bytes(runs / name, b"kept")
    before = tree(runs)
    assert removed(runs) == [(checkpoint(run, 1), "its run is finished")]
    assert tree(runs) == without(before, checkpoint(run, 1))


def test_a_held_run_is_left_alone_and_named(runs: Path) -> None:
    held, free = begin(runs, "a")[0], begin(runs, "b", keep_last=1)[0]
    for run in (held, free):
        for step in (1, 2, 3, 4):
            save(run, step)
        write_bytes(folder_of(run.checkpoints, 5) / "half", b"")
    holder = Holder(host="far", pid=7, machine="another boot", started="1")
    write_bytes(held.lease / "000003.json", Entry(holder=holder).model_dump_json().encode())
    before = tree(runs)
    found, left = prune(runs)
    assert left == [f"{held.name}: held by process 7 on far"]
    assert [item.path for item in found] == [folder_of(free.checkpoints, step) for step in (5, 1, 2, 3)]
    assert tree(runs) == without(before, *(checkpoint(free, step) for step in (1, 2, 3, 5)))


def test_a_run_that_this_process_holds_is_left_alone_too(tmp_path: Path) -> None:
    run, _ = begin(tmp_path, keep_last=1)
    for step in (1, 2):
        save(run, step)
    with acquire(run.lease, what=run.name, wait=False, say=print):
        before = {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()}
        found, left = prune(tmp_path)
        assert (found, len(left)) == ([], 1)
        assert {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()} == before
    found, left = prune(tmp_path)
    assert ([item.path for item in found], left) == ([folder_of(run.checkpoints, 1)], [])
    assert not run.lease.exists()


def test_a_run_whose_settings_cannot_be_read_is_left_alone(runs: Path) -> None:
    broken, good = begin(runs, "a")[0], begin(runs, "b", keep_last=1)[0]
    for run in (broken, good):
        for step in (1, 2):
            save(run, step)
    write_bytes(broken.folder / "config.json", b"{")
    before = tree(runs)
    found, left = prune(runs)
    assert [item.path for item in found] == [folder_of(good.checkpoints, 1)]
    assert len(left) == 1
    assert left[0].startswith(f"{broken.name}: {broken.folder / 'config.json'}: no recipe (")
    assert tree(runs) == without(before, checkpoint(good, 1))


def test_looking_removes_nothing(runs: Path) -> None:
    run, _ = begin(runs, keep_last=1)
    for step in (1, 2):
        save(run, step)
    before = tree(runs)
    assert list(removable(run)) == [(folder_of(run.checkpoints, 1), "neither among the last nor the best")]
    assert tree(runs) == before


def test_where_there_are_no_runs_nothing_goes(runs: Path) -> None:
    assert prune(runs) == ([], [])
    write_bytes(runs / "file", b"")
    assert prune(runs) == ([], [])
    assert tree(runs) == {"file": b""}
