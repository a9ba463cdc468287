"""Which families real vLLM serves on a CPU as they were trained: a table for docs/models.md, some twenty minutes.

    python -m tests.benchmarks.served_families [FAMILY ...]

Ends with 1 where a family does otherwise than the lists in tests.served_families say.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.families import FAMILIES
from tests.served_families import HEAD, HEADLESS, OTHERWISE, Outcome, look_at

COLUMNS = "| model_type | certificate | at most, nats a token | adapters and a trained head |\n|---|---|---|---|"


def row(family: str) -> tuple[str, bool]:
    """A family's line of the table, and whether it is as the lists say."""
    plain, headed = (_looked_at(family, trains_head=trains_head) for trains_head in (False, True))
    head = HEADLESS.get(family, "used")
    if plain.certificate is None:
        return f"| `{family}` | not served: {plain.refusal} | | |", False
    passed, most = plain.certificate.passed, plain.certificate.likelihoods.max_difference
    found = "refused" if headed.certificate is None else "used" if headed.certificate.passed else "ignored"
    said = {"used": "passes", "ignored": "fails", "refused": "vLLM refuses to load it"}[found]
    verdict = "passes" if passed else f"fails: {OTHERWISE.get(family, 'unexpectedly')}"
    for reason in plain.certificate.reasons:
        print(f"{family}: {reason}", file=sys.stderr)
    as_listed = passed == (family not in OTHERWISE) and plain.answered > 0 and found == head
    return f"| `{family}` | {verdict} | {most or 0:.0e} | {said} |", as_listed


def _looked_at(family: str, *, trains_head: bool) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return look_at(Path(folder), family, lora=HEAD if trains_head else None)


def main() -> None:
    """Look at the families named on the command line, else at all."""
    rows = [row(family) for family in sys.argv[1:] or FAMILIES]
    print(COLUMNS, *(line for line, _ in rows), sep="\n")
    sys.exit(not all(as_listed for _, as_listed in rows))


if __name__ == "__main__":
    main()
