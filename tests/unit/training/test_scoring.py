"""Scores side by side are over the same pairs, and their figures are those of the pairs."""

from __future__ import annotations

import pytest

from slime_ray.errors import DataError
from slime_ray.training.scoring import Answer, Score, check_comparable


def score(model: str, sources: tuple[str, ...]) -> Score:
    logps = tuple(-1.0 for _ in sources)
    return Score(model=model, sources=sources, chosen=logps, rejected=logps, answers=())


def test_scores_over_other_pairs_are_not_put_side_by_side() -> None:
    check_comparable([score("one", ("a:1", "a:2")), score("two", ("a:1", "a:2"))])
    with pytest.raises(DataError, match=r"^a:2: usable for only one of one and two \(and 1 more\); raise --max-length"):
        check_comparable([score("one", ("a:1", "a:2")), score("two", ("a:1", "a:3"))])


def test_the_figures_are_means_over_the_pairs_with_their_intervals() -> None:
    answers = tuple(
        Answer(source=f"a:{n}", prompt="p", greedy="g", sampled="s", greedy_passed=passed, sampled_passed=None)
        for n, passed in enumerate([True, False, True, None])
    )
    found = Score(
        model="m",
        sources=("a:0", "a:1", "a:2", "a:3"),
        chosen=(-1.0, -2.0, -3.0, -2.0),
        rejected=(-2.0, -2.0, -1.0, -5.0),
        answers=answers,
    ).means()
    # Differences 1, 0, -2, 3: mean 0.5, variance (0.25 + 0.25 + 6.25 + 6.25) / 3 = 13 / 3.
    assert found["margin"].value == 0.5
    assert found["margin"].half_width == pytest.approx(1.96 * (13 / 3 / 4) ** 0.5)
    assert found["accuracy"].value == 0.5  # a tie is no win
    assert found["checked, greedy"].value == pytest.approx(2 / 3)
    assert "checked, sampled" not in found
