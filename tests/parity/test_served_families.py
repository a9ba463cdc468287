"""Checkpoints that we trained, on real vLLM: what it serves as it was trained gets its certificate, what it does not
fails. Every family: python -m tests.benchmarks.served_families.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from slime_ray.serving.certificate import read_certificate
from tests.families import FAMILIES
from tests.served_families import HEAD, HEADLESS, OTHERWISE, look_at

# The one that differs most from what other tests serve: a mixture of experts.
SERVED = ["mixtral"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", SERVED)
def test_a_tied_family_is_served_as_it_was_trained(family: str, tmp_path: Path) -> None:
    found = look_at(tmp_path, family)
    assert found.certificate is not None, found.refusal
    assert found.certificate.passed, found.certificate.reasons
    assert found.certificate.likelihoods.max_difference is not None
    assert 0 < found.certificate.likelihoods.max_difference < 1e-3
    assert found.certificate.stops.stopping == (1,)
    assert found.answered > 0
    kept = tmp_path / "runs" / found.certificate.run
    assert read_certificate(kept, files_hash=found.certificate.files) == found.certificate


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_trained_head_that_vllm_does_not_use_fails(tmp_path: Path) -> None:
    assert HEADLESS["cohere"] == "ignored"
    found = look_at(tmp_path, "cohere", lora=HEAD)
    assert found.certificate is not None, found.refusal
    assert not found.certificate.passed
    (reason,) = found.certificate.reasons
    assert reason.startswith("log-probabilities are")
    assert found.certificate.prompts.mismatches == 0
    assert found.certificate.stops.stopping == (1,)


def test_the_lists_are_of_families_that_there_are() -> None:
    assert {*SERVED, *HEADLESS, *OTHERWISE} <= set(FAMILIES)
    assert not {*SERVED} & {*OTHERWISE}
