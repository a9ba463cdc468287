"""Each finding of the guard: what makes it fire, what just does not, and what it says."""

from __future__ import annotations

import pytest

from slime_ray.config.guard import GuardConfig
from slime_ray.training.guard import Finding, Line, findings

SETTINGS = GuardConfig(
    chosen_drop=0.5, entropy_rise=0.2, floor=-15.0, floor_rise=0.1, accuracy_fall=0.05, grad_norm_growth=10.0
)
CHOSEN = "eval_mean_logps/chosen"
ENTROPY = "eval_entropy/chosen"
BELOW = "eval_rejected_below_floor"
ACCURACY = "eval_rewards/accuracies"


def evaluation(step: int, **values: float) -> Line:
    names = {"chosen": CHOSEN, "entropy": ENTROPY, "below": BELOW, "accuracy": ACCURACY}
    return {"step": step, "eval_loss": 1.0} | {names[name]: value for name, value in values.items()}


def trained(first: int, *norms: float) -> list[Line]:
    """Lines of steps from `first` on."""
    return [{"step": first + index, "loss": 1.0, "grad_norm": norm} for index, norm in enumerate(norms)]


def found(*lines: Line, pairs: int = 10_000) -> list[Finding]:
    """What is found in a run whose objective is on pairs, and so reports an accuracy at every step."""
    return findings([{"step": 1, "loss": 1.0, "rewards/accuracies": 0.5}, *lines], SETTINGS, pairs=pairs)


GOOD = {"chosen": -0.5, "entropy": 0.6, "below": 0.25, "accuracy": 0.75}


# The values are such that differences are exact in binary where they stand on the limit.
@pytest.mark.parametrize(
    ("name", "metric", "passes", "fires", "limit"),
    [
        ("chosen", CHOSEN, -1.0, -1.01, -1.0),
        ("entropy", ENTROPY, 0.99, 1.01, 1.0),
        ("below", BELOW, 0.34, 0.36, 0.35),
        ("accuracy", ACCURACY, 0.71, 0.69, 0.7),
    ],
)
def test_a_value_may_get_worse_by_as_much_as_the_setting_says(
    name: str, metric: str, passes: float, fires: float, limit: float
) -> None:
    start = evaluation(0, **GOOD)
    assert found(start, evaluation(25, **(GOOD | {name: passes}))) == []

    (finding,) = found(start, evaluation(25, **(GOOD | {name: fires})))
    assert (finding.metric, finding.step, finding.compared_step) == (metric, 25, 0)
    assert (finding.value, finding.compared) == (fires, GOOD[name])
    assert finding.limit == pytest.approx(limit)


@pytest.mark.parametrize("name", GOOD)
def test_getting_better_is_never_a_finding(name: str) -> None:
    better = GOOD[name] + (0.2 if name in ("chosen", "accuracy") else -0.2)
    assert found(evaluation(0, **GOOD), evaluation(25, **(GOOD | {name: better}))) == []


def test_a_run_that_learned_and_then_broke_is_compared_with_its_best() -> None:
    lines = [evaluation(0, chosen=-7.0), evaluation(10, chosen=-0.4), evaluation(20, chosen=-0.6)]
    assert found(*lines) == []
    (finding,) = found(*lines, evaluation(30, chosen=-1.0))
    assert (finding.compared, finding.compared_step) == (-0.4, 10)


