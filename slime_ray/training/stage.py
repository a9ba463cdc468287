"""One stage of training from a recipe to a finished run folder, without saying where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slime_ray.config.loss import SFTLossConfig
from slime_ray.config.recipe import Recipe
from slime_ray.data.batching import Mixture
from slime_ray.data.sources import content_hash
from slime_ray.data.token_cache import PreparedData, prepare_tokens
from slime_ray.data.tokenization import ChatFormat, load_tokenizer
from slime_ray.manifest import Lineage, versions
from slime_ray.model.source import ModelSource, find_model, settings_hash
from slime_ray.runs import Run, run_of
from slime_ray.storage import named, place, text_hash

# Below the runs folder, shared by all runs: what is made once from data and model.
_TOKENS = Path(".cache", "tokens")
REFERENCES = Path(".cache", "reference")


@dataclass(frozen=True)
class Stage:
    """Everything that is known of a stage before it is trained.

    Attributes:
        recipe: its settings.
        source: the model that it starts from.
        tokenizer: folder or hub name of the tokenizer.
        chat_template: the template's file, if it is not the tokenizer's own; absolute, as all paths here are, since a
            Ray worker has another working directory.
        data_hash, model_hash: stand for the content of the data and of the starting model with its tokenizer.
        run: where the result is kept.
    """

    recipe: Recipe
    source: ModelSource
    tokenizer: str
    chat_template: str | None
    data_hash: str
    model_hash: str
    run: Run

    def mixture(self, prepared: PreparedData) -> Mixture:
        """Which of the training rows an epoch has.

        Raises:
            DataError: `data.weights` leave none.
        """
        weights = self.recipe.data.weights
        return Mixture(prepared.train_facts.rows_by_entry, None if weights is None else tuple(weights))

    def lineage(self) -> Lineage:
        """What the run is made from, under the versions of this process."""
        return Lineage(
            name=self.run.name,
            recipe=self.run.recipe,
            hash=self.run.hash,
            data=self.data_hash,
            model=self.model_hash,
            parent=self.source.parent,
            versions=versions(),
        )


def resolve(recipe: Recipe) -> Stage:
    """Find a recipe's model and data and the run that they stand for. Loads neither torch nor ray.

    Raises:
        SlimeRayError: a model, a parent run or a data file is missing.
    """
    runs_dir = place(recipe.runs_dir)
    source = find_model(recipe.model.name, runs_dir=runs_dir)
    asked = recipe.model.tokenizer
    own = find_model(asked, runs_dir=runs_dir, key="model.tokenizer") if asked else None
    template = recipe.model.chat_template
    extra = settings_hash(tokenizer=own, chat_template=template)
    model_hash = text_hash([source.hash, *extra])
    train = recipe.data.train
    # Weights belong to entries: the same files in other folders are then another mixture.
    content = content_hash(train) if recipe.data.weights is None else text_hash(content_hash([one]) for one in train)
    data_hash = text_hash([content, content_hash(recipe.data.eval)])
    tokenizer = own or source
    return Stage(
        recipe=recipe,
        source=source,
        tokenizer=tokenizer.pinned,
        chat_template=str(named(template).absolute()) if template is not None else None,
        data_hash=data_hash,
        model_hash=model_hash,
        run=run_of(recipe, data=data_hash, model=model_hash),
    )


def chat_format(stage: Stage) -> ChatFormat:
    """The stage's tokenizer with its chat template."""
    return ChatFormat.of(load_tokenizer(stage.tokenizer, stage.chat_template))


def prepare(stage: Stage) -> PreparedData:
    """The stage's rows as tokens: made once, found again later. Loads no torch.

    Raises:
        DataError: a file cannot be read or no row of it can teach.
        RunError: the runs folder, which keeps the tokens too, cannot be written.
    """
    stage.run.make_runs_dir()
    return prepare_tokens(
        stage.recipe.data,
        chat_format(stage),
        pairs=not isinstance(stage.recipe.loss, SFTLossConfig),
        cache_dir=stage.run.runs_dir / _TOKENS,
    )
