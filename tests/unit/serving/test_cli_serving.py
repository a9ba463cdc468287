"""The commands around an endpoint as far as they need none: what they refuse, keys, what is printed once it answers."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from slime_ray.cli.serving import _show
from slime_ray.config.serving import KeysConfig
from slime_ray.overrides import load_serving
from slime_ray.serving.endpoint import Endpoint
from slime_ray.serving.gateway.keys import Keys
from tests.command_line import Run

RECIPES = sorted((Path(__file__).parents[3] / "jobs" / "recipes").glob("*/serve.toml"))


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is refused is refused before Ray starts, else these tests would wait for it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["serve", "cpus=0.5"], "nothing to serve"),
        (["serve", "none.toml"], "none.toml: no such recipe"),
        (["serve", "base", "base/"], "'base' and 'base' would both be served as 'base'"),
        (["serve", "base", "prot=1"], "prot is not a setting; did you mean port?"),
        (["serve", "base", "host=0.0.0.0"], "no API key is set"),
        (["serve", "base", "keys.file=none.json"], "none.json: no such file of keys"),
        (["certify", "base"], "base: no run; only a run has a training"),
        (["certify", "base", "other"], "base, other: expected one run"),
        (["certify", "run:tiny/none"], "no finished run"),
        (["certify", "base", "cpu=1"], "cpu is not a setting"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    run: Run, tiny_model: Path, command: list[str], words: str
) -> None:
    for name in ("base", "other"):
        Path(name).symlink_to(tiny_model)
    found = run(*command)
    assert (found.code, found.out) == (2, "")
    (line,) = found.err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_key_is_made_listed_and_revoked(run: Run) -> None:
    made = run("keys", "add", "ada", "--file", "keys.json")
    assert (made.code, made.err) == (0, "")
    (key,) = made.out.splitlines()
    assert key not in Path("keys.json").read_text()
    other = run("keys", "add", "bo", "--file", "keys.json").out.strip()
    assert Keys.load(KeysConfig(file="keys.json")).name_of(key) == "ada"
    listed = run("keys", "list", "--file", "keys.json").out
    assert re.fullmatch(r"ada  made [\d-]+ [\d:]+ UTC\nbo  made [\d-]+ [\d:]+ UTC\n", listed)
    assert run("keys", "revoke", "ada", "--file", "keys.json").code == 0
    keys = Keys.load(KeysConfig(file="keys.json"))
    assert (keys.name_of(key), keys.name_of(other)) == (None, "bo")
    assert re.search(
        r"^ada  made .* UTC, revoked .* UTC$", run("keys", "list", "--file", "keys.json").out, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["keys", "add", "a b"], "'a b' is no name of a key"),
        (["keys", "add", "ada"], "there is a key 'ada' already"),
        (["keys", "revoke", "bo"], "no valid key is called 'bo'"),
    ],
)
def test_a_mistake_with_keys_prints_no_key(run: Run, command: list[str], words: str) -> None:
    key = run("keys", "add", "ada", "--file", "keys.json").out.strip()
    found = run(*command, "--file", "keys.json")
    assert (found.code, found.out) == (2, "")
    assert words in found.err
    assert key not in found.err


def test_what_is_printed_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    _show(Endpoint("http://127.0.0.1:8123/v1", ("tiny/slime", "base")), keyed=False)
    url, first, second, chat, curl = capsys.readouterr().out.splitlines()
    assert (url, first, second) == ("http://127.0.0.1:8123/v1", "  tiny/slime", "  base")
    assert shlex.split(chat) == ["slime-ray", "chat", "tiny/slime", "--url", url]
    words = shlex.split(curl)
    assert words[:2] == ["curl", f"{url}/chat/completions"]
    assert json.loads(words[-1])["model"] == "tiny/slime"
    _show(Endpoint(url, ("base",)), keyed=True)
    assert '-H "Authorization: Bearer $SLIME_RAY_API_KEY"' in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("path", RECIPES, ids=[path.parent.name for path in RECIPES])
def test_every_serving_recipe_of_the_repository_is_one(path: Path) -> None:
    recipe = load_serving(path)
    assert recipe.name == f"{path.parent.name}/serve"
    trained = {f"run:{path.parent.name}/{each.stem}" for each in path.parent.glob("*.toml")}
    sources = {model.source for model in recipe.models.values() if model.source.startswith("run:")}
    assert sources <= trained
    assert sources
