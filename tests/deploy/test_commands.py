"""What compose, the images and the manifests run, run: by this environment, and in a slow test by a new one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slime_ray.serving.gateway.keys import add_key
from slime_ray.serving.sources import recipe_of
from tests.command_line import Run
from tests.deploy.commands import JOBS, Place, job, laid_out
from tests.deploy.dockerfile import STAGES, VARIABLES, ignored
from tests.deploy.manifests import ROOT, built
from tests.deploy.nodes import SERVICES, Cluster, cluster

BINARIES = Path(sys.executable).parent
# Nodes that are there to stay, asked without a driver, which would be something that runs.
_GOING = """
import os
from ray._private.state import state
from ray._raylet import GcsClientOptions
state._initialize_global_state(GcsClientOptions.create(os.environ["RAY_ADDRESS"], None, True, True))
draining = state.get_draining_nodes()
print([node["NodeID"] for node in state.node_table() if node["Alive"] and node["NodeID"] not in draining])
"""
# An elastic group takes a minute longer to end.
TINY = "data.limit=32 data.eval=[] training.max_steps=2 training.num_workers=2"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(BINARIES, cwd=tmp_path_factory.mktemp("data"), workers=1, variables={}) as made:
        yield made


@pytest.mark.parametrize("name", JOBS)
def test_a_job_reads_its_recipe(name: str, tmp_path: Path) -> None:
    place = laid_out("cpu", tmp_path)
    found = _in_shell(f"{job('cpu', name, place).line} {_wrong(name)}", place, BINARIES)
    assert (found.returncode, found.stdout) == (2, ""), found.stderr
    assert re.fullmatch(r"error: \S*\.toml: \S+ is not a setting; .*\n", found.stderr)


def _wrong(name: str) -> str:
    return {"pipeline": "evaluate.nonsense=1"}.get(name, "nonsense=1")


def _in_shell(line: str, place: Place, binaries: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | place.values | {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(place.app)}
    return subprocess.run(
        ["sh", "-c", line], env=environment, cwd=place.data, capture_output=True, text=True, timeout=150
    )


def test_the_endpoint_s_commands_are_accepted(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    add_key(tmp_path / "keys.json", "alice")
    (tmp_path / "serve.toml").write_text('[models.slime]\nsource = "run:quickstart/slime"\n')
    for words in (shlex.split(SERVICES["endpoint"]["command"]), STAGES["serve"].command("CMD")):
        assert words[:2] == ["slime-ray", "serve"]
        assert "host=0.0.0.0" in words
        found = run(*(word.replace("/run/secrets/api_keys", str(tmp_path / "keys.json")) for word in words[1:]))
        assert found.code == 2
        # As far as a run that nobody has trained here.
        assert re.search(r"error: .*run:quickstart/slime.*: no finished run of this name", found.err), found.err
        # A source that need not be there shows that the settings are some.
        settings = recipe_of(["any"], [word for word in words if "=" in word])
        assert (settings.host, settings.port, settings.keys.file) == ("0.0.0.0", 8000, "/run/secrets/api_keys")
    assert SERVICES["endpoint"]["ports"] == ["127.0.0.1:8000:8000"]


def test_health_checks_tell_a_node_from_none(head: Cluster) -> None:
    image = shlex.join(STAGES["train"].command("HEALTHCHECK"))
    assert image == SERVICES["head"]["healthcheck"]["test"]
    assert head.run(image).returncode == 0  # the others were run when the nodes were started
    assert head.run(f"timeout 5 {image}", RAY_ADDRESS="127.0.0.1:9").returncode != 0
    assert head.check("worker", 9).returncode != 0


def test_an_endpoint_s_health_check_is_asked_of_our_own_route() -> None:
    image = shlex.join(STAGES["serve"].command("HEALTHCHECK"))
    assert image == SERVICES["endpoint"]["healthcheck"]["test"]
    assert image.endswith(" http://127.0.0.1:8000/health")


def test_an_image_s_head_is_compose_s(head: Cluster) -> None:
    words = STAGES["train"].command("CMD")
    assert set(words) <= set(shlex.split(SERVICES["head"]["command"]))


def test_without_the_token_nobody_is_let_in(head: Cluster) -> None:
    assert _asked(head, "/api/version")["ray_version"]
    for token in (None, "wrong" * 8):
        with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
            _asked(head, "/api/jobs/", token=token)
    wrong = head.folder / "wrong"
    wrong.write_text("wrong" * 8)
    assert head.run("ray health-check", RAY_AUTH_TOKEN_PATH=str(wrong)).returncode != 0
    nothing = head.run("ray start --head --port=0", RAY_AUTH_TOKEN_PATH="", HOME=str(head.folder))
    assert nothing.returncode != 0
    assert "token" in nothing.stdout + nothing.stderr


def _asked(made: Cluster, path: str, *, body: Any = None, token: str | None = "own") -> Any:
    """What the head's dashboard answers, as KubeRay's operator asks it."""
    own = Path(made.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    headers = {} if token is None else {"Authorization": f"Bearer {own if token == 'own' else token}"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{made.dashboard}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers=headers | {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_a_node_that_gets_a_sigterm_says_that_it_goes_and_waits_for_what_runs(tmp_path: Path) -> None:
    limit = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": VARIABLES["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]}
    with cluster(BINARIES, cwd=tmp_path, workers=0, variables=limit) as ending:
        _asked(ending, "/api/jobs/", body={"entrypoint": "touch begun; sleep 20; touch ended"})
        _until((tmp_path / "begun").exists)
        ending.head.send_signal(signal.SIGTERM)
        _until(lambda: ending.run(f"python -c '{_GOING}'").stdout == "[]\n")
        assert ending.head.poll() is None
        ending.head.wait(60)
        assert (tmp_path / "ended").exists()


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of commands of an environment made by the lines of docker/Dockerfile that need no root."""
    root = tmp_path_factory.mktemp("image")
    for stage in ("wheel", "node"):
        _build(stage, root, device="cpu")
    yield root / "node" / "venv" / "bin"
    shutil.rmtree(root)  # gigabytes


