"""Ray nodes of this machine, started and stopped by the commands that compose has for them."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.deploy.manifests import ROOT

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
_START_S = 90.0


@dataclass
class Cluster:
    """A head and workers.

    Attributes:
        binaries: the folder with `ray`.
        port, dashboard: where the head listens.
        environment: what its processes have, and whoever asks it.
        folder: Ray's own files.
        head: the process of its command, which stays as long as its node.
        agents: the port of each node's agent.
    """

    binaries: Path
    port: int
    dashboard: int
    environment: dict[str, str]
    folder: Path
    stack: ExitStack
    head: subprocess.Popen[bytes] = field(init=False)
    agents: list[int] = field(default_factory=list)

    def node(self, service: str) -> subprocess.Popen[bytes]:
        """Start one node by its service's command and wait until it is healthy."""
        words = shlex.split(SERVICES[service]["command"])
        assert words[:2] == ["ray", "start"]
        agent = free_port()
        # A machine that other nodes are on too: ports of its own.
        own = [f"--dashboard-agent-listen-port={agent}"]
        if "--head" in words:
            own += [f"--dashboard-port={self.dashboard}", f"--temp-dir={self.folder}"]
            own += [f"--ray-client-server-port={free_port()}", "--object-store-memory=100000000"]
        else:
            own += ["--object-store-memory=100000000"]
        words = [
            word.replace("--port=6379", f"--port={self.port}").replace("head:6379", f"127.0.0.1:{self.port}")
            for word in words
        ]
        log = (self.folder / f"start-{len(self.agents)}.log").open("wb")
        process = subprocess.Popen(
            [*words, *own], env=self.environment, cwd=self.environment["PWD"], stdout=log, stderr=log
        )
        self.stack.callback(_end, process)
        self.stack.callback(log.close)
        self.agents.append(agent)
        end = time.monotonic() + _START_S
        while not (listens(self.dashboard) and self.check(service, agent).returncode == 0):
            said = Path(log.name).read_text(errors="replace")
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.5)
        return process

    def check(self, service: str, agent: int) -> subprocess.CompletedProcess[str]:
        """Run a service's health check."""
        return self.run(SERVICES[service]["healthcheck"]["test"].replace(":52365/", f":{agent}/"))

    def run(self, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command line as in a container of the cluster."""
        return subprocess.run(
            ["bash", "-c", line],
            env=self.environment | variables,
            cwd=self.environment["PWD"],
            capture_output=True,
            text=True,
            timeout=150,
        )


@contextmanager
def cluster(binaries: Path, *, cwd: Path, workers: int, variables: Mapping[str, str]) -> Iterator[Cluster]:
    """A head and workers by the commands of docker/compose.yaml, on ports of their own; stopped by their process ids.

    Args:
        binaries: the folder of the environment's commands.
        cwd: where the nodes are started.
        workers: how many.
        variables: that their processes have besides.
    """
    # The sockets' paths have to be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    token = folder / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PWD": str(cwd),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # As KubeRay sets it; in a container of compose Ray finds the only cluster there is.
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        **variables,
    }
    try:
        with ExitStack() as stack:
            stack.callback(_end_what_is_left, folder)
            made = Cluster(binaries, port, free_port(), environment, folder, stack)
            made.head = made.node("head")
            for _ in range(workers):
                made.node("worker")
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def listens(port: int) -> bool:
    """Whether something on this machine listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_what_is_left(folder: Path) -> None:
    """End the processes whose command names the cluster's own folder."""
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or []) and process.pid != os.getpid():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
