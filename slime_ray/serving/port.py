"""The port of an endpoint that is to come: a free one, seen before anything is started."""

from __future__ import annotations

import socket

from slime_ray.errors import ServingError


def free_port(host: str, port: int) -> int:
    """The port asked for, or, for 0, one that is free now.

    Raises:
        ServingError: nothing can listen there.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(
                f"host = {host!r}, port = {port}: cannot listen there ({error.strerror}); "
                "stop what does, or set port = 0 for any that is free"
            ) from None
        return int(probe.getsockname()[1])
