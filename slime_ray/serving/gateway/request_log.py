"""The request log: one JSON line a request, in a file that several processes share or on standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from slime_ray.config.serving import RequestLogConfig
from slime_ray.serving.gateway.record import Record
from slime_ray.storage import place

LOG = logging.getLogger("slime_ray.serving")


class RequestLog:
    """Appends lines, each by one write, so that those of several processes do not mix.

    A file that was moved or removed is made anew at the next line, as logrotate expects. A log that cannot be written
    fails no request.
    """

    def __init__(self, config: RequestLogConfig) -> None:
        """Opens nothing yet: it may still be on its way to another process."""
        self.path = None if config.file is None else place(config.file)
        self.text = config.text
        self._descriptor: int | None = None
        self._torn = False
        self._reported = False

    def write(self, record: Record) -> bool:
        """Write a request that is over; False where that failed, which is reported the first time."""
        line = (json.dumps(self._fields(record)) + "\n").encode()
        try:
            if self.path is None:
                sys.stdout.write(line.decode())
                sys.stdout.flush()
            else:
                self._append(line)
        except (OSError, ValueError) as error:  # ValueError: standard output is closed
            if not self._reported:
                LOG.error("the request log cannot be written: %s; requests are served without it", error)
            self._reported = True
            return False
        self._reported = False
        return True

    def _fields(self, record: Record) -> dict[str, Any]:
        speed = record.tokens_per_s
        fields = {
            "time": datetime.fromtimestamp(record.started, UTC).isoformat(timespec="milliseconds"),
            "request_id": record.request_id,
            "key": record.key,
            "method": record.method,
            "route": record.route,
            "model": record.model and record.model[:256],
            "stream": record.stream,
            "status": record.status,
            "outcome": record.outcome,
            "code": record.code,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "first_token_s": None if record.first_token_s is None else round(record.first_token_s, 6),
            "seconds": round(record.seconds, 6),
            "tokens_per_s": None if speed is None else round(speed, 3),
        }
        return {**fields, "prompt": record.prompt, "answer": record.answer} if self.text else fields

    def _append(self, line: bytes) -> None:
        descriptor = self._open()
        # A line that a full disk cut short is not continued by the next one.
        line = b"\n" * self._torn + line
        self._torn = os.write(descriptor, line) < len(line)
        if self._torn:
            raise OSError("the disk took a part of a line")

    def _open(self) -> int:
        assert self.path is not None
        if self._descriptor is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                    return self._descriptor
            os.close(self._descriptor)
            self._descriptor, self._torn = None, False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Not for others: it names who asked for what, and may hold prompts.
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return self._descriptor
