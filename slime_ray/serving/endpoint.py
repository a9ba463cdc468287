"""An endpoint on Ray Serve: brought up until every model has answered, replaced without a gap, drained, taken down."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray._private import worker
from ray.llm._internal.serve.utils.broadcast import broadcast
from ray.serve._private.client import ServeControllerClient
from ray.serve.context import _get_global_client
from ray.serve.generated.serve_pb2 import ApplicationArgs, DeploymentArgs  # pyright: ignore[reportAttributeAccessIssue]
from ray.serve.schema import ApplicationStatus

from slime_ray.config.serving import ServingRecipe
from slime_ray.errors import ServingError
from slime_ray.serving.app import NAME, build
from slime_ray.serving.gateway import doorway
from slime_ray.serving.gateway.keys import Keys, check_host
from slime_ray.serving.port import free_port
from slime_ray.serving.served import Served
from slime_ray.serving.sources import resolve
from slime_ray.training.cluster import at_hand, joined
from slime_ray.training.signals import on_signal

_DRAIN_LOOK_S = 0.2
# Ray Serve's proxy finds by this what stands before it.
_DOORWAY = ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", f"{doorway.__name__}.middlewares")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where it answers.

    Attributes:
        base_url: such as http://127.0.0.1:8000/v1.
        models: the names that it serves.
    """

    base_url: str
    models: tuple[str, ...]


@contextmanager
def endpoint(recipe: ServingRecipe, *, say: Callable[[str], None]) -> Iterator[Endpoint]:
    """Inside, the recipe's models answer; afterwards, also after an error, answers are ended and all is taken down.

    Ray is started where none is at hand, and then stopped as well.

    Raises:
        ServingError: a model is refused, has no room or does not start; the port is taken; the host needs keys.
        RunError, ModelError: a source is not there.
    """
    check_host(recipe.host, Keys.load(recipe.keys))
    models = resolve(recipe, say=say)
    serving = ray.is_initialized() and _get_global_client(raise_if_no_controller_running=False) is not None
    port = recipe.port if serving else free_port(recipe.host, recipe.port)  # where Serve runs already, it listens
    with ExitStack() as stack:
        os.environ.setdefault(*_DOORWAY)
        with _hidden(recipe.keys.env):  # all that Ray starts inherits the environment
            stack.enter_context(at_hand())
        running = _deploy(recipe, models, port=port, say=say)
        try:
            yield running
        finally:
            _take_down(recipe.drain_seconds)


@contextmanager
def _hidden(variable: str) -> Iterator[None]:
    held = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if held is not None:
            os.environ[variable] = held


