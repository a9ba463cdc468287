"""Paired differences over seeds and prompts: numbers worked by hand, and how often intervals hold what is true."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slime_ray.search.comparison import (
    Difference,
    PairValues,
    compare,
    compare_unpaired,
    difference_of,
    excess,
    training_noise,
)

FIVE = np.arange(5)


def values(numbers: list[float]) -> PairValues:
    """A trial's value on pairs a, b, c, ..."""
    return dict(zip("abcdefgh", numbers, strict=False))


def own_prompt(names: str) -> dict[str, str]:
    """Every pair has a prompt of its own."""
    return {name: f"prompt {name}" for name in names}


def test_one_seed_is_students_t_over_prompts() -> None:
    found = difference_of(np.array([[0.0, 1.0, 2.0, 3.0, 4.0]]), FIVE)
    # Mean 2, standard deviation sqrt(2.5), t(0.975, 4) = 2.776.
    assert found.value == 2.0
    assert found.error == pytest.approx(math.sqrt(2.5 / 5))
    assert found.degrees == 4
    assert found.interval == pytest.approx((2 - 2.7764451 * math.sqrt(0.5), 2 + 2.7764451 * math.sqrt(0.5)))
    assert found.seeds == 1
    assert not found.undecided


def test_seeds_and_prompts_are_crossed() -> None:
    # d = 10 s + n + e with s in -1, 0, 1, n in -2..2 and e = +-1 in four corners, whose rows and columns add up to 0.
    differences = 10 * np.array([[-1.0], [0.0], [1.0]]) + np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]]) + 3
    differences[0, [0, 4]] += (1.0, -1.0)
    differences[2, [0, 4]] += (-1.0, 1.0)
    found = difference_of(differences, FIVE)
    # Seeds' means differ by 10: variance 100, a third of it. Prompts' means have variance 2.5, a fifth of it. The rest
    # has 4 squares of 1 on 2 x 4 degrees, over 15 cells.
    seed, prompt, rest = 100 / 3, 2.5 / 5, (4 / 8) / 15
    variance = seed + prompt - rest
    assert found.value == pytest.approx(3.0)
    assert found.error**2 == pytest.approx(variance)
    assert found.degrees == pytest.approx(variance**2 / (seed**2 / 2 + prompt**2 / 4 + rest**2 / 8))
    assert found.undecided


