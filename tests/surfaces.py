"""Studies that were never run: trials on a response surface, with noise of seeds and prompts as in real ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from slime_ray.config.recipe import Recipe
from slime_ray.config.study import ParameterConfig
from slime_ray.evaluation.statistics.intervals import Interval
from slime_ray.overrides import validated
from slime_ray.search.contrasts import Contrasts, contrast
from slime_ray.search.findings import Evidence, Measured
from slime_ray.search.judgment import Judged, Judgment
from slime_ray.search.objectives import pair_values
from slime_ray.search.space import Space
from slime_ray.search.trials import SEED, Origin, State, Trial
from slime_ray.search.variants import Variant, ablation, by_seed, own_value, sensitivity
from slime_ray.search.weights import first
from slime_ray.training.scoring import Answer, Score

OBJECTIVES = ("checked_sampled", "accuracy")
VALUES: dict[str, Any] = {
    "name": "surface",
    "model": {"name": "nowhere"},
    "data": {"train": ["train.jsonl"]},
    "loss": {"kind": "slime", "lambda_rejected": 0.1},
    "training": {"learning_rate": 5e-4, "pairs_per_step": 32},
}
SPACE = {
    "loss.hard_margin": ParameterConfig(low=0.5, high=3.0),
    "loss.margin_gap": ParameterConfig(low=0.0, high=1.5),
    "loss.kappa": ParameterConfig(low=0.5, high=10.0, log=True),
    "loss.lambda_rejected": ParameterConfig(low=1e-4, high=0.3, log=True),
    "loss.power": ParameterConfig(choices=(1.0, 1.5, 2.0, 2.5, 3.0)),
    "training.learning_rate": ParameterConfig(low=1e-4, high=2e-3, log=True),
}


def recipe_of(**loss: Any) -> Recipe:
    """The recipe that is varied, with other settings of its loss."""
    return validated({**VALUES, "loss": {**VALUES["loss"], **loss}}, Recipe, where="a test")


def space_of() -> Space:
    """The space over that recipe."""
    return Space.of(VALUES, SPACE, where="a test")


@dataclass
class Surface:
    """What training with some settings does: log-odds of a right answer and of the right order of a pair.

    Right answers fall with the logarithm of lambda_rejected's distance from 0.002 and of the learning rate's from 7e-4;
    the right order rises with hard_margin and the learning rate. Nothing else matters. Prompts differ in difficulty,
    every training run is off by chance (`seed_sd`), and answers are drawn.
    """

    pairs: int = 200
    seed_sd: float = 0.15
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.difficulty = 1.5 * self.random.standard_normal(self.pairs)
        self.sources = tuple(f"test.jsonl:{line}" for line in range(1, self.pairs + 1))
        # Every tenth pair has the prompt of the one before it.
        self.prompts = {one: f"prompt {n - (n % 10 == 9)}" for n, one in enumerate(self.sources)}

    def quality(self, settings: Mapping[str, Any]) -> tuple[float, float]:
        """Log-odds of a right answer and of the right order, at a prompt of no special difficulty."""
        table = settings.get("loss", {})
        weight = settings.get("loss.lambda_rejected", 0.1)
        rate = math.log(settings.get("training.learning_rate", 5e-4) / 7e-4)
        margin = settings.get("loss.hard_margin", 1.5)
        anchor = 0.0 if settings.get("loss.lambda_chosen", 0.1) else -0.6
        if table:  # a baseline: it has no weight to be wrong
            return 0.6 * (table["kind"] == "sft") - 0.3 * rate**2, 1.2
        right = 0.4 - 0.25 * abs(math.log10(max(weight, 1e-6) / 0.002)) - 0.3 * rate**2 + anchor
        return right, 1.2 + 0.5 * (margin - 1.5) + 0.2 * rate

    def score(self, settings: Mapping[str, Any]) -> Score:
        """What a trained model scores: another draw at every call."""
        random, (right, order) = self.random, self.quality(settings)
        right, order = (value + self.seed_sd * random.standard_normal() for value in (right, order))
        odds = [1 / (1 + np.exp(self.difficulty - value)) for value in (right, right - 0.5, order)]
        greedy, sampled, ordered = (random.random(self.pairs) < each for each in odds)
        chosen = -0.6 + 0.1 * right + 0.05 * random.standard_normal(self.pairs)
        rejected = np.where(ordered, chosen - 0.5, chosen + 0.2)
        answers = tuple(
            Answer(source, self.prompts[source], "g", "s", bool(g), bool(s))
            for source, g, s in zip(self.sources, greedy, sampled, strict=True)
        )
        return Score("a model", self.sources, tuple(chosen.tolist()), tuple(rejected.tolist()), answers)

    def measured(self, settings: Mapping[str, Any]) -> Measured:
        """The objectives on two parts: prompts of even and of odd number."""
        score, start = self.score(settings), self.score({"loss.lambda_rejected": 0.002})
        values = {name: pair_values(name, score, start) for name in (*OBJECTIVES, "checked_greedy", "chosen_logp")}
        even = {source for source, prompt in self.prompts.items() if int(prompt.split()[1]) % 2 == 0}
        parts = [
            {name: {k: v for k, v in each.items() if (k in even) == want} for name, each in values.items()}
            for want in (True, False)
        ]
        return Measured(*parts)


def study_of(trials: int = 24, *, seeds: int = 3, seed: int = 0, surface: Surface | None = None) -> Evidence:
    """A study of random points: the recipe's own (which are the paper's), the authors', some stopped, one failed.

    `seeds` - 1 repeats of the recipe's own settings and of the best.
    """
    surface = surface or Surface()
    random, space = np.random.default_rng(seed), space_of()
    known, _ = space.known()
    points = [known[0], known[2]] + [("proposed", _drawn(space, random)) for _ in range(trials - 2)]
    found: list[Trial] = []
    measured: dict[int, Measured] = {}

    def end(origin: Origin, label: str, settings: dict[str, Any], point: dict[str, Any]) -> None:
        number = len(found)
        right, order = surface.quality(settings)
        curve = tuple((step, _share(order - 0.6 + 0.15 * step / 25)) for step in (25, 50, 75))
        state: State = "failed" if number == 6 else "stopped" if origin == "proposed" and right < -0.4 else "finished"
        reason = {
            "failed": "the loss was not finite at step 31",
            "stopped": "at step 25 it was below the third that goes on",
        }.get(state, "")
        values = {}
        if state == "finished":
            measured[number] = surface.measured(settings)
            values = {name: float(np.mean(list(measured[number].selecting[name].values()))) for name in OBJECTIVES}
        kept = curve[:1] if state == "stopped" else () if state == "failed" else curve
        also: tuple[Origin, ...] = ("paper",) if origin == "recipe" else ()
        run = f"surface-{number:08x}"
        found.append(Trial(number, origin, label, settings, point, state, run, values, kept, reason, 1, 61.5, also))

    for origin, point in points:
        end(origin, "", space.settings(point), point)
    best = max((t for t in found if t.state == "finished"), key=lambda t: t.values[OBJECTIVES[0]])
    for whose in (found[0], best):
        for number in range(1, seeds):
            end("seed", f"trial {whose.number}, seed {number}", {**whose.settings, SEED: number}, {})
    return Evidence("surface", OBJECTIVES, tuple(found), measured, surface.prompts)


def judged_of(evidence: Evidence) -> Evidence:
    """The study, of which the first two and the recipe's own were judged: the second is better by the judge's score."""
    foremost, second = first(evidence.trials, OBJECTIVES, count=2)
    scores = (
        Judged(second.number, Interval(7.41, 7.02, 7.8, 80), Interval(0.62, 0.21, 1.03, 80)),
        Judged(foremost.number, Interval(7.2, 6.8, 7.6, 80), Interval(0.41, -0.02, 0.84, 80)),
        Judged(0, Interval(6.79, 6.37, 7.21, 80), None),
    )
    page = Path("evaluations/surface/judged/report.html")
    return replace(evidence, judgment=Judgment("mean grade, 1 to 10", 0, "trial-0", page, scores))


def ablation_of(*, seeds: int = 3, alone: bool = False, surface: Surface | None = None) -> Contrasts:
    """An ablation, or with `alone` a sensitivity study, of which one trial failed."""
    surface, recipe = surface or Surface(), recipe_of()
    variants: list[Variant] = sensitivity(recipe) if alone else ablation(recipe)
    trials, measured = [], {}
    for number, (label, settings) in enumerate(by_seed(variants, recipe, seeds)):
        state: State = "failed" if number == 30 else "finished"
        reason = "the loss was not finite at step 31" if number == 30 else ""
        trials.append(Trial(number, "variant", label, settings, {}, state, f"surface-{number:08x}", {}, (), reason))
        if state == "finished":
            both = surface.measured(settings)
            measured[number] = {name: {**both.selecting[name], **both.reporting[name]} for name in OBJECTIVES}
    rows = contrast(variants, trials, measured, surface.prompts, OBJECTIVES)
    groups = dict.fromkeys(row.variant.group for row in rows)
    own = {group: own_value(recipe, group) for group in groups}
    prompts = len(set(surface.prompts.values()))
    return Contrasts("surface", OBJECTIVES, own, 5e-4, rows, seeds, surface.pairs, prompts, alone)


def _drawn(space: Space, random: np.random.Generator) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for each in space.parameters:
        if each.choices is not None:
            point[each.key] = each.choices[int(random.integers(len(each.choices)))]
        elif each.log:
            point[each.key] = float(f"{math.exp(random.uniform(math.log(each.low), math.log(each.high))):.4g}")
        else:
            point[each.key] = float(f"{random.uniform(each.low, each.high):.4g}")
    return point


def _share(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))