@pytest.mark.parametrize(
    ("entropies", "fires"),
    [
        ([0.6, 0.95], False),  # once, by less than twice the limit
        ([0.6, 1.05], True),
        ([0.6, 0.95, 0.95], False),  # for two evaluations
        ([0.6, 0.85, 0.85, 0.85], True),
        ([0.6, 0.95, 0.95, 0.7], False),  # a passing rise
        ([0.6, 0.7, 0.95, 0.95], False),
        ([0.6, 0.95, 0.7, 0.95, 0.95], False),
        ([0.6, 0.95, 0.95, 0.7, 0.95], False),
        ([0.6, 0.7, 0.85, 0.85, 0.85], True),
        ([0.6, 0.95, 0.95, 0.79], False),
        ([0.6, 0.1, 0.7, 0.75, 0.75], False),  # sharpened and let go again: the start is what counts
        ([0.6, 0.1, 0.85, 0.85, 0.85], True),
    ],
)
def test_an_entropy_must_stay_above_the_start_or_rise_twice_as_far(entropies: list[float], fires: bool) -> None:
    lines = [evaluation(25 * number, entropy=entropy) for number, entropy in enumerate(entropies)]
    assert [finding.compared_step for finding in found(*lines)] == ([0] if fires else [])


def test_an_entropy_that_stays_up_says_so() -> None:
    entropies = {0: 0.6, 25: 0.9, 50: 0.95, 75: 1.0}
    (finding,) = found(*(evaluation(step, entropy=entropy) for step, entropy in entropies.items()))
    assert finding.limit == pytest.approx(0.8)
    assert "0.40 above the 0.60 of step 0 (guard.entropy_rise = 0.2, 3 evaluations in a row): " in str(finding)


def test_only_the_newest_evaluation_is_judged() -> None:
    assert found(evaluation(0, chosen=-0.4), evaluation(10, chosen=-5.0), evaluation(20, chosen=-0.5)) == []


def test_the_first_evaluation_and_no_evaluation_have_no_findings() -> None:
    assert found() == []
    assert found(*trained(1, 1.0, 1000.0)) == []
    assert found(evaluation(0, chosen=-9.0, entropy=9.0, below=1.0, accuracy=0.0)) == []


def test_metrics_that_are_missing_on_either_side_are_no_finding() -> None:
    bare, bad = evaluation(0), evaluation(5, chosen=-9.0, entropy=9.0, below=1.0, accuracy=0.0)
    assert found(bare, bad) == []
    assert found(evaluation(0, **GOOD), evaluation(5)) == []
    # A run that was begun by an older version: its first evaluation lacks the entropy.
    assert [finding.metric for finding in found(bare, evaluation(1, entropy=0.5), bad)] == [ENTROPY]


@pytest.mark.parametrize(
    ("pairs", "before", "after", "fires"),
    [
        # Pooled share 0.7: twice sqrt(2 * 0.7 * 0.3 / 100) is 0.1296.
        (100, 0.76, 0.64, False),
        (100, 0.765, 0.635, True),
        # 2,100 pairs: twice the standard error is 0.0283, so the setting of 0.05 holds.
        (2100, 0.724, 0.676, False),
        (2100, 0.726, 0.674, True),
        # One pair says nothing; four that all turn round do (twice the error: 0.707).
        (1, 1.0, 0.0, False),
        (4, 1.0, 0.0, True),
    ],
)
def test_accuracy_must_fall_by_more_than_chance_explains(pairs: int, before: float, after: float, fires: bool) -> None:
    lines = [evaluation(0, accuracy=before), evaluation(9, accuracy=after)]
    assert bool(found(*lines, pairs=pairs)) is fires


def test_the_accuracy_of_an_objective_without_pairs_is_not_judged() -> None:
    lines = [evaluation(0, **GOOD), *trained(1, 1.0), evaluation(1, **(GOOD | {"accuracy": 0.0, "chosen": -9.0}))]
    assert [finding.metric for finding in findings(lines, SETTINGS, pairs=10_000)] == [CHOSEN]


def test_the_gradients_norm_is_compared_with_the_median_of_the_first_steps() -> None:
    # The median of the first ten is 2.5; the first step's 40 and later steps do not move it.
    first = [evaluation(0), *trained(1, 40, 2, 2, 2, 2, 3, 3, 3, 3, 2), *trained(11, 9, 9, 9, 9, 9), evaluation(15)]
    assert [finding.metric for finding in found(*first)] == ["grad_norm"]
    assert found(*first, *trained(16, 25.0, 1.0), evaluation(17)) == []

    (finding,) = found(*first, *trained(16, 2.0, 25.5, 26.0, 1.0), evaluation(19))
    assert (finding.metric, finding.step, finding.value) == ("grad_norm", 18, 26.0)
    assert (finding.compared, finding.compared_step, finding.limit) == (2.5, 10, 25.0)


