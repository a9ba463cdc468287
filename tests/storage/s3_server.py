"""An S3-compatible server in this process (moto's), which can be told to fail, and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

Answer = Callable[[dict[str, Any]], int | None]

KEY, SECRET = "test-key-id", "test-secret-that-nobody-may-see"
_XML = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
_CODES = {
    400: "InvalidRequest",
    403: "AccessDenied",
    404: "NoSuchUpload",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    500: "InternalError",
    503: "ServiceUnavailable",
}


class _Quiet(MotoRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Nothing is said of requests."""


class S3Server:
    """Real HTTP before moto; one request at a time is carried out, as S3's conditional writes need it."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: Counter[str] = Counter()
        self._answers: list[Answer] = []
        self._forget: list[Answer] = []
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """End it, with all that it holds."""
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def answering(self, answer: Answer) -> Iterator[None]:
        """Inside, requests for which this gives a status are not carried out and get it."""
        self._answers.append(answer)
        yield
        self._answers.remove(answer)

    @contextmanager
    def forgetting(self, answer: Answer) -> Iterator[None]:
        """Inside, requests for which this gives a status are carried out and get it all the same."""
        self._forget.append(answer)
        yield
        self._forget.remove(answer)

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.requests[environ["REQUEST_METHOD"]] += 1
        status = _first(self._answers, environ)
        if status is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        else:
            with self._lock:
                status = _first(self._forget, environ)
                if status is None:
                    return list(self._app(environ, start))
                list(self._app(environ, lambda *_: None))
        body = _XML.format(code=_CODES[status]).encode()
        start(f"{status} no", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _first(answers: list[Answer], environ: dict[str, Any]) -> int | None:
    return next((status for answer in list(answers) if (status := answer(environ)) is not None), None)


def environment(url: str) -> dict[str, str]:
    """What a process needs to find a server, as on a cluster."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def make_bucket(url: str, name: str) -> None:
    """Make a bucket, as whoever runs a cluster does."""
    import botocore.session

    values = environment(url)
    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=url,
        region_name=values["AWS_DEFAULT_REGION"],
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )
    client.create_bucket(Bucket=name)
    client.close()


class Wire:
    """A port that passes everything on to another one, until it is cut: then nobody answers there."""

    def __init__(self, port: int) -> None:
        self._far = port
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._guard:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Pass everything on again."""
        self._listener = self._listen(self.port)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._far))
            except OSError:
                return
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with self._guard:
            self._open.add(source)
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                target.sendall(data)
        with self._guard:
            self._open.discard(source)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def forget_contacts() -> None:
    """Have this process meet every bucket for the first time again, under the environment as it is now."""
    from slime_ray import s3, storage

    storage._reached.clear()
    s3.S3Files.clear_instance_cache()
