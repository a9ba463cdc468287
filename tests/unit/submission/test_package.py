"""What travels to a cluster: the code, the recipes, what was asked to be sent, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from slime_ray.errors import ConfigError
from slime_ray.submission import package
from slime_ray.submission.package import checkout, content, packed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs" / "recipes").mkdir(parents=True)
    (tmp_path / "jobs" / "recipes" / "mine.toml").write_text("x = 1\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / ".gitignore").write_text("*")  # which Ray would heed
    (tmp_path / "model" / ".env").write_text("no")
    (tmp_path / "secret.txt").write_text("no")
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    return tmp_path


def test_code_recipes_and_what_is_sent(folder: Path) -> None:
    with packed(["jobs/recipes/mine.toml"], ["model", "pairs.jsonl"]) as made:
        found = {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    own = {"jobs/recipes/mine.toml", "model/config.json", "pairs.jsonl"}
    assert {name for name in found if not name.startswith(("slime_ray/", "jobs/", "serve/"))} == own - {
        "jobs/recipes/mine.toml"
    }
    assert {name: found[name] for name in own} == {name: (folder / name).read_bytes() for name in own}
    code = {name: data for name, data in found.items() if name not in own}
    root = Path(__file__).parents[3]
    assert code == {name: (root / name).read_bytes() for name in code}
    for needed in ("slime_ray/cli/__init__.py", "slime_ray/evaluation/bundled/questions.jsonl", "jobs/train.py"):
        assert needed in code
    assert "serve/chat.py" in code
    assert not any("__pycache__" in name or name.startswith("jobs/recipes") for name in code)


def test_too_much_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MOST_BYTES", 4)
    with pytest.raises(
        ConfigError, match=r"model, pairs\.jsonl: 8 bytes would be sent, 4 bytes is the most; copy them"
    ):
        content(["model", "pairs.jsonl"])


def test_an_installed_package_says_that_it_needs_a_checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "__file__", str(folder / "slime_ray" / "submission" / "package.py"))
    with pytest.raises(ConfigError, match=r"without its jobs/; .* needs a checkout"):
        checkout()