def test_an_evaluation_without_steps_before_it_has_no_gradient_to_judge() -> None:
    assert found(evaluation(0), *trained(1, 1.0, 1.0, 50.0), evaluation(3), evaluation(4)) == []


def test_gradients_of_zero_are_judged_without_a_division_by_zero() -> None:
    (finding,) = found(evaluation(0), *trained(1, 0.0, 0.0, 0.0, 1.0), evaluation(4))
    assert "the gradient's norm is 1, its median was 0 over the first 4 steps" in str(finding)


def test_several_things_wrong_are_several_findings_in_a_fixed_order() -> None:
    bad = evaluation(30, chosen=-9.0, entropy=9.0, below=1.0, accuracy=0.0)
    lines = [evaluation(0, **GOOD), *trained(1, 1.0, 1.0, 50.0), bad]
    assert [finding.metric for finding in found(*lines)] == [CHOSEN, ENTROPY, BELOW, ACCURACY, "grad_norm"]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "chosen",
            -1.92,
            "step 50, held out: the chosen answers' mean log-probability is -1.92 nats per token, 1.42 below the -0.50 "
            "of step 0 (guard.chosen_drop = 0.5): the model unlearns the answers that it should prefer; lower "
            "training.learning_rate or train fewer steps, and if that is not enough raise loss.lambda_chosen (slime) "
            "or loss.beta (dpo)",
        ),
        (
            "entropy",
            1.35,
            "step 50, held out: the entropy on chosen tokens is 1.35 nats per token, 0.75 above the 0.60 of step 0 "
            "(twice guard.entropy_rise = 0.2): the distribution flattens, so sampled answers get worse even where "
            "greedy ones do not; lower loss.lambda_rejected (slime), whose stabilizer holds unlikely tokens up, or "
            "training.learning_rate",
        ),
        (
            "below",
            0.605,
            "step 50, held out: 60.5% of the rejected tokens have a log-probability below guard.floor = -15, 35.5 "
            "points above the 25.0% of step 0 (guard.floor_rise = 0.1): the likelihood of rejected answers collapses, "
            "and what they share with good answers goes with it; lower training.learning_rate, or raise "
            "loss.lambda_rejected (slime) or loss.beta (dpo)",
        ),
        (
            "accuracy",
            0.5,
            "step 50, held out: 50.0% of the pairs are ranked right, 25.0 points below the 75.0% of step 0 "
            "(guard.accuracy_fall = 0.05): what is learned no longer carries over to held-out pairs; lower "
            "training.learning_rate, train fewer steps, or look for mislabelled pairs",
        ),
    ],
)
def test_a_finding_is_a_sentence(name: str, value: float, sentence: str) -> None:
    (finding,) = found(evaluation(0, **GOOD), evaluation(50, **(GOOD | {name: value})))
    assert str(finding) == sentence


def test_an_accuracy_on_few_pairs_names_their_standard_error() -> None:
    (finding,) = found(evaluation(0, accuracy=0.765), evaluation(50, accuracy=0.635), pairs=100)
    assert "13.0 points below the 76.5% of step 0 (twice the standard error of 100 pairs is 13.0 points)" in str(
        finding
    )


def test_a_grown_gradient_is_a_sentence() -> None:
    (finding,) = found(evaluation(0), *trained(1, *[2.0] * 10, 80.0), evaluation(11))
    assert str(finding) == (
        "step 11: the gradient's norm is 80, 40 times its median of 2 over the first 10 steps "
        "(guard.grad_norm_growth = 10): the weights run away, or a pair of this step is odd; lower "
        "training.learning_rate or set training.max_grad_norm"
    )
