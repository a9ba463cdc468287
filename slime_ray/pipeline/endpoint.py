"""Where a pipeline's models are asked: the cluster, the room on it, the port."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from slime_ray.config.serving import ServingRecipe
from slime_ray.serving.port import free_port
from slime_ray.serving.served import Served
from slime_ray.training.signals import on_signal

# Ray frees what ended workers and engines held a moment after they ended.
_FREED_S = 10.0
_LOOK_S = 0.5


def names(served: Served) -> list[str]:
    """What can be asked of one engine: its model and the adapters beside it."""
    return [card.name for card in served.cards]


def check(recipe: ServingRecipe) -> None:
    """See before hours of training whether an endpoint can be brought up after it.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
        ServingError: the port is taken.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ModuleNotFoundError("vllm is not installed", name="vllm")
    free_port(recipe.host, recipe.port)


@contextmanager
def cluster() -> Iterator[None]:
    """The Ray cluster at hand, or one that is started here and stopped again; SIGTERM unwinds what is up on it."""
    from slime_ray.training.cluster import at_hand

    with at_hand(), unwinding():  # connecting, Ray takes SIGTERM for itself
        yield


@contextmanager
def unwinding() -> Iterator[None]:
    """Inside, SIGTERM is as Ctrl-C: whatever is up is taken down."""

    def stop() -> None:
        raise KeyboardInterrupt

    with on_signal(stop):
        yield


def placed(models: Sequence[Served], *, say: Callable[[str], None]) -> Sequence[Served]:
    """As many of the first models as the cluster has room for, at least one; `say` is told why not all."""
    from slime_ray.serving.engine import fits

    until = time.monotonic() + _FREED_S
    while (problem := fits(models)) is not None and time.monotonic() < until:
        time.sleep(_LOOK_S)
    if problem is None or len(models) == 1:
        return models
    count = next((count for count in range(len(models) - 1, 1, -1) if fits(models[:count]) is None), 1)
    say(f"serve: {count} of {len(models)} at a time: {problem}")
    return models[:count]
