"""A pipeline's recipe: the recipes of its stages, in order."""

from __future__ import annotations

from pydantic import Field

from slime_ray.config.section import Section


class PipelineRecipe(Section):
    """The stages' own recipes; paths are relative to the pipeline's file."""

    name: str = Field(default="", description="default: the path below jobs/recipes/, else the file's stem")
    train: tuple[str, ...] = Field(min_length=1, description="recipes of training, each after those it starts from")
    serve: str = Field(description="the recipe of the endpoint that answers")
    evaluate: str = Field(description="the recipe of the evaluation; its models have the served names")
    certify_pairs: int = Field(
        default=16, ge=0, description="held-out pairs a certificate is made from; 0: none is made"
    )
