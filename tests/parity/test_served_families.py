"""A checkpoint that vLLM does not serve as it was trained fails its certificate.

Those that pass: tests/e2e/test_quickstart.py; every family: python -m tests.benchmarks.served_families.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import FAMILIES
from tests.served_families import HEAD, HEADLESS, OTHERWISE, look_at


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
    assert {*HEADLESS, *OTHERWISE} <= set(FAMILIES)