def _build(name: str, root: Path, *, device: str) -> None:
    stage, place = STAGES[name], root / name
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True, timeout=120)
    variables = {"DEVICE": device}
    cwd = place
    for word, text in stage.steps:
        text = text.replace("${DEVICE}", device)
        match word:
            case "ARG":
                argument, _, default = text.partition("=")
                if default:
                    variables.setdefault(argument, default)
            case "WORKDIR":
                cwd = place / text.removeprefix("/")
                cwd.mkdir(parents=True)
            case "COPY":
                _copy(text, cwd, root)
            case "RUN" if text.partition(" ")[0] in ("pip", "grep"):
                # What is imported is compiled then; all of it takes longer than the rest.
                path = f"{place / 'venv' / 'bin'}:{os.environ['PATH']}"
                environment = os.environ | variables | {"PATH": path, "PIP_NO_COMPILE": "1"}
                subprocess.run(["sh", "-euc", text], cwd=cwd, env=environment, check=True, timeout=500)
            case "RUN":
                assert text.partition(" ")[0] in ("apt-get", "useradd", "mkdir"), text


def _copy(text: str, cwd: Path, root: Path) -> None:
    *sources, target = text.split()
    base = ROOT
    if sources[0].startswith("--from="):
        base = root / sources.pop(0).removeprefix("--from=")
    for source in sources:
        path = base / source.removeprefix("/")
        if path.is_dir():
            shutil.copytree(path, cwd / target, ignore=lambda folder, names: _kept_out(str(folder), names, base))
        else:
            (cwd / target).mkdir(exist_ok=True, parents=True)
            shutil.copy(path, cwd / target)


def _kept_out(folder: str, names: list[str], base: Path) -> set[str]:
    if base != ROOT:
        return set()
    return {name for name in names if ignored(str((Path(folder) / name).relative_to(ROOT)))}


@pytest.mark.image
@pytest.mark.timeout(900)
def test_in_an_image_s_environment_a_job_is_submitted_and_trains(image: Path, tmp_path: Path) -> None:
    place = laid_out("cpu", tmp_path)
    (quickstart,) = (m for m in built("cpu") if m["kind"] == "Job")
    (container,) = quickstart["spec"]["template"]["spec"]["containers"]
    made = _in_shell(shlex.join(container["command"]), place, image)
    assert made.returncode == 0, made.stderr
    where = _in_shell("python -c 'import slime_ray; print(slime_ray.__file__)'", place, image).stdout
    assert where.startswith(str(image.parent)), where
    variables = place.values | {"PYTHONPATH": str(place.app)}
    with cluster(image, cwd=place.data, workers=2, variables=variables) as nodes:
        # The shell of the job has the variables of the pod, and the folder that Ray was started in.
        entrypoint = f"{job('cpu', 'train', place).line} {TINY}"
        submitted = _asked(nodes, "/api/jobs/", body={"entrypoint": entrypoint})["submission_id"]
        end = time.monotonic() + 150
        while (state := _asked(nodes, f"/api/jobs/{submitted}")["status"]) not in ("SUCCEEDED", "FAILED", "STOPPED"):
            assert time.monotonic() < end, state
            time.sleep(1)
        logs = _asked(nodes, f"/api/jobs/{submitted}/logs")["logs"]
    assert state == "SUCCEEDED", logs
    (run,) = (place.data / "runs" / "quickstart").glob("sft-*")
    assert (run / "manifest.json").is_file()
    assert "workers: 2" in (run / "events.jsonl").read_text()
