"""What one worker of a stage does: load, train, and, as the first one, write what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from transformers import set_seed

from slime_ray.data.batching import Lengths, total_steps
from slime_ray.data.token_cache import PreparedData
from slime_ray.model.export import export, pad_id
from slime_ray.model.loading import check_vocabulary, load_model
from slime_ray.model.policy import Policy
from slime_ray.objectives.table import OBJECTIVES
from slime_ray.storage import json_hash
from slime_ray.training.card import model_card
from slime_ray.training.collective import gather, rank, wait_for_all
from slime_ray.training.loop import Training, run_loop
from slime_ray.training.measurement import TokenizedRows, reference_logps
from slime_ray.training.plot import plot_run
from slime_ray.training.reference import ReferenceLogps
from slime_ray.training.stage import REFERENCES, Stage, chat_format

Report = Callable[[dict[str, float]], None]


def run_stage(stage: Stage, prepared: PreparedData, *, device: torch.device, report: Report) -> None:
    """Train a stage to its end; every worker calls this, in a process group if there are several.

    The first worker writes metrics.jsonl, final/ and, last, the manifest.

    Args:
        stage: what to train; its run's folder has been begun.
        prepared: its rows as tokens.
        device: where this worker computes.
        report: is given every line of metrics, on every worker.

    Raises:
        SlimeRayError: the user's mistakes that only show here, and NonFiniteError.
    """
    recipe, run = stage.recipe, stage.run
    # The same on every worker: adapters start from the same numbers everywhere.
    set_seed(recipe.training.seed)
    form = chat_format(stage)
    end_of_turn_id = form.require_end_of_turn()
    model = load_model(stage.source, recipe.model)
    check_vocabulary(model.config, form.tokenizer, stage.source, recipe.model)
    policy = Policy(model, lora=recipe.lora, device=device)
    training = make_training(stage, prepared, policy, padding=pad_id(form.tokenizer, end_of_turn_id))

    def log(metrics: dict[str, float]) -> None:
        if rank() == 0:
            run.log(metrics)
        report(metrics)

    run_loop(training, log)
    if rank() == 0:
        rows = len(training.train)
        card = model_card(
            recipe,
            run=run.name,
            parent=stage.source.parent,
            data_hash=stage.data_hash,
            rows=rows,
            steps=total_steps(rows, recipe.training),
            metrics=run.metrics(),
        )
        export(policy.model, form.tokenizer, run.final, end_of_turn_id=end_of_turn_id, card=card)
        run.finish(data=stage.data_hash, model=stage.model_hash, parent=stage.source.parent)
        plot_run(run, run.folder / "metrics.png")
    wait_for_all()


def make_training(stage: Stage, prepared: PreparedData, policy: Policy, *, padding: int) -> Training:
    """The loop's input: rows, the objective with its settings, and the reference's values if it needs them."""
    recipe = stage.recipe
    objective = OBJECTIVES[recipe.loss.kind]
    train = TokenizedRows(prepared.train, Lengths.of(prepared.train), padding)
    held_out = TokenizedRows(prepared.eval, Lengths.of(prepared.eval), padding) if prepared.eval is not None else None
    # Switched off, an adapter gives the starting policy back, unless biases were trained in place with it.
    adapter_off = objective.needs_reference and recipe.lora is not None and recipe.lora.bias == "none"
    if objective.needs_reference and not adapter_off:
        train = _with_reference(stage, policy, train, rows=f"{prepared.folder.name}/train")
        if held_out is not None:
            held_out = _with_reference(stage, policy, held_out, rows=f"{prepared.folder.name}/eval")
    return Training(
        policy=policy,
        loss=partial(objective.loss, **recipe.loss.model_dump(exclude={"kind"})),
        adapter_off=adapter_off,
        train=train,
        held_out=held_out,
        settings=recipe.training,
    )


def _with_reference(stage: Stage, policy: Policy, data: TokenizedRows, *, rows: str) -> TokenizedRows:
    """The same rows with the starting policy's values, read back if an earlier run stored them."""
    key = json_hash([stage.source.content, stage.model_hash, rows, stage.recipe.model.model_dump(mode="json")])
    path = stage.run.runs_dir / REFERENCES / f"{key}.safetensors"
    # All workers must go the same way, also where one sees the file later than another.
    if all(gather(path.is_file())):
        return replace(data, reference=ReferenceLogps.load(path))
    policy.model.eval()
    reference = reference_logps(policy, data, stage.recipe.training)
    policy.model.train()
    if rank() == 0:
        reference.save(path)
    return replace(data, reference=reference)
