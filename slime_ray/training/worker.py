"""What one worker of a stage does: load, train, and, as the first one, write what came out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from transformers import set_seed

from slime_ray.checkpoints import best_checkpoint, discard_incomplete, room_needed
from slime_ray.config.recipe import Recipe
from slime_ray.copies import new_folder
from slime_ray.data.batching import Lengths, total_steps
from slime_ray.data.chat_format import ChatFormat
from slime_ray.data.token_cache import PreparedData
from slime_ray.errors import RunError, StorageError
from slime_ray.model.export import export, pad_id
from slime_ray.model.loading import check_positions, check_vocabulary, empty_model, load_model
from slime_ray.model.policy import Policy
from slime_ray.objectives.table import OBJECTIVES
from slime_ray.runs import Run, to_lines
from slime_ray.storage import disk_errors, free_bytes, json_hash, size_text, used_bytes, write_text
from slime_ray.training.allocator import keep_freed_memory
from slime_ray.training.card import model_card
from slime_ray.training.checkpoint import restore_weights
from slime_ray.training.collective import gather, rank, wait_for_all, world
from slime_ray.training.keeper import Orders, Report, RunKeeper
from slime_ray.training.loop import Ending, Training, run_loop
from slime_ray.training.measurement import TokenizedRows, reference_logps
from slime_ray.training.memory import fit_data, fitted, is_out_of_memory, room_for_worker
from slime_ray.training.plot import plot_run
from slime_ray.training.pulse import rest
from slime_ray.training.reference import ReferenceLogps
from slime_ray.training.stage import REFERENCES, Stage, chat_format
from slime_ray.training.suspects import Suspects, answer_means, find_suspects


def run_stage(
    stage: Stage, prepared: PreparedData, orders: Orders, *, device: torch.device, sharing: int, report: Report
) -> Ending:
    """Train a stage to its end, from where an earlier attempt left it; every worker calls this, in a process group if
    there are several.

    The first worker writes metrics.jsonl, checkpoints, final/ and, last, the manifest.

    Args:
        stage: what to train; its run's folder has been begun, and its lease is held.
        prepared: its rows as tokens.
        orders: the wishes of the lease's holder.
        device: where this worker computes.
        sharing: workers on this machine, which share its memory.
        report: is given every line of metrics, on every worker.

    Returns:
        Whether the run is finished, or how else it ended.

    Raises:
        SlimeRayError: the user's mistakes that only show here, a disk that is full, and NonFiniteError.
    """
    with disk_errors(stage.run.folder):
        try:
            stage = replace(stage, recipe=_fitted(stage, prepared, device, sharing))
            return _run_stage(stage, prepared, orders, device, report)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"{stage.run.name}: out of memory outside of a step's micro-batches "
                f"({str(error).splitlines()[0][:200]}); lower training.tokens_per_micro_batch or "
                "data.max_length, or give each worker more memory"
            ) from None


def _fitted(stage: Stage, prepared: PreparedData, device: torch.device, sharing: int) -> Recipe:
    """The recipe with the micro-batch and the checkpointing that it leaves open."""
    recipe, settings = stage.recipe, stage.recipe.training
    if settings.tokens_per_micro_batch is not None and settings.gradient_checkpointing is not None:
        return recipe
    make_model = partial(empty_model, stage.source, recipe.model)
    room = room_for_worker(settings, workers=sharing, device=device)
    found = fit_data(recipe, make_model, Lengths.of(prepared.train), workers=world(), room=room)
    return recipe.model_copy(update={"training": fitted(settings, found)})


def _run_stage(stage: Stage, prepared: PreparedData, orders: Orders, device: torch.device, report: Report) -> Ending:
    recipe, run = stage.recipe, stage.run
    if device.type == "cpu":
        keep_freed_memory()
    # The same on every worker: adapters start from the same numbers everywhere.
    set_seed(recipe.training.seed)
    form = chat_format(stage)
    end_of_turn_id = form.require_end_of_turn()
    model = load_model(stage.source, recipe.model)
    check_vocabulary(model.config, form.tokenizer, stage.source, recipe.model)
    check_positions(model.config, longest_sequence(prepared), recipe.model)
    policy = Policy(
        model,
        lora=recipe.lora,
        device=device,
        layout=recipe.training.layout,
        checkpointing=bool(recipe.training.gradient_checkpointing),
        compiled=recipe.training.compile,
    )
    if rank() == 0:
        discard_incomplete(run.checkpoints)
        _check_room(stage, policy)
    training = make_training(stage, prepared, policy, padding=pad_id(form.tokenizer, end_of_turn_id))
    held_out = len(training.held_out) if training.held_out is not None else 0
    keeper = RunKeeper(run, recipe, orders, held_out=held_out, report=report)
    try:
        ending = run_loop(training, keeper)
    finally:
        keeper.close()
    if ending is Ending.STOPPED and rank() == 0:
        rest()
        _export_best(stage, policy, form)
        run.note("stopped", keeper.verdict, step=int(run.metrics()[-1]["step"]))
    if ending is not Ending.FINISHED:
        return ending
    watched = OBJECTIVES[recipe.loss.kind].needs_pairs and recipe.guard.action != "off"
    means = answer_means(policy, training.train, recipe.training) if watched else None
    rest()
    if rank() == 0:
        keeper.settle()
        if means is not None:
            _list_suspects(run, find_suspects(means, training.train, form.tokenizer))
        card = model_card(
            recipe,
            run=run.name,
            parent=stage.source.parent,
            data_hash=stage.data_hash,
            rows=len(training.train),
            steps=total_steps(training.mixture, recipe.training),
            metrics=run.metrics(),
        )
        with new_folder(run.final) as folder:
            export(policy.model, form.tokenizer, folder, end_of_turn_id=end_of_turn_id, card=card)
        plot_run(run, run.folder / "metrics.png")
        keeper.check_hold()
        run.finish(stage.lineage())
    wait_for_all()
    return ending


def longest_sequence(prepared: PreparedData) -> int:
    """Tokens of the longest sequence that is trained on or evaluated."""
    parts = [part for part in (prepared.train, prepared.eval) if part is not None]
    return max(int(Lengths.of(part).longest.max()) for part in parts)


def _export_best(stage: Stage, policy: Policy, form: ChatFormat) -> None:
    """Write the model of the best checkpoint of a run that the guard stopped."""
    checkpoint = best_checkpoint(stage.run, stage.recipe.checkpoint)
    if checkpoint is None or checkpoint.damage() is not None:
        return
    restore_weights(checkpoint, policy.trained())
    card = f"The model of {stage.run.name} after step {checkpoint.step}, its best one when the guard stopped the run.\n"
    with new_folder(stage.run.best) as folder:
        export(policy.model, form.tokenizer, folder, end_of_turn_id=form.require_end_of_turn(), card=card)


def _list_suspects(run: Run, found: Suspects) -> None:
    write_text(run.folder / "suspects.jsonl", to_lines(found.rows()))
    if found.listed:
        run.note("warning", found.summary())


def _check_room(stage: Stage, policy: Policy) -> None:
    """Refuse a run that the disk has no room for, before its first step.

    Raises:
        StorageError: less is free than the run may need.
    """
    if (free := free_bytes(stage.run.folder)) is None:
        return
    parameters = {id(p): p for p in policy.model.parameters()}.values()
    model = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() * p.element_size() for _, p in policy.trained())
    lora = stage.recipe.lora is not None
    _, most = room_needed(model=model, trained=trained, lora=lora, settings=stage.recipe.checkpoint)
    missing = most - used_bytes(stage.run.folder) - free
    if missing > 0:
        raise StorageError(
            f"{stage.run.folder}: the run may need {size_text(most)} (checkpoints and final/), but "
            f"{size_text(free)} are free; free {size_text(missing)} more, lower checkpoint.keep_last, or set "
            "runs_dir to another disk"
        )


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
        floor=recipe.guard.floor,
        train=train,
        held_out=held_out,
        mixture=stage.mixture(prepared),
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
