"""Conversations to learn from, in the forms that people keep them in, and pairs of a better and a worse answer.

Read are `messages` with role and content (or `conversations` with from and value), instruction with input and output,
prompt with completion; and for preferences prompt, chosen and rejected, as texts or as messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.data.labelled.examples import ConversationExample, Message, PreferenceExample
from tsumugu.data.rows import Row

if TYPE_CHECKING:
    from tsumugu.data.labelled.checks import Reader

ROLES = ("system", "user", "assistant", "tool", "developer")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}
"""What other files call the roles."""


@dataclass(frozen=True)
class _Place:
    """A part of a row, for errors."""

    reader: Reader
    row: Row
    part: str

    def refuse(self, what: str, mend: str | None = None) -> InputError:
        return self.reader.refuse(self.row, self.part, what, mend)


def conversation_example(reader: Reader, row: Row, common: dict[str, Any]) -> ConversationExample:
    """A conversation; an instruction, or a prompt, is one of two messages."""
    if "messages" in reader.columns:
        place = _Place(reader, row, "messages")
        messages = _messages(place, reader.get(row, "messages"))
    else:
        place = _Place(reader, row, "answer")
        asked = _asked(reader, row, "prompt")
        if "input" in reader.columns and (more := reader.text(row, "input", empty=True)).strip():
            asked = (*asked[:-1], {**asked[-1], "content": f"{asked[-1]['content']}\n\n{more}"})
        if "system" in reader.columns and (system := reader.text(row, "system", empty=True)).strip():
            asked = ({"role": "system", "content": system}, *asked)
        messages = (*asked, *_answered(reader, row, "answer"))
    if not any(each["role"] == "assistant" and at for at, each in enumerate(messages)):
        raise place.refuse("the assistant answers nothing", 'a message with "role": "assistant" comes after another')
    return ConversationExample(messages=messages, **common)


def preference_example(reader: Reader, row: Row, common: dict[str, Any]) -> PreferenceExample:
    """What was asked, and two answers; where messages hold both, what they begin with alike was asked."""
    chosen, rejected = (_answered(reader, row, part) for part in ("chosen", "rejected"))
    if "prompt" in reader.columns:
        asked = _asked(reader, row, "prompt")
        chosen, rejected = (_rest(each, asked) for each in (chosen, rejected))
    else:
        alike = 0
        while alike < min(len(chosen), len(rejected)) and chosen[alike] == rejected[alike]:
            alike += 1
        asked, chosen, rejected = chosen[:alike], chosen[alike:], rejected[alike:]
    for part, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[0]["role"] != "assistant":
            raise reader.refuse(row, part, "holds no answer of its own", "the assistant's answers must differ")
    if chosen == rejected:
        raise reader.refuse(row, "rejected", "is the same as what was chosen")
    if not asked:
        raise reader.refuse(row, "chosen", "answers nothing", "give a prompt, or begin with the user's message")
    return PreferenceExample(prompt=asked, chosen=chosen, rejected=rejected, **common)


def _rest(answer: tuple[Message, ...], asked: tuple[Message, ...]) -> tuple[Message, ...]:
    """An answer without the prompt, which many files repeat."""
    for begin in (asked, tuple(each for each in asked if each["role"] != "system")):
        if begin and answer[: len(begin)] == begin:
            return answer[len(begin) :]
    return answer


def _asked(reader: Reader, row: Row, part: str) -> tuple[Message, ...]:
    return _either(reader, row, part, "user")


def _answered(reader: Reader, row: Row, part: str) -> tuple[Message, ...]:
    return _either(reader, row, part, "assistant")


def _either(reader: Reader, row: Row, part: str, role: str) -> tuple[Message, ...]:
    """A text is one message of `role`; a list, or JSON of one, is messages."""
    value = reader.get(row, part)
    if isinstance(value, str):
        return ({"role": role, "content": reader.text(row, part)},)
    return _messages(_Place(reader, row, part), value)


def _messages(place: _Place, value: Any) -> tuple[Message, ...]:
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except ValueError as error:
            raise place.refuse(f"is not JSON ({error})") from None
    if callable(getattr(value, "tolist", None)):
        value = value.tolist()
    if not isinstance(value, list) or not value:
        raise place.refuse("holds no messages", 'write [{"role": "user", "content": "…"}, …]')
    return tuple(_message(place, at, each) for at, each in enumerate(value))


def _message(place: _Place, at: int, value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise place.refuse(f"message {at} is no object", '{"role": "user", "content": "…"}')
    given: dict[str, Any] = {key: each for key, each in value.items() if each is not None}
    if "role" not in given and "from" in given:
        given = {"role": given.pop("from"), "content": given.pop("value", None), **given}
    role = _ROLES.get(given.get("role", ""), given.get("role"))
    if role not in ROLES:
        raise place.refuse(f"message {at} has the role {role!r}", did_you_mean(str(role), [*ROLES, *_ROLES]))
    content = given.get("content")
    if not isinstance(content, str) and not (content is None and "tool_calls" in given):
        raise place.refuse(f"the content of message {at} is no text")
    if content is not None:
        place.reader.checked_text(place.row, place.part, content, empty=role != "assistant" or "tool_calls" in given)
    return {**given, "role": role, "content": content or ""}
