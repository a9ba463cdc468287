"""What Ray Serve runs: `serve run serve.chat:build config=RECIPE.toml`, or `serve deploy serve/chat.yaml`."""

from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from slime_ray.overrides import load_serving
from slime_ray.serving import app
from slime_ray.serving.sources import resolve


class Arguments(BaseModel):
    """What the command or the YAML file gives."""

    model_config = ConfigDict(extra="forbid")

    config: str
    overrides: list[str] = []


# Ray reads the annotation itself: with `from __future__ import annotations` it would be a text, and nothing checked.
def build(arguments: Arguments) -> Application:
    """The application of a serving recipe; nodes may join after it was declared, as on KubeRay they do."""
    recipe = load_serving(arguments.config, arguments.overrides)
    return app.build(recipe, resolve(recipe, say=print), wait_for_room=True)