def test_the_variance_is_not_below_that_of_one_way() -> None:
    # Nothing but what neither seeds nor prompts explain: by itself the difference of variances would be 0.5 / 6 < 0.
    differences = np.array([[1.0, -1.0, 0.0, 0.0, 1.0], [-1.0, 1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    found = difference_of(differences, FIVE)
    assert found.error**2 == pytest.approx(0.2 / 5)


def test_pairs_of_one_prompt_are_one_cluster() -> None:
    once = difference_of(np.array([[0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 2.0, 4.0, 3.0]]), FIVE)
    repeated = difference_of(
        np.repeat(np.array([[0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 2.0, 4.0, 3.0]]), 3, axis=1), np.repeat(FIVE, 3)
    )
    assert (repeated.value, repeated.error, repeated.degrees) == pytest.approx((once.value, once.error, once.degrees))
    assert repeated.prompts == 5


def test_two_seeds_have_one_degree_of_freedom() -> None:
    # Whatever the prompts say: t(0.975, 1) = 12.71.
    found = difference_of(np.array([[1.0, 2.0, 1.0, 2.0, 1.0], [1.0, 2.0, 1.0, 2.0, 1.0]]), FIVE)
    assert found.degrees == 1
    assert found.undecided


@pytest.mark.parametrize(("value", "p", "undecided"), [(0.0, 1.0, True), (0.25, 0.0, False)])
def test_no_spread_at_all(value: float, p: float, undecided: bool) -> None:
    found = difference_of(np.full((3, 6), value), np.arange(6))
    assert (found.interval, found.p, found.undecided) == ((value, value), p, undecided)


def test_p_and_interval_agree() -> None:
    # t(0.975, 4) = 2.776: a difference of exactly so many errors has p 0.05 and an interval that ends at 0.
    found = Difference(value=2.7764451, error=1.0, degrees=4, seeds=3, prompts=50)
    assert found.p == pytest.approx(0.05)
    assert found.interval is not None
    assert found.interval[0] == pytest.approx(0.0, abs=1e-6)


def test_too_few_prompts_decide_nothing() -> None:
    found = difference_of(np.array([[1.0, 1.1, 0.9, 1.0]] * 3), np.arange(4))
    assert (found.interval, found.p, found.undecided) == (None, None, True)
    assert found.value == pytest.approx(1.0)


def test_seeds_are_paired_by_number_and_pairs_by_source() -> None:
    ours = {None: values([1, 1, 1, 1, 1]), 7: values([3, 3, 3, 3, 3]), 8: values([9] * 5)}
    theirs = {7: dict(zip("edcba", [5.0, 4.0, 3.0, 2.0, 1.0], strict=True)), None: values([0, 0, 0, 0, 0, 100])}
    found = compare(ours, theirs, own_prompt("abcdef"))
    # Seed 8 has no partner and the sixth pair is measured once only: (1 + 2 + 1 + 0 - 1 - 2 ...) over two seeds.
    assert found.value == pytest.approx((5 * 1 + (2 + 1 + 0 - 1 - 2)) / 10)
    assert (found.seeds, found.prompts) == (2, 5)


def test_noise_is_pooled_by_degrees_of_freedom() -> None:
    prompts = own_prompt("abcde")
    twice = [values([0, 0, 0, 0, 0]), values([2, 2, 2, 2, 2])]  # means 0 and 2: variance 2, one degree
    thrice = [values([x, x, x, x, x]) for x in (0, 1, 2)]  # variance 1, two degrees
    found = training_noise([twice, thrice, [values([5] * 5)]], prompts)
    assert found is not None
    assert (found.variance, found.rest, found.degrees) == (pytest.approx((2 + 2 * 1) / 3), pytest.approx(0.0), 3)
    assert training_noise([[values([1] * 5)]], prompts) is None


def test_noise_widens_a_comparison_of_single_trials() -> None:
    prompts = own_prompt("abcde")
    ours, theirs = [values([1, 2, 3, 4, 5])], [values([0, 0, 0, 0, 0]), values([2, 2, 2, 2, 2])]
    noise = training_noise([theirs], prompts)
    alone = compare_unpaired(ours, theirs, prompts, None)
    found = compare_unpaired(ours, theirs, prompts, noise)
    # Over prompts 2.5 / 5; between seeds 2, of one trial here and two there.
    assert alone.error**2 == pytest.approx(0.5)
    assert found.error**2 == pytest.approx(0.5 + 2 * (1 + 1 / 2))
    assert found.value == alone.value == pytest.approx(3 - 1)


def test_an_excess_is_welchs() -> None:
    more = Difference(value=0.3, error=0.1, degrees=10, seeds=1, prompts=11)
    less = Difference(value=0.1, error=0.2, degrees=20, seeds=1, prompts=21)
    found = excess(more, less)
    assert (found.value, found.error**2) == pytest.approx((0.2, 0.05))
    assert found.degrees == pytest.approx(0.05**2 / (0.01**2 / 10 + 0.04**2 / 20))
    assert found.undecided


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("true", [0.0, 0.1])
@pytest.mark.parametrize("seed_effect", [0.0, 0.3])
def test_intervals_hold_the_true_difference(seeds: int, true: float, seed_effect: float) -> None:
    """In 400 studies each, 93 to 99 % of them: three standard errors of such a share are 3 %."""
    random = np.random.default_rng([seeds, int(10 * true), int(10 * seed_effect)])
    held = 0
    for _ in range(400):
        differences = (
            true
            + seed_effect * random.standard_normal((seeds, 1))
            + 0.3 * random.standard_normal((1, 60))
            + random.standard_normal((seeds, 60))
        )
        interval = difference_of(differences, np.arange(60)).interval
        assert interval is not None
        held += interval[0] <= true <= interval[1]
    assert 0.92 <= held / 400 <= 0.995
