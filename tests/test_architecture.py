"""Imports point one way, and what needs neither torch nor ray loads neither."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A part imports parts of earlier steps and itself; parts on one step do not import each other.
STEPS: list[set[str]] = [
    {"errors"},
    {"s3"},
    {"storage"},
    {"config"},
    {"overrides"},
    {"copies", "sealed", "lease"},
    {"manifest"},
    {"runs"},
    {"checkpoints"},
    {"overview", "pruning"},
    {"data", "objectives", "evaluation"},
    {"model"},
    {"quickstart"},
    {"training"},
    {"training.workers"},
    {"training.fit"},
    {"serving"},
    {"pipeline"},
    {"search"},
    {"submission"},
    {"cli"},
    # An entry point of a job is the command line with its subcommand given.
    {"jobs", "serve"},
    # The public names: loaded lazily, so that they may come from anywhere.
    {"slime_ray"},
]
STEP = {part: number for number, parts in enumerate(STEPS) for part in parts}
KNOWS_OPTUNA = ("search.optuna_terms", "search.proposals", "search.importance")
KNOWS_RAY = (
    *("training.workers", "training.cluster", "search.tuning", "search.trial"),
    *("serving", "pipeline", "submission", "jobs", "serve"),
)


def modules() -> dict[str, Path]:
    """Every module of the library and of the folders of entry points, by its dotted name."""
    files = [path for folder in ("slime_ray", "jobs", "serve") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def part_of(module: str) -> str:
    """The part that a module of ours belongs to: what STEPS calls it."""
    if module == "slime_ray":
        return module
    name = module.removeprefix("slime_ray.")
    return name if name in STEP else name.partition(".")[0]


def imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in it, with the line."""
    ours = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; name the module in full"
            assert node.module is not None
            for alias in node.names:
                # `from slime_ray.data import inspection` imports a module, not a name of one.
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in ours else node.module), node.lineno


MODULES = sorted(modules().items())


def named(module: str, *parts: str) -> bool:
    """Whether a module is one of some parts or inside one."""
    name = module.removeprefix("slime_ray.")
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def test_every_module_has_a_step() -> None:
    assert {part_of(module) for module, _ in MODULES} <= STEP.keys()


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[module for module, _ in MODULES])
def test_imports_point_one_way(module: str, path: Path) -> None:
    part = part_of(module)
    wrong = []
    for imported, line in imports(module, path):
        if imported.partition(".")[0] in ("slime_ray", "jobs", "serve"):
            other = part_of(imported)
            if other != part and STEP[other] >= STEP[part]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {part} imports {other}")
    assert not wrong


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[module for module, _ in MODULES])
def test_who_may_import_what(module: str, path: Path) -> None:
    imported = {name.partition(".")[0] for name, _ in imports(module, path)}
    assert "ray" not in imported or named(module, *KNOWS_RAY)
    assert "optuna" not in imported or named(module, *KNOWS_OPTUNA)
    if named(module, "evaluation"):
        assert not imported & {"torch", "ray"}
    if named(module, "objectives"):
        assert imported <= {"torch", "slime_ray", *sys.stdlib_module_names}
        assert all(named(name, "objectives") for name, _ in imports(module, path) if name.startswith("slime_ray"))


def test_entry_points_define_nothing() -> None:
    # What `__main__` defines is pickled by value, and a worker could not import it.
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for path in sorted((ROOT / "jobs").glob("*.py")):
        found = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, defined)]
        assert not found, f"{path.name} defines something"


EVALUATION = [module for module, _ in MODULES if named(module, "evaluation")]


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        (["slime_ray", "slime_ray.cli"], ["torch", "ray", "transformers"]),
        (["slime_ray.data.inspection"], ["torch", "ray"]),
        (["slime_ray.runs", "slime_ray.model.source", "slime_ray.training.stage"], ["torch", "ray"]),
        (["slime_ray.training.fit"], ["torch", "ray"]),
        (EVALUATION, ["torch", "ray"]),
        (["slime_ray.search.loading", "slime_ray.search.space", "slime_ray.search.bench"], ["torch", "ray", "optuna"]),
    ],
    ids=["the command", "inspect", "runs", "a finished stage", "evaluation", "a study"],
)
def test_importing_loads_nothing_heavy(names: list[str], absent: list[str]) -> None:
    code = f"import sys, {', '.join(names)}; print([name for name in {absent!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
