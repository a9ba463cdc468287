"""What a recipe would do, without training: the run's name, parameters, steps, tokens, and what would be skipped."""

from __future__ import annotations

from dataclasses import dataclass

from slime_ray.checkpoints import room_needed
from slime_ray.config.recipe import Recipe
from slime_ray.data.batching import Lengths, total_steps
from slime_ray.data.token_cache import PartFacts
from slime_ray.model.loading import DTYPES, check_vocabulary, empty_model
from slime_ray.model.lora import add_lora
from slime_ray.training.stage import chat_format, prepare, resolve


@dataclass(frozen=True)
class Plan:
    """A recipe worked out to the last number.

    Attributes:
        run: the run's name.
        state: what became of it so far, "not yet trained" if nothing.
        parameters, trained: numbers of the model's parameters and of those that are trained (adapters included).
        steps: optimizer steps of the whole run.
        tokens_per_step: mean over the steps, prompts counted once for each answer.
        checkpoint_bytes, run_bytes: on disk, of one checkpoint and of the whole run at its largest.
        train, held_out: what became of the rows.
    """

    run: str
    state: str
    parameters: int
    trained: int
    steps: int
    tokens_per_step: float
    checkpoint_bytes: int
    run_bytes: int
    train: PartFacts
    held_out: PartFacts | None


def make_plan(recipe: Recipe) -> Plan:
    """Work a recipe out. Its rows are tokenised (and kept for the training); no weights are loaded.

    Raises:
        SlimeRayError: whatever would stop the training before its first step.
    """
    stage = resolve(recipe)
    prepared = prepare(stage)
    model = empty_model(stage.source, recipe.model)
    check_vocabulary(model.config, chat_format(stage).tokenizer, stage.source, recipe.model)
    parameters = sum(p.numel() for p in model.parameters())
    trained = parameters
    if recipe.lora:
        trained = sum(p.numel() for p in add_lora(model, recipe.lora).parameters() if p.requires_grad)
    width = DTYPES[recipe.model.dtype].itemsize
    checkpoint_bytes, run_bytes = room_needed(
        model=width * parameters, trained=width * trained, lora=recipe.lora is not None, settings=recipe.checkpoint
    )
    rows = len(prepared.train)
    mean_tokens = float(Lengths.of(prepared.train).tokens.mean())
    return Plan(
        run=stage.run.name,
        state=stage.run.state() if stage.run.lineage() is not None else "not yet trained",
        parameters=parameters,
        trained=trained,
        steps=total_steps(rows, recipe.training),
        tokens_per_step=mean_tokens * min(rows, recipe.training.pairs_per_step),
        checkpoint_bytes=checkpoint_bytes,
        run_bytes=run_bytes,
        train=prepared.train_facts,
        held_out=prepared.eval_facts,
    )
