"""A row's own checkable answer: whether a text answers it, decided without a judge.

A check is a small JSON object stored beside a prompt, told apart by its ``kind``. Checks are strict on purpose: the
answer is trimmed of outer white space and must then be the answer and nothing else, so that an evasive, chatty,
rambling or rude text does not pass by mentioning the right word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from slime_ray.errors import DataError

COURTESIES = ("sorry", "i am sorry", "i'm sorry", "i apologize", "my apologies", "i understand", "thank you")
"""How an answer to a rude user may begin, in lower case."""

_FILLERS = frozenset({"ah", "answer", "hm", "oh", "ok", "okay", "output", "result", "so", "sure", "ugh", "well", "wow"})
_UNHELPFUL = re.compile(
    r"\b(can't|cannot|won't|unable|not able|not sure|rather not|no opinion|it depends|yourself|stupid|silly|idiot|dumb"
    r"|shut up|stop asking|annoying|ugh)\b"
)
_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,'-]*[.!?]")


class _Check(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ExactCheck(_Check):
    """The answer is this text, letter by letter."""

    kind: Literal["exact"]
    value: str = Field(min_length=1)

    def accepts(self, answer: str) -> bool:
        """Whether the trimmed ``answer`` equals the value."""
        return answer == self.value


class OneOfCheck(_Check):
    """The answer is one of these texts, letter by letter."""

    kind: Literal["one_of"]
    values: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)

    def accepts(self, answer: str) -> bool:
        """Whether the trimmed ``answer`` equals one of the values."""
        return answer in self.values


class JsonCheck(_Check):
    """The answer is a JSON text (RFC 8259) of this value; white space and the order of keys are free."""

    kind: Literal["json"]
    value: JsonValue

    def accepts(self, answer: str) -> bool:
        """Whether ``answer`` parses to the value, without repeated keys; 1, 1.0 and true are three values."""
        try:
            found = json.loads(answer, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
            return _canonical(found) == _canonical(self.value)
        except (ValueError, RecursionError):
            return False


class OneSentenceCheck(_Check):
    """The answer is one plain sentence of at most ``max_words`` words in which all of ``words`` occur."""

    kind: Literal["one_sentence"]
    words: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    max_words: int = Field(gt=0)

    def accepts(self, answer: str) -> bool:
        """Whether ``answer`` is such a sentence and does not begin with a filler such as "well"."""
        if _SENTENCE.fullmatch(answer) is None:
            return False
        found = _words(answer)
        return (
            len(found) <= self.max_words
            and found[0] not in _FILLERS
            and all(word.lower() in found for word in self.words)
        )


class GreetingCheck(_Check):
    """The answer is one of ``openings`` and the name, with "." or "!" at the end, and nothing else."""

    kind: Literal["greeting"]
    openings: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    name: str = Field(min_length=1)

    def accepts(self, answer: str) -> bool:
        """Whether ``answer`` is such a greeting; a comma before the name is free."""
        openings = "|".join(re.escape(opening) for opening in self.openings)
        return re.fullmatch(rf"(?:{openings}),? {re.escape(self.name)}[.!]", answer) is not None


class PoliteCheck(_Check):
    """The answer begins with a courtesy, contains ``value`` as a word, and is neither rude, evasive nor long."""

    kind: Literal["polite"]
    value: str = Field(min_length=1)
    max_words: int = Field(gt=0)

    def accepts(self, answer: str) -> bool:
        """Whether ``answer`` is courteous (see ``COURTESIES``) and still answers."""
        lowered = answer.lower()
        courteous = any(re.match(rf"{re.escape(courtesy)}\b", lowered) for courtesy in COURTESIES)
        answered = re.search(rf"(?<!\w){re.escape(self.value.lower())}(?!\w)", lowered) is not None
        return courteous and answered and not _UNHELPFUL.search(lowered) and len(_words(answer)) <= self.max_words


Check = Annotated[
    ExactCheck | OneOfCheck | JsonCheck | OneSentenceCheck | GreetingCheck | PoliteCheck, Field(discriminator="kind")
]
"""Any of the checks, told apart by ``kind``."""

_ADAPTER: TypeAdapter[Check] = TypeAdapter(Check)


def parse_check(check: Mapping[str, object]) -> Check:
    """Read a check from its JSON object; raises ``DataError`` that names every field at fault."""
    try:
        return _ADAPTER.validate_python(dict(check))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'check'}: {fault['msg']}" for fault in error.errors()
        )
        raise DataError(f"a row's check is not valid: found {_shown(check)}; {faults}") from error


def passes(check: Mapping[str, object] | Check, answer: str) -> bool:
    """Whether ``answer``, without its outer white space, is what ``check`` asks for.

    ``check`` is a check or the JSON object of one; a malformed object raises ``DataError``.
    """
    parsed = parse_check(check) if isinstance(check, Mapping) else check
    return parsed.accepts(answer.strip())


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9'-]+", text.lower())


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _canonical(value: object) -> str:
    # As text, since Python holds 1 == 1.0 == True.
    return json.dumps(value, sort_keys=True)


def _shown(check: object, *, limit: int = 200) -> str:
    text = repr(check)
    return text if len(text) <= limit else f"{text[:limit]}..."
