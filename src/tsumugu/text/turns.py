"""Conversations as a model learns them: the tokens of a chat template, and which of them are the assistant's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsumugu.core.errors import InputError
from tsumugu.text.chat import RenderedChat

if TYPE_CHECKING:
    from tsumugu.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

PLAIN = """
{%- if bos_token is defined %}{{ bos_token }}{% endif %}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{{- '### Response:\\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n\\n' }}
{%- elif message['role'] == 'system' %}
{{- message['content'] + '\\n\\n' }}
{%- else %}
{{- '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}
"""
"""A template for models that have none.

Source: Taori et al. 2023, Stanford Alpaca, the form of its prompts.
"""


@dataclass(frozen=True)
class Turns:
    """A conversation in tokens.

    Attributes:
        ids: `[time]`.
        own: `[time]`, 1 where a token is of an answer that is to be learnt, the token that ends it included.
    """

    ids: list[int]
    own: list[int]


def encode_turns(tokenizer: Tokenizer, messages: Sequence[Message], *, where: str, begin: int = 0) -> list[Turns]:
    """A conversation as its chat template writes it, with the assistant's turns marked.

    Where a turn lies is what a generation block of the template says, or else what stands between the conversation
    before it, with the words that open an answer, and the conversation with it. A template that writes a turn in
    another way once others follow it makes one conversation for each answer.

    Args:
        tokenizer: with a chat template.
        messages: with a role and a content each.
        where: the example, for messages.
        begin: only what the assistant says from this message on is marked.

    Raises:
        InputError: the template refuses the conversation, or nothing tells where an answer begins.
    """

    def render(messages: Sequence[Message], *, opened: bool = False) -> str:
        try:
            text = tokenizer.apply_chat_template([*messages], add_generation_prompt=opened, tokenize=False)
        except InputError as error:
            raise InputError(error.what, where=where, mend=error.mend) from None
        return str(text)

    answers = [at for at, each in enumerate(messages) if at >= max(begin, 1) and each["role"] == "assistant"]
    if not answers:
        raise InputError("there is no answer to learn from", where=where)
    text = render(messages)
    if begin == 0 and (blocks := tokenizer.render_chat([*messages]).generated):
        return [_tokens(tokenizer, RenderedChat(text, blocks))]
    spans = list(_between(render, text, messages, answers))
    if None not in spans:
        return [_tokens(tokenizer, RenderedChat(text, [each for each in spans if each is not None]))]
    found = []
    for at in answers:
        text = render(messages[: at + 1])
        (span,) = _between(render, text, messages, [at])
        if span is None:
            what = "the template does not go on with an answer as it opens one"
            raise InputError(what, where=where, mend="put a generation block around the answers in the chat template")
        found.append(_tokens(tokenizer, RenderedChat(text, [span])))
    return found


def _between(
    render: Callable[..., str], text: str, messages: Sequence[Message], answers: Sequence[int]
) -> Iterator[tuple[int, int] | None]:
    """Where each answer lies in `text`, without the blanks that the template puts behind it; None: nothing tells."""
    for at in answers:
        before, upto = render(messages[:at], opened=True), render(messages[: at + 1])
        if not upto.startswith(before) or not text.startswith(upto):
            yield None
        else:
            yield len(before), max(len(before), len(upto.rstrip()))


def _tokens(tokenizer: Tokenizer, chat: RenderedChat) -> Turns:
    encoded = tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    return Turns(ids, chat.mask(encoded["offset_mapping"], [0] * len(ids)))
