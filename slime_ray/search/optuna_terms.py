"""A search space in Optuna's terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from slime_ray.search.space import Parameter, Space


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Optuna does not say a line for every study that is made."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """What each setting may be; a choice by its place, since Optuna takes no lists."""
    return {each.key: _distribution(each) for each in space.parameters}


def params_of(point: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """A point of the space."""
    return {
        each.key: point[each.key] if each.choices is None else each.choices.index(point[each.key])
        for each in space.parameters
    }


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.choices is not None:
        return CategoricalDistribution(range(len(parameter.choices)))
    if parameter.integer:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
