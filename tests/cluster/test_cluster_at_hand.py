"""The Ray cluster at hand: what another command noted of one that is gone is not waited for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

CONNECT = """
from slime_ray.training.cluster import at_hand
with at_hand():
    import ray
    print("CPUs", ray.cluster_resources()["CPU"])
"""


def test_a_cluster_that_was_killed_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody listens there once it is closed
    # Ray's sockets lie below its folder, and their paths have to be short.
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        noted = Path(folder) / "ray" / "ray_current_cluster"
        noted.parent.mkdir()
        noted.write_text(f"127.0.0.1:{port}")
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        command = [sys.executable, "-c", CONNECT]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("CPUs ")
