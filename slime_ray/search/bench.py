"""What all trials of a study share: the recipe that is varied, the held-out pairs, the objectives, the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_ray.config.recipe import Recipe
from slime_ray.config.study import Objective, StoppingConfig
from slime_ray.errors import StudyError
from slime_ray.lease import Lease, acquire
from slime_ray.overrides import validated
from slime_ray.sealed import Sealed
from slime_ray.search.heldout import FILE, HeldOut, read_heldout, refuse_known
from slime_ray.search.objectives import check_reportable
from slime_ray.search.space import Space, merged
from slime_ray.search.trials import Ledger
from slime_ray.storage import disk_errors, is_url, json_hash, place, remove
from slime_ray.training.stage import Stage, resolve

if TYPE_CHECKING:
    from slime_ray.training.scoring import Score


class Identity(Sealed):
    """What a study's trials have in common, by hashes: trials of another are not to be compared with them."""

    about: dict[str, str]


@dataclass(frozen=True, slots=True)
class Bench:
    """One study, as its trials see it.

    Attributes:
        name: of the study.
        folder: where it is kept.
        values: the recipe that is varied, nested as TOML has it.
        stage: that recipe with its model and data.
        heldout: the parts of the held-out pairs.
        objectives: the first one ranks.
        max_new_tokens: where a checked answer is cut off.
        stopping: when trials are stopped early; None: never.
        concurrent: most trials at once; None: as many as fit.
    """

    name: str
    folder: Path
    values: Mapping[str, Any]
    stage: Stage
    heldout: HeldOut
    objectives: tuple[Objective, ...]
    max_new_tokens: int
    stopping: StoppingConfig | None = None
    concurrent: int | None = None

    @classmethod
    def of(
        cls,
        name: str,
        recipe: Recipe,
        *,
        studies_dir: str,
        heldout: str,
        objectives: tuple[Objective, ...],
        max_new_tokens: int,
        stopping: StoppingConfig | None = None,
        concurrent: int | None = None,
        space: Space | None = None,
    ) -> Bench:
        """Look at everything before anything is trained.

        Raises:
            SlimeRayError: the recipe's model or data is missing, held-out pairs are trained on, an objective cannot be
                reported, or no trial could be stopped.
        """
        entry = heldout if is_url(heldout) or not Path(heldout).exists() else str(Path(heldout).absolute())
        parts = HeldOut.of(entry)
        check_reportable(objectives, parts)
        _check_stopping(recipe, stopping)
        stage = resolve(recipe)
        refuse_known(entry, recipe.data, stopping=stopping is not None)
        values = recipe.model_dump(mode="json", exclude_unset=True)
        for key, value in _inputs(space):
            other = validated(merged(values, {key: value}), Recipe, where=name)
            resolve(other)
            refuse_known(entry, other.data, stopping=stopping is not None)
        # What a trial starts from stays what it is now, whatever is trained meanwhile.
        if stage.source.parent is not None:
            values = merged(values, {"model.name": f"run:{stage.source.parent}"})
        values = merged(values, {"name": f"{name}/trial"})
        return cls(
            name=name,
            folder=place(studies_dir) / name,
            values=values,
            stage=stage,
            heldout=parts,
            objectives=objectives,
            max_new_tokens=max_new_tokens,
            stopping=stopping,
            concurrent=concurrent,
        )

    @property
    def recipe(self) -> Recipe:
        """The recipe that is varied."""
        return self.stage.recipe

    def trial_recipe(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial.

        Raises:
            ConfigError: its settings make no recipe.
        """
        return validated(merged(self.values, settings), Recipe, where=self.name)

    @contextmanager
    def held(self, *, say: Callable[[str], None], **also: object) -> Iterator[tuple[Ledger, Lease]]:
        """The study's ledger and lease: begun or gone on with, by one command at a time.

        Args:
            say: is told who is waited for.
            also: what else makes studies differ, by name.

        Raises:
            StudyError: the folder is of another study.
            RunError: another command holds it, or what it says of itself was changed.
            StorageError: the disk is full or cannot be written.
        """
        what = f"the study {self.name}"
        with (
            disk_errors(self.folder, setting="studies_dir"),
            acquire(self.folder / "lease", what=what, wait=False, say=say) as lease,
        ):
            for scratch in self.folder.glob(".tune-*"):  # of a command that was killed
                remove(scratch)
            self._begin(also)
            yield Ledger(self.folder), lease

    def _begin(self, also: Mapping[str, object]) -> None:
        """Make the folder, or see that the one that is there is of this study."""
        about = {
            "recipe": json_hash(self.recipe.result_settings()),
            "data.train or data.eval": self.stage.data_hash,
            "model": self.stage.model_hash,
            "heldout": json_hash([self.heldout.entry, self.heldout.content]),
            "objectives": json_hash(list(self.objectives)),
            "max_new_tokens": str(self.max_new_tokens),
            "stopping.metric": self.stopping.metric if self.stopping is not None else "",
            **{key: json_hash(value) for key, value in also.items()},
        }
        path = self.folder / "study.json"
        found = Identity.read(path)
        if found is None:
            self.heldout.write(self.folder / FILE)
            Identity(about=about).write(path)
            return
        changed = [key for key in {**found.about, **about} if found.about.get(key) != about.get(key)]
        if changed:
            raise StudyError(
                f"{self.folder}: this study was begun with other settings or content of {', '.join(changed)}; put them "
                "back, or give the study another name"
            )

    def score_file(self, which: int | str) -> Path:
        """Where the score of a trial, or of the model that trials start from ("start"), is kept."""
        return score_file(self.folder, which)


def score_file(folder: Path, which: int | str) -> Path:
    """Where a study's folder has the score of a trial, or of the model that trials start from ("start")."""
    return folder / "scores" / f"{which}.json"


def read_score(folder: Path, which: int | str) -> Score:
    """The score of a trial, or of the model that trials start from ("start"), on both parts.

    Raises:
        FileNotFoundError: there is none.
    """
    from slime_ray.training.scoring import load_score  # loads torch

    return load_score(score_file(folder, which))


def begun_heldout(folder: Path) -> HeldOut:
    """The parts that a study was begun with.

    Raises:
        StudyError: there is no study.
    """
    found = read_heldout(folder)
    if found is None:
        raise StudyError(f"{folder}: no study; expected a folder that slime-ray tune or ablate made")
    return found


def _inputs(space: Space | None) -> Iterator[tuple[str, Any]]:
    """Other data and models that a space has."""
    for parameter in space.parameters if space is not None else ():
        if parameter.key.startswith(("data.", "model.")):
            yield from ((parameter.key, value) for value in parameter.choices or (parameter.low, parameter.high))


def _check_stopping(recipe: Recipe, stopping: StoppingConfig | None) -> None:
    every = recipe.training.eval_every
    if stopping is not None and every is None:
        raise StudyError(
            "training.eval_every is not set in the recipe, so no trial is looked at before its end, and [stopping] "
            "could stop none; set recipe.training.eval_every, or leave [stopping] out"
        )
    if stopping is not None and not recipe.data.eval and recipe.data.part == "all":
        raise StudyError(
            f"[stopping] looks at {stopping.metric}, and the recipe has no held-out rows of its own; set "
            "recipe.data.eval, or leave [stopping] out"
        )
