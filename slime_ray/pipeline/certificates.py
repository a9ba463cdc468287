"""Certificates in a pipeline: which served runs have none yet, and making one while the run's model is up."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from slime_ray.config.serving import ServingRecipe
from slime_ray.errors import ServingError
from slime_ray.runs import find_run
from slime_ray.serving.certificate import Dtype, certificate_lines, certify, read_certificate
from slime_ray.storage import json_hash, place


def missing(recipe: ServingRecipe) -> set[str]:
    """The names of served runs that have no certificate for their weights.

    Raises:
        RunError: there is no such run, or its certificate was changed.
    """
    runs_dir, found = place(recipe.runs_dir), set[str]()
    for name, config in recipe.models.items():
        if config.source.startswith("run:"):
            manifest = find_run(runs_dir, config.source.removeprefix("run:"))
            if read_certificate(runs_dir / manifest.name, files_hash=json_hash(manifest.files)) is None:
                found.add(name)
    return found


def make(
    recipe: ServingRecipe,
    name: str,
    *,
    dtype: str,
    base_url: str,
    api_key_env: str | None,
    pairs: int,
    say: Callable[[str], None],
) -> None:
    """Certify one served run.

    Args:
        recipe: the endpoint's.
        name: the model's.
        dtype: that its engine computes in.
        base_url: of the endpoint, which is up.
        api_key_env: the variable with a key for it.
        pairs: held-out rows to compare.
        say: is told the outcome.

    Raises:
        ServingError: the run failed, and `force` is off.
        SlimeRayError: as `certify`.
    """
    certificate = certify(
        recipe.models[name].source,
        runs_dir=place(recipe.runs_dir),
        base_url=base_url,
        model=name,
        pairs=pairs,
        dtype=cast(Dtype, dtype),
        api_key_env=api_key_env,
    )
    say(f"certify: {certificate_lines(certificate)[0]}")
    if not certificate.passed and not recipe.force:
        raise ServingError(
            f"models.{name}: {certificate.run} failed its certificate: {'; '.join(certificate.reasons)}; what it "
            "answers would not be the trained model's, serve.force=true asks it all the same"
        )
