"""What tests of studies share."""

from __future__ import annotations

from tests.studies import write_study

__all__ = ["write_study"]
