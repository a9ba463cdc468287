"""What Python's JSON parser would let through or stumble over, found in the bytes before it sees them."""

from __future__ import annotations

import re

DEEPEST = 64

# A whole string without half of a surrogate pair, which JSON allows, and which is no text that a tokenizer takes.
_STRING = re.compile(
    rb'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u(?:[0-9a-cefA-CEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}'
    rb"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})))*+" + b'"'
)
# Python reads NaN and Infinity, and 1e999 as infinity.
_NOT_FINITE = re.compile(rb"NaN|Infinity|[eE][+-]?[0-9]{3}|[0-9]{101}")
_BRACKETS = re.compile(rb"[\[\]{}]")
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


def problem(body: bytes) -> str | None:
    """Why a body is not taken as JSON, as an end of a sentence; None if nothing was found.

    The grammar is left to the parser: this looks at the encoding, strings, numbers that are none, and depth.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 at byte {error.start}"
    # The parser takes text with zero bytes for UTF-16 or UTF-32, and would see other strings than are seen here.
    if b"\0" in body:
        return "not valid UTF-8: it has a zero byte"
    bare = _STRING.sub(b"", body)
    if b'"' in bare:
        return "not valid JSON: a string does not end, has a wrong escape, or half of a surrogate pair"
    if _NOT_FINITE.search(bare):
        return "not valid JSON: a number is not finite or out of range"
    depth = 0
    for bracket in _BRACKETS.finditer(bare):
        depth += _STEP[bracket[0]]
        if depth > DEEPEST:
            return f"nested more than {DEEPEST} levels deep"
    return None
