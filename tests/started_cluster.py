"""A Ray cluster as people start it: `ray start` for a head and workers, each a process of its own, with a token."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from slime_ray.serving.port import free_port
from tests.command_line import COMMAND

# An environment of another cluster, or one that says where this one's jobs write, would be inherited.
_NOT_INHERITED = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "OMP_NUM_THREADS")
_BIN = Path(sys.executable).parent


@dataclass
class Node:
    """One `ray start --block` and all that it started."""

    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End the node as a machine ends that loses its power."""
        parent = psutil.Process(self.process.pid)
        processes = [parent, *parent.children(recursive=True)]
        for process in processes:  # nobody may start another one meanwhile
            process.suspend() if process.is_running() else None
        for process in processes:
            if process.is_running():
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=10)
        self.process.wait()


@dataclass
class StartedCluster:
    """A head and workers on this machine; a context.

    Attributes:
        environment: that clients need to be let in.
        apart: a folder that is another disk on each node than here; None where mounting is not allowed.
    """

    environment: dict[str, str] = field(default_factory=dict)
    apart: Path | None = None
    head: Node | None = None
    workers: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Ray's sockets lie below its folder, and their paths have to be short.
        self._folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        self.token = self._folder / "token"
        self.token.write_text(os.urandom(32).hex())
        self.token.chmod(0o600)
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        self.environment = inherited | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{_BIN}{os.pathsep}{inherited.get('PATH', '')}",
        }
        self.apart = Path(tempfile.mkdtemp(prefix="a", dir=self._folder)) if _may_mount() else None
        self._port = free_port("127.0.0.1", 0)
        self._dashboard = free_port("127.0.0.1", 0)
        self._client = free_port("127.0.0.1", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in [*self.workers, *([self.head] if self.head else [])]:
            if node.process.poll() is None:
                node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """Of the dashboard."""
        return f"http://127.0.0.1:{self._dashboard}"

    @property
    def gcs(self) -> str:
        """What other nodes and drivers connect to."""
        return f"127.0.0.1:{self._port}"

    def start_head(self, *, cpus: int = 1, environment: dict[str, str] | None = None) -> Node:
        """Start the head, and return once its dashboard answers."""
        self.head = self._start(
            *("--head", f"--port={self._port}", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-port={self._dashboard}", f"--ray-client-server-port={self._client}"),
            cpus=cpus,
            environment=environment,
        )
        until = time.monotonic() + 60
        while not self._answers() or not self._living_nodes():
            assert time.monotonic() < until, self._told()
            assert self.head.process.poll() is None, self._told()
            time.sleep(0.2)
        return self.head

    def start_workers(self, count: int, *, cpus: int = 1) -> list[Node]:
        """Start more nodes, and return once they have joined."""
        before = self._living_nodes()
        added = [self._start(f"--address={self.gcs}", cpus=cpus) for _ in range(count)]
        self.workers += added
        until = time.monotonic() + 60
        while self._living_nodes() < before + count:
            assert time.monotonic() < until, self._told()
            time.sleep(0.5)
        return added

    def state(self, what: str) -> list[dict[str, Any]]:
        """What Ray's state API lists: nodes, actors, placement_groups."""
        request = urllib.request.Request(f"{self.address}/api/v0/{what}?limit=10000&detail=False&timeout=30")
        request.add_header("Authorization", f"Bearer {self.token.read_text()}")
        answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
        return answer["data"]["result"]["result"]

    def _living_nodes(self) -> int:
        return sum(node["state"] == "ALIVE" for node in self.state("nodes"))

    def command(self, *arguments: object) -> list[str]:
        """What runs `slime-ray` in a process of its own."""
        return [sys.executable, "-c", COMMAND, *map(str, arguments)]

    def run(
        self,
        *arguments: object,
        folder: Path | None = None,
        environment: dict[str, str] | None = None,
        timeout_s: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run `slime-ray` as a client of this cluster, to its end."""
        variables = {**self.environment, "RAY_API_SERVER_ADDRESS": self.address, **(environment or {})}
        return subprocess.run(
            self.command(*arguments),
            env=variables,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def disk_bytes(self) -> int:
        """What lies in the folders of its nodes."""
        return sum(path.lstat().st_size for path in self._folder.rglob("*") if path.is_file() and not path.is_symlink())

    def _start(self, *options: str, cpus: int, environment: dict[str, str] | None = None) -> Node:
        # Ports that are free: other clusters may run on this machine.
        ports = ("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0")
        fixed = ("--block", f"--num-cpus={cpus}", "--object-store-memory=100000000", "--disable-usage-stats")
        # As nodes have disks of their own. In one folder each would unpack a job's code again, under those that run it.
        temporary = tempfile.mkdtemp(prefix="n", dir=self._folder)
        fixed = (*fixed, f"--temp-dir={temporary}")
        mounted = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(self.apart))
        command: Sequence[str] = (str(_BIN / "ray"), "start", *options, *fixed, *ports)
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                (*mounted, *command) if self.apart is not None else command,
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return Node(process)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/api/version", timeout=2).read()
        except urllib.error.HTTPError as error:
            return error.code in (401, 403)
        except OSError:
            return False
        return True

    def _told(self) -> str:
        return (self._folder / "log").read_text()[-3000:]


def _may_mount() -> bool:
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return tried.returncode == 0
