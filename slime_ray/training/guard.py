"""The likelihood guard: what is wrong with a run, judged from its metrics at an evaluation. No torch, no files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from slime_ray.config.guard import GuardConfig

# Steps whose median gradient norm later ones are compared with: enough for one odd batch, or the first one's large
# gradient, not to count.
_FIRST_STEPS = 10
# Evaluations in a row that make a rise of the entropy a lasting one: SLIME's first steps may flatten a distribution for
# two of them.
_LASTING = 3

Line = Mapping[str, float]


@dataclass(frozen=True)
class Finding:
    """Something wrong at an evaluation.

    Attributes:
        metric: its name in metrics.jsonl.
        step: of the evaluation; for the gradient's norm, of the batch.
        value: what was found there.
        compared: the value that it was compared with.
        compared_step: where that was; for the gradient's norm, the last of the first steps.
        limit: the last value that would have passed.
        sentence: what was found, against what, what it usually means and what to do.
    """

    metric: str
    step: int
    value: float
    compared: float
    compared_step: int
    limit: float
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class _Watch:
    """A metric of evaluations that should not get worse.

    Attributes:
        metric: its name in metrics.jsonl.
        setting: the key of `[guard]` that says how much worse it may be.
        sign: 1 where larger is better, -1 where smaller is.
        what: it in words, with `{value}`, `{change}` or `{points}`, and `{floor}`.
        shown: the value that it is compared with, in words.
        meaning: what it usually means and what to do.
        lasting: it is compared with the start, and getting worse counts if it lasts for `_LASTING` evaluations, or is
            twice as bad at one; else it is compared with the best so far, at once.
    """

    metric: str
    setting: str
    sign: int
    what: str
    shown: str
    meaning: str
    lasting: bool = False


_WATCHED = (
    _Watch(
        metric="eval_mean_logps/chosen",
        setting="chosen_drop",
        sign=1,
        what="the chosen answers' mean log-probability is {value:.2f} nats per token, {change:.2f} below",
        shown="{:.2f}",
        meaning="the model unlearns the answers that it should prefer; lower training.learning_rate or train fewer "
        "steps, and if that is not enough raise loss.lambda_chosen (slime) or loss.beta (dpo)",
    ),
    # Fine-tuning may sharpen a distribution and let it go again, and the first steps may flatten it for a while. What
    # harms is a distribution that stays flatter than the one that was given.
    _Watch(
        metric="eval_entropy/chosen",
        setting="entropy_rise",
        sign=-1,
        what="the entropy on chosen tokens is {value:.2f} nats per token, {change:.2f} above",
        shown="{:.2f}",
        meaning="the distribution flattens, so sampled answers get worse even where greedy ones do not; lower "
        "loss.lambda_rejected (slime), whose stabilizer holds unlikely tokens up, or training.learning_rate",
        lasting=True,
    ),
    _Watch(
        metric="eval_rejected_below_floor",
        setting="floor_rise",
        sign=-1,
        what="{value:.1%} of the rejected tokens have a log-probability below guard.floor = {floor:g}, {points:.1f} "
        "points above",
        shown="{:.1%}",
        meaning="the likelihood of rejected answers collapses, and what they share with good answers goes with it; "
        "lower training.learning_rate, or raise loss.lambda_rejected (slime) or loss.beta (dpo)",
    ),
    _Watch(
        metric="eval_rewards/accuracies",
        setting="accuracy_fall",
        sign=1,
        what="{value:.1%} of the pairs are ranked right, {points:.1f} points below",
        shown="{:.1%}",
        meaning="what is learned no longer carries over to held-out pairs; lower training.learning_rate, train fewer "
        "steps, or look for mislabelled pairs",
    ),
)


def findings(lines: Sequence[Line], settings: GuardConfig, *, pairs: int) -> list[Finding]:
    """What is wrong at a run's newest evaluation; nothing at its first one.

    Chosen log-probability, share below the floor and accuracy are compared with the best of the earlier evaluations,
    the start among them, so that a run that learns first and breaks later is found too; the entropy with the start; the
    gradient's norm since the last evaluation with its median over the run's first steps. A metric that was not measured
    is no finding. Accuracy is judged where steps report one too: an objective without pairs, such as SFT, does not
    train for it, and that of random weights says nothing.

    Args:
        lines: of metrics.jsonl so far, of steps and of evaluations; the last one is the newest evaluation.
        settings: the limits.
        pairs: held-out pairs, which say how sure an accuracy is.
    """
    evaluations = [line for line in lines if any(name.startswith("eval_") for name in line)]
    if len(evaluations) < 2:
        return []
    *earlier, newest = evaluations
    ranks_pairs = any("rewards/accuracies" in line for line in lines)
    watched = [watch for watch in _WATCHED if ranks_pairs or watch.setting != "accuracy_fall"]
    found = [_worse(watch, earlier, newest, settings, pairs=pairs) for watch in watched]
    found.append(_grown(lines, since=earlier[-1]["step"], settings=settings))
    return [finding for finding in found if finding is not None]


def _worse(
    watch: _Watch, earlier: Sequence[Line], newest: Line, settings: GuardConfig, *, pairs: int
) -> Finding | None:
    measured = [line for line in earlier if watch.metric in line]
    if not measured or watch.metric not in newest:
        return None
    reference = measured[0] if watch.lasting else max(measured, key=lambda line: watch.sign * line[watch.metric])
    value, compared, step = newest[watch.metric], reference[watch.metric], int(newest["step"])
    allowed = getattr(settings, watch.setting)
    why = f"guard.{watch.setting} = {allowed:g}"
    if watch.lasting:
        # Where there are fewer, the start is among them, which is no worse than itself.
        before = [watch.sign * (compared - line[watch.metric]) for line in measured[1 - _LASTING :]]
        if min(before) > allowed:
            why += f", {_LASTING} evaluations in a row"
        else:
            allowed, why = 2 * allowed, f"twice {why}"
    if watch.setting == "accuracy_fall" and (noise := 2 * _standard_error(value, compared, pairs=pairs)) > allowed:
        allowed, why = noise, f"twice the standard error of {pairs} pairs is {100 * noise:.1f} points"
    change = watch.sign * (compared - value)
    if change <= allowed:
        return None
    what = watch.what.format(value=value, change=change, points=100 * change, floor=settings.floor)
    against = f"the {watch.shown.format(compared)} of step {reference['step']:g}"
    return Finding(
        metric=watch.metric,
        step=step,
        value=value,
        compared=compared,
        compared_step=int(reference["step"]),
        limit=compared - watch.sign * allowed,
        sentence=f"step {step}, held out: {what} {against} ({why}): {watch.meaning}",
    )


def _standard_error(first: float, second: float, *, pairs: int) -> float:
    """Of the difference of two shares of so many pairs each, if there were none (the pooled estimate)."""
    share = (first + second) / 2
    return math.sqrt(2 * share * (1 - share) / max(1, pairs))


def _grown(lines: Sequence[Line], *, since: float, settings: GuardConfig) -> Finding | None:
    """The largest gradient norm after step `since` against the median of the run's first steps."""
    steps = [line for line in lines if "grad_norm" in line]
    recent = [line for line in steps if line["step"] > since]
    if not recent:
        return None
    first, largest = steps[:_FIRST_STEPS], max(recent, key=lambda line: line["grad_norm"])
    usual, value, step = median(line["grad_norm"] for line in first), largest["grad_norm"], int(largest["step"])
    if value <= settings.grad_norm_growth * usual:
        return None
    growth = f"{value / usual:.0f} times its median of {usual:.3g}" if usual else "its median was 0"
    return Finding(
        metric="grad_norm",
        step=step,
        value=value,
        compared=usual,
        compared_step=int(first[-1]["step"]),
        limit=settings.grad_norm_growth * usual,
        sentence=(
            f"step {step}: the gradient's norm is {value:.3g}, {growth} over the first {len(first)} steps "
            f"(guard.grad_norm_growth = {settings.grad_norm_growth:g}): the weights run away, or a pair of this step "
            "is odd; lower training.learning_rate or set training.max_grad_norm"
        ),
    )
