"""What passes the scan is parsed to plain values of bounded depth; what any client sends as JSON passes it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slime_ray.serving.gateway.json_scan import DEEPEST, problem

# 17 digits and an exponent of two: what floats of a request look like.
NUMBERS = st.integers(-(10**90), 10**90) | st.floats(-1e99, 1e99).filter(lambda x: x == 0 or abs(x) > 1e-99)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=30,
)
# Pieces that are near to what the scan has to tell apart.
PIECES = [b'"', b"\\", b"\\u", b"\\ud83d", b"\\ude00", b"d800", b"[", b"]", b"{", b"}", b":", b",", b"NaN", b"Infinity"]
PIECES += [b"-", b"1e999", b"1E+400", b"9" * 120, b"1", b"a", b" ", b"\0", b"\xff", b"\xc3\xa9", b"\n", b"\xef\xbb\xbf"]


@given(VALUES, st.booleans())
@example("\\ud800", True)  # an escaped backslash and five letters
@example('"', False)
@example("NaN Infinity 1e999 [[[", True)
def test_what_a_client_sends_passes(value: Any, ascii_only: bool) -> None:
    assert problem(json.dumps(value, ensure_ascii=ascii_only).encode()) is None


@given(st.binary() | st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join))
@example(b'"\\\\\\ud800"')
@example(b'["\\ude00\\ud83d"]')
@example('{"a": "\\ud800"}'.encode("utf-16-le"))
@example(b"[" * 5000)
@example(b"[1e999]")
def test_what_passes_is_harmless(body: bytes) -> None:
    if problem(body) is not None:
        return
    try:
        value = json.loads(body)
    except ValueError:
        return  # the parser's to refuse
    _look(value, depth=0)


def _look(value: Any, *, depth: int) -> None:
    assert depth <= DEEPEST
    match value:
        case str():
            value.encode()  # fails for half of a surrogate pair
        case float():
            assert math.isfinite(value)
        case int():
            float(value)
        case list():
            for inner in value:
                _look(inner, depth=depth + 1)
        case dict():
            for name, inner in value.items():
                _look(name, depth=depth + 1)
                _look(inner, depth=depth + 1)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 7"),
        ('{"a": 1}'.encode("utf-16-le"), "zero byte"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": "\\x"}', "wrong escape"),
        (b'{"a": "b', "does not end"),
        (b'{"temperature": NaN}', "not finite"),
        (b'{"temperature": -Infinity}', "not finite"),
        (b'{"temperature": 1e999}', "not finite or out of range"),
        (b'{"seed": ' + b"7" * 400 + b"}", "out of range"),
        (b"[" * 65 + b"]" * 65, "more than 64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "more than 64 levels"),
    ],
)
def test_each_problem_is_named(body: bytes, said: str) -> None:
    found = problem(body)
    assert found is not None
    assert said in found


@pytest.mark.parametrize(
    "body", [b"[" * 64 + b"]" * 64, b'["[[[[", "\\"[", "\\ud83d\\ude00"]', b"[]" * 500, b'"\\u00e9"']
)
def test_what_only_looks_like_one_passes(body: bytes) -> None:
    assert problem(body) is None
