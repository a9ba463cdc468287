"""A tokenizer with its chat template: what a prompt looks like to the model, and where an answer ends."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slime_ray.copies import local_name
from slime_ray.data.messages import Message
from slime_ray.errors import DataError, ModelError
from slime_ray.storage import json_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Templates that print today's date would change every token cache and everything hashed from it each day.
_TODAY = datetime.datetime(2024, 7, 26)
# transformers gives templates a function strftime_now that nothing passed to a template can replace; a macro of that
# name before the template hides it. Its line end is cut by the environment, which cuts one after every block.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('%{letter}', '{_TODAY.strftime(f'%{letter}')}')" for letter in "aAbBdejmyYHIMSp")
    + " }}{%- endmacro %}\n"
)
_SENTINEL = "SLIMEPROBE"
# Tells tokenizers apart that have the same vocabulary but cut or normalise text differently.
_PROBE_TEXT = "Hello,  World! 1234 don't\n\n\tÉté ﬁ ９ 日本語 🙂 </s> naïve"

TemplateProblem = Literal["refused", "no_continuation", "missing_end_of_turn"]


class ChatTemplateError(DataError):
    """A chat template and a row do not go together."""

    def __init__(self, kind: TemplateProblem, message: str) -> None:
        super().__init__(message)
        self.kind: TemplateProblem = kind

    def __reduce__(self) -> tuple[type[ChatTemplateError], tuple[TemplateProblem, str]]:
        """Errors travel from the processes that tokenise to the one that writes."""
        return type(self), (self.kind, str(self))


def load_tokenizer(name: str, chat_template: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a hub name with an optional ``@revision``; ``chat_template`` is a Jinja file.

    Raises:
        ModelError: there is no such tokenizer, or it has no chat template and none is given.
    """
    from transformers import AutoTokenizer

    name = local_name(name)
    folder, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        reason = "its tokenizer cannot be loaded" if Path(name).is_dir() else "no such folder, nor a reachable hub name"
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise ModelError(f"tokenizer {name}: {reason} ({detail})") from None
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(local_name(chat_template)).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"model.chat_template = {chat_template!r}: not a readable Jinja file ({error})") from None
    if not tokenizer.chat_template:
        raise ModelError(f'tokenizer {name} has no chat template; set model.chat_template = "FILE.jinja"')
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the vocabulary, the added tokens, the chat template, and how a fixed text is cut."""
    added = {number: (str(token), token.special) for number, token in sorted(tokenizer.added_tokens_decoder.items())}
    parts = [
        sorted(tokenizer.get_vocab().items()),
        added,
        tokenizer.bos_token,
        tokenizer.chat_template,
        _ids(tokenizer, _PROBE_TEXT),
    ]
    return json_hash(parts)


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The rules of one tokenizer's chat template.

    ``end_of_turn_id`` is the token that the template puts after an assistant's answer, and None where it puts none.
    """

    tokenizer: PreTrainedTokenizerBase
    end_of_turn_id: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        """Find the end of a turn by rendering a conversation whose answer is known.

        Raises:
            ModelError: the template is broken, or does not print the assistant's answer.
        """
        probe: list[Message] = [{"role": "user", "content": "probe"}, {"role": "assistant", "content": _SENTINEL}]
        try:
            text = cls(tokenizer, None)._rendered(probe, None, generation_prompt=False, source="a probe conversation")
        except ChatTemplateError as problem:
            raise ModelError(str(problem)) from None
        _, found, after = text.rpartition(_SENTINEL)
        if not found:
            raise ModelError(f"the chat template of {tokenizer.name_or_path} does not print the assistant's answer")
        special = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
        return cls(tokenizer, next((number for number in _ids(tokenizer, after) if number in special), None))

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-sequence token's number, if the tokenizer has one."""
        number = self.tokenizer.bos_token_id
        return number if isinstance(number, int) else None

    def require_end_of_turn(self) -> int:
        """The end-of-turn token's number.

        Raises:
            ModelError: the template has none; a model trained with it would never stop.
        """
        if self.end_of_turn_id is None:
            raise ModelError(
                f"the chat template of {self.tokenizer.name_or_path} puts no special token after an assistant's "
                "answer, so a model trained with it would never stop; set model.chat_template to one that does"
            )
        return self.end_of_turn_id

    def prompt_ids(self, prompt: Sequence[Message], tools: Sequence[Any] | None, source: str) -> list[int]:
        """The tokens that a server would send for this prompt: the template's, with the opening of an answer.

        Raises:
            ChatTemplateError: the template refuses the conversation.
        """
        return _ids(self.tokenizer, self._rendered(prompt, tools, generation_prompt=True, source=source))

    def encode(
        self,
        prompt: Sequence[Message],
        answers: Sequence[Sequence[Message]],
        tools: Sequence[Any] | None,
        source: str,
    ) -> tuple[list[int], list[list[int]]]:
        """The tokens of a prompt, and of each answer to it up to and with its end-of-turn token.

        Prompt and answer are tokenised apart: the prompt's tokens are those that a server sends, whatever the answer.

        Raises:
            ChatTemplateError: the template refuses a conversation, its text does not continue the prompt's, or no
                end-of-turn token follows the answer.
        """
        begun = self._rendered(prompt, tools, generation_prompt=True, source=source)
        wholes = [
            self._rendered([*prompt, *answer], tools, generation_prompt=False, source=source) for answer in answers
        ]
        return _ids(self.tokenizer, begun), [self._answer_ids(begun, whole, source) for whole in wholes]

    def encode_turns(
        self, messages: Sequence[Message], turns: Sequence[int], tools: Sequence[Any] | None, source: str
    ) -> tuple[list[int], list[int], list[bool]]:
        """The tokens of a conversation several messages of which are answers, in three parts.

        Every piece is tokenised apart: the prompt with the opening of an answer, an answer up to and with its
        end-of-turn token, what others say up to the opening of the next. So what stands before an answer has the
        tokens that a server sends, but where it would merge an earlier answer's beginning with its opening.

        Args:
            turns: the answers' places in ``messages``, ascending, at least one.

        Returns:
            The prompt up to the opening of the first answer; everything from there to the last answer's end-of-turn;
            which of these belong to an answer.

        Raises:
            ChatTemplateError: as for `encode`, and if an answer or what stands before it is printed differently once
                the conversation goes on.
        """
        prompt_ids: list[int] = []
        ids: list[int] = []
        trained: list[bool] = []
        said = ""
        for number, turn in enumerate(turns):
            begun = self._rendered(messages[:turn], tools, generation_prompt=True, source=source)
            whole = self._rendered(messages[: turn + 1], tools, generation_prompt=False, source=source)
            if not begun.startswith(said):
                raise ChatTemplateError(
                    "no_continuation",
                    f"{source}: under the chat template the conversation does not continue its answer {number}, as "
                    'where earlier reasoning is dropped; set data.turns = "last", or model.chat_template to one that '
                    "prints earlier turns as they were",
                )
            if number == 0:
                prompt_ids = _ids(self.tokenizer, begun)
            else:
                ids += self._after_turn(begun[len(said) :])
            trained += [False] * (len(ids) - len(trained))
            ids += self._answer_ids(begun, whole, source)
            trained += [True] * (len(ids) - len(trained))
            said = whole[: whole.rindex(self._end_of_turn) + len(self._end_of_turn)]
        return prompt_ids, ids, trained

    @property
    def _end_of_turn(self) -> str:
        """The end-of-turn token as it stands in a text."""
        return str(self.tokenizer.convert_ids_to_tokens(self.require_end_of_turn()))

    def _after_turn(self, text: str) -> list[int]:
        """The tokens of a text behind an end of a turn, where some tokenizers cut otherwise than at a beginning."""
        first, *ids = _ids(self.tokenizer, self._end_of_turn + text)
        assert first == self.end_of_turn_id
        return ids

    def _answer_ids(self, begun: str, whole: str, source: str) -> list[int]:
        if not whole.startswith(begun):
            raise ChatTemplateError(
                "no_continuation",
                f"{source}: under the chat template the conversation does not continue the prompt, so the answer "
                "cannot be told from it; expected a template that opens an answer as it prints one",
            )
        answer_ids = _ids(self.tokenizer, whole[len(begun) :])
        # Text after the end of the turn, such as the "\n" of Qwen's template, is never generated.
        while answer_ids and answer_ids[-1] != self.end_of_turn_id:
            answer_ids.pop()
        if not answer_ids:
            raise ChatTemplateError(
                "missing_end_of_turn",
                f"{source}: the chat template puts no end-of-turn token after the answer; a model would never stop",
            )
        return answer_ids

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, *, generation_prompt: bool, source: str
    ) -> str:
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                chat_template=_FIXED_DATE + self.tokenizer.get_chat_template(tools=list(tools) if tools else None),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                date_string=_TODAY.strftime("%d %b %Y"),
            )
        # A template is a program in the user's hands: besides its own refusals it can fail as Python does.
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ChatTemplateError(
                "refused", f"{source}: the chat template refuses the conversation: {error}"
            ) from None
        assert isinstance(text, str)
        return text


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
