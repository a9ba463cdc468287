"""What a recipe would do, without training: the run's name, parameters, steps, tokens, and what would be skipped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from huggingface_hub.utils import HFValidationError, validate_repo_id

from slime_ray.checkpoints import room_needed
from slime_ray.config.recipe import Recipe
from slime_ray.data.batching import Lengths, total_steps
from slime_ray.data.hub import HubEntry
from slime_ray.data.sources import SUFFIXES, content_hash
from slime_ray.data.token_cache import PartFacts
from slime_ray.errors import DataError, ModelError, RunError, SlimeRayError
from slime_ray.model.loading import DTYPES, check_positions, check_vocabulary, empty_model, load_config
from slime_ray.model.lora import add_lora
from slime_ray.model.source import ModelSource, find_model
from slime_ray.storage import named, place
from slime_ray.training.memory import Fit, fit_data, room_for_worker
from slime_ray.training.stage import Stage, chat_format, prepare, resolve


@dataclass(frozen=True)
class Unknown:
    """What cannot be worked out yet.

    Attributes:
        needs: the models, parent runs and data that are not at hand, as the recipe names them.
    """

    needs: tuple[str, ...]

    def __str__(self) -> str:
        return f"unknown: needs {', '.join(self.needs)}"


@dataclass(frozen=True)
class ModelSizes:
    """What a model's config alone says of its training.

    Attributes:
        parameters, trained: numbers of the model's parameters and of those that are trained (adapters included).
        checkpoint_bytes, run_bytes: on disk, of one checkpoint and of the whole run at its largest.
    """

    parameters: int
    trained: int
    checkpoint_bytes: int
    run_bytes: int


@dataclass(frozen=True)
class Work:
    """What the run would go through.

    Attributes:
        run: the run's name.
        state: what became of it so far, "not yet trained" if nothing.
        steps: optimizer steps of the whole run.
        tokens_per_step: mean over the steps, prompts counted once for each answer.
        train, held_out: what became of the rows; no held-out rows, no evaluation.
    """

    run: str
    state: str
    steps: int
    tokens_per_step: float
    train: PartFacts
    held_out: PartFacts | None


@dataclass(frozen=True)
class Plan:
    """A recipe worked out as far as what it names is at hand.

    Attributes:
        sizes: needs the model, or a config.json beside the recipe.
        memory: needs the same, and a machine like the one that trains; of rows that are not at hand, the longest that
            the recipe allows are taken.
        work: needs the model, its tokenizer and the data.
        notes: why something is not at hand and what stands in for it, a sentence each.
    """

    sizes: ModelSizes | Unknown
    memory: Fit | Unknown
    work: Work | Unknown
    notes: tuple[str, ...]

    def warnings(self) -> list[str]:
        """The notes, and a sentence where memory is too small."""
        warning = None if isinstance(self.memory, Unknown) else self.memory.warning
        return [*self.notes, *([warning] if warning else [])]


def make_plan(recipe: Recipe, folder: Path, *, room: int | None = None) -> Plan:
    """Work a recipe out. Its rows are tokenised (and kept for the training); no weights are loaded.

    What comes from the hub, or of a command that has not run yet, may be missing: then all is worked out that does not
    depend on it.

    Args:
        recipe: what would be trained.
        folder: where the recipe lies; a config.json there stands in for a model that is not at hand.
        room: bytes that a worker may take; None: as on this machine.

    Raises:
        SlimeRayError: whatever would stop the training before its first step, but for what may still come.
    """
    missing = _missing(recipe)
    notes = list(missing.values())
    if not missing:
        stage = resolve(recipe)
        memory = _memory(stage.source, recipe, room, lengths=Lengths.of(prepare(stage).train))
        return Plan(sizes=_sizes(stage.source, recipe), memory=memory, work=_work(stage), notes=())
    if recipe.model.name not in missing:
        source = find_model(recipe.model.name, runs_dir=place(recipe.runs_dir))
    elif (folder / "config.json").is_file():
        source = find_model(str(folder), runs_dir=place(recipe.runs_dir))
        notes.append(f"{folder / 'config.json'} stands in for the model {recipe.model.name!r}")
    else:
        source = None
    sizes = _sizes(source, recipe) if source else Unknown((recipe.model.name,))
    memory = _memory(source, recipe, room, lengths=None) if source else Unknown((recipe.model.name,))
    return Plan(sizes=sizes, memory=memory, work=Unknown(tuple(missing)), notes=tuple(notes))


def _memory(source: ModelSource, recipe: Recipe, room: int | None, *, lengths: Lengths | None) -> Fit | Unknown:
    settings, make_model = recipe.training, partial(empty_model, source, recipe.model)
    if room is None:
        if settings.use_gpu and not torch.cuda.is_available():
            return Unknown(("a GPU here", "or --memory"))
        device = torch.device("cuda" if settings.use_gpu else "cpu")
        room = room_for_worker(settings, workers=settings.fewest_workers, device=device)
    return fit_data(recipe, make_model, lengths, workers=settings.fewest_workers, room=room)


def _sizes(source: ModelSource, recipe: Recipe) -> ModelSizes:
    model = empty_model(source, recipe.model)
    parameters = trained = sum(p.numel() for p in model.parameters())
    if recipe.lora:
        with torch.device("meta"):
            adapted = add_lora(model, recipe.lora)
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    width = DTYPES[recipe.model.dtype].itemsize
    checkpoint_bytes, run_bytes = room_needed(
        model=width * parameters, trained=width * trained, lora=recipe.lora is not None, settings=recipe.checkpoint
    )
    return ModelSizes(parameters, trained, checkpoint_bytes, run_bytes)


def _work(stage: Stage) -> Work:
    recipe = stage.recipe
    prepared = prepare(stage)
    config = load_config(stage.source, recipe.model)
    check_vocabulary(config, chat_format(stage).tokenizer, stage.source, recipe.model)
    lengths = Lengths.of(prepared.train)
    check_positions(config, int(lengths.longest.max()), recipe.model)
    mixture = stage.mixture(prepared)
    # With weights, of the first epoch: the others differ in what is drawn of an entry, not in how many rows.
    mean_tokens = float(lengths.tokens[mixture.order(seed=recipe.training.seed, epoch=0)].mean())
    return Work(
        run=stage.run.name,
        state=stage.run.state() if stage.run.lineage() is not None else "not yet trained",
        steps=total_steps(mixture, recipe.training),
        tokens_per_step=mean_tokens * min(mixture.rows, recipe.training.pairs_per_step),
        train=prepared.train_facts,
        held_out=prepared.eval_facts,
    )


def _missing(recipe: Recipe) -> dict[str, str]:
    """Why models and data are not at hand, by their names in the recipe.

    Raises:
        SlimeRayError: a file or folder is not there that no command of ours makes.
    """
    runs_dir, model = place(recipe.runs_dir), recipe.model
    reasons = {model.name: _model_missing(model.name, "config.json", key="model.name", runs_dir=runs_dir)}
    if model.tokenizer is not None:
        file, key = "tokenizer_config.json", "model.tokenizer"
        reasons[model.tokenizer] = _model_missing(model.tokenizer, file, key=key, runs_dir=runs_dir)
    for entry in [*recipe.data.train, *recipe.data.eval]:
        reasons[entry] = _data_missing(entry, runs_dir=runs_dir)
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _model_missing(name: str, file: str, *, key: str, runs_dir: Path) -> str | None:
    if named(name).expanduser().is_dir():
        return None
    try:
        source = find_model(name, runs_dir=runs_dir, key=key)
        if source.revision:  # a gated model is found by everyone, but its files are not given to everyone
            hf_hub_download(source.location, file, revision=source.revision)
    except (ModelError, RunError, HTTPError, OSError) as error:
        if not _is_elsewhere(name) and runs_dir not in place(name).parents:
            raise
        reason = str(error).splitlines()[0]
        return reason if isinstance(error, SlimeRayError) else f"{key} = {name!r}: {reason}"
    return None


def _is_elsewhere(name: str) -> bool:
    """Whether a model's name is that of a run or of the hub, not of a folder."""
    try:
        validate_repo_id(name.partition("@")[0])
    except HFValidationError:
        return name.startswith("run:")
    return True


def _data_missing(entry: str, *, runs_dir: Path) -> str | None:
    if named(entry).exists():
        return None
    try:
        content_hash([entry])
    except DataError as error:
        of_hub = HubEntry.parse(entry) is not None and not entry.lower().endswith(SUFFIXES)
        if not of_hub and runs_dir not in place(entry).parents:
            raise
        return str(error)
    return None