def serve_until_stopped(
    recipe: ServingRecipe, *, say: Callable[[str], None], ready: Callable[[Endpoint], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running answers finish; raises as `endpoint`."""
    up, stopped = threading.Event(), threading.Event()

    def stop() -> None:
        if not up.is_set():
            raise KeyboardInterrupt  # nothing answers yet
        say(f"stopping: running answers have {recipe.drain_seconds:g} s to finish; once more ends them at once")
        stopped.set()

    with on_signal(stop), endpoint(recipe, say=say) as running, on_signal(stop):  # Ray takes SIGTERM for itself
        up.set()
        ready(running)
        while not stopped.wait(0.2):
            pass


def deploy(recipe: ServingRecipe, *, address: str, say: Callable[[str], None]) -> Endpoint:
    """Deploy onto a Ray cluster that goes on running, in place of what was deployed there before.

    A model whose checkpoint or settings changed is replaced once its new engine has answered; one that did not change
    is left alone, and one whose new engine does not start goes on with the old.

    Raises:
        ClusterError: no cluster answers at `address`.
        ServingError, RunError, ModelError: as `endpoint`; what ran before still runs.
    """
    models = resolve(recipe, say=say)
    with joined(address):
        return _deploy(recipe, models, port=recipe.port or free_port(recipe.host, recipe.port), say=say)


def _deploy(recipe: ServingRecipe, models: Sequence[Served], *, port: int, say: Callable[[str], None]) -> Endpoint:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    for library in ("httpx", "httpx2"):  # importing Ray's ingress has the root logger show every request made here
        logging.getLogger(library).setLevel(logging.WARNING)
    # On Serve that runs already this changes nothing: it stays where it listens.
    serve.start(proxy_location="HeadOnly", http_options={"host": recipe.host, "port": port})
    client = _get_global_client()
    assert client is not None
    listening = client.http_config
    check_host(str(listening.host), Keys.load(recipe.keys))
    application = build(recipe, models)
    names = tuple(card.name for served in models for card in served.cards)
    say(f"starting {', '.join(names)}")
    with _or_as_before(client):
        try:
            serve.run(application, name=NAME)
        except RuntimeError:
            raise ServingError(_why_not()) from None
    host = "127.0.0.1" if listening.host in ("0.0.0.0", "::", "localhost") else listening.host
    return Endpoint(f"http://{host}:{listening.port}/v1", names)


@contextmanager
def _or_as_before(client: ServeControllerClient) -> Iterator[None]:
    """What fails inside, or is interrupted, leaves deployed what was before.

    By itself Serve lets that run on, but starts none of it anew should it be lost.
    """
    before = _deployed(client)
    try:
        yield
    except (ServingError, KeyboardInterrupt):
        if not before:
            _end()
            raise
        plain = ApplicationArgs().SerializeToString()
        ray.get(client._controller.deploy_applications.remote({NAME: before}, {NAME: plain}))
        with suppress(RuntimeError):  # it may have been a failed one too
            client._wait_for_application_running(NAME)
        raise


def _deployed(client: ServeControllerClient) -> list[bytes]:
    """What is deployed under our name, in the form in which Serve's controller takes it."""
    found: Any = ray.get(client._controller.list_deployments_internal.remote())
    return [
        DeploymentArgs(
            deployment_name=place.name,
            deployment_config=info.deployment_config.to_proto_bytes(),
            replica_config=info.replica_config.to_proto_bytes(),
            deployer_job_id=info.deployer_job_id,
            ingress=info.ingress,
            route_prefix=info.route_prefix,
        ).SerializeToString()
        for place, (info, _) in found.items()
        if place.app_name == NAME
    ]


def _take_down(drain_seconds: float) -> None:
    """End the endpoint: new requests are turned away with 503, running answers have their time to finish."""
    if serve.status().applications[NAME].status == ApplicationStatus.RUNNING:
        ingress, end = serve.get_app_handle(NAME), time.monotonic() + drain_seconds
        while sum(broadcast(ingress, "drain")) and time.monotonic() < end:
            time.sleep(_DRAIN_LOOK_S)
    _end()


def _end() -> None:
    serve.delete(NAME)
    if not _own_cluster():  # one of our own ends with this process, or serves again
        serve.shutdown()


def _own_cluster() -> bool:
    node = worker._global_node
    return node is not None and node.is_head()


def _why_not() -> str:
    """Why the last deployment failed, in one sentence."""
    application = serve.status().applications[NAME]
    for name, deployment in application.deployments.items():
        if deployment.status.value != "HEALTHY" and deployment.message:
            model = name.removeprefix("Engine:").replace("--", "/")
            return (
                f"models.{model}: its engine does not start: {_reason(deployment.message)}. The engine's own words are "
                f"in Ray's logs, in serve/ of {_log_folder()}"
            )
    return f"the endpoint does not start: {application.message}"


def _reason(message: str) -> str:
    """What a traceback ends with: its last error, with the line below it where pydantic gives the reason there."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    place = next((at for at in range(len(lines) - 1, -1, -1) if "Error" in lines[at]), len(lines) - 1)
    reason = lines[place]
    if "validation error" in reason and place + 1 < len(lines):
        reason = lines[place + 1].partition(" [type=")[0]
    return reason.rstrip(".")


def _log_folder() -> str:
    return f"{worker._global_node.get_session_dir_path()}/logs" if worker._global_node else "Ray's session"
