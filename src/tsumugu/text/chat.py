"""Chat templates: Jinja programs that write a conversation as the text a model was trained on.

A template comes with a checkpoint from anywhere, so it runs in a sandbox: it reaches no Python attribute,
changes nothing it is given, and is stopped when it runs too long or writes too much.

Source: the template conventions of the Hugging Face Hub (trim_blocks, lstrip_blocks, loop controls, `tojson`
without HTML escapes, `raise_exception`, `strftime_now`, the `generation` block).
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tsumugu.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True)
class RenderedChat:
    """One conversation as text, and where the assistant's own words lie in it ([start, end) in characters)."""

    text: str
    generated: list[tuple[int, int]] = field(default_factory=list)

    def mask(self, offsets: Sequence[tuple[int, int]], special: Sequence[int]) -> list[int]:
        """1 for every token that overlaps what a generation block wrote, 0 for the others and for padding."""
        starts = [start for start, _ in self.generated]
        mask = []
        for start, end in offsets:
            i = bisect.bisect_left(starts, end) - 1
            mask.append(int(start < end and i >= 0 and self.generated[i][1] > start))
        return mask


@dataclass(frozen=True)
class Rendered:
    """The conversations of one call, and whether they came as a batch."""

    chats: list[RenderedChat]
    batched: bool


class ChatTemplates:
    """A checkpoint's chat template, or several by name.

    Args:
        source: a template, a mapping from names to templates, or None.
    """

    def __init__(self, source: str | Mapping[str, str] | None) -> None:
        if source is not None and not isinstance(source, str | Mapping):
            raise InputError(f"expected a template, found {type(source).__name__}", where="chat_template")
        self.source: str | dict[str, str] | None = dict(source) if isinstance(source, Mapping) else source

    def choose(self, template: str | None, *, tools: bool) -> str:
        """The template to use: a named one, one handed in, the one for tools, or the default."""
        named = self.source if isinstance(self.source, dict) else {}
        if template is not None:
            if template in named:
                return named[template]
            if named and "{" not in template:
                raise InputError(
                    f"no chat template is called {template!r}",
                    where="chat_template",
                    mend=did_you_mean(template, named),
                )
            return template
        if isinstance(self.source, str):
            return self.source
        if tools and "tool_use" in named:
            return named["tool_use"]
        if "default" in named:
            return named["default"]
        if named:
            raise InputError(
                "there is no default chat template", where="chat_template", mend=f"choose: {', '.join(sorted(named))}"
            )
        raise InputError(
            "this tokenizer has no chat template",
            where="chat_template",
            mend="it may not be a chat model; set tokenizer.chat_template to a Jinja template",
        )

    def render(
        self,
        messages: Any,
        *,
        special_tokens: Mapping[str, str],
        template: str | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """Render one conversation or a list of them. See `Tokenizer.apply_chat_template`."""
        if continue_final_message and add_generation_prompt:
            raise InputError(
                "a message cannot both go on and be followed by a new one",
                where="continue_final_message",
                mend="leave out add_generation_prompt",
            )
        batched = isinstance(messages, list | tuple) and bool(messages) and isinstance(messages[0], list | tuple)
        source = self.choose(template, tools=bool(tools))
        schemas = None if tools is None else [_check_tool(each, f"tools[{i}]") for i, each in enumerate(tools)]
        chats = []
        for i, chat in enumerate(messages if batched else [messages]):
            chat = check_messages(chat, where=f"messages[{i}]" if batched else "messages")
            values = {
                **special_tokens,
                **(variables or {}),
                "messages": chat,
                "tools": schemas,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
            }
            rendered = _render(source, values)
            chats.append(_leave_open(rendered, chat) if continue_final_message else rendered)
        return Rendered(chats, batched)


def _check_tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        mend = 'describe it as a JSON schema: {"type": "function", "function": {"name": …, "parameters": …}}'
        raise InputError(f"expected a dict, found {type(tool).__name__}", where=where, mend=mend)
    return dict(tool)


def check_messages(messages: Any, *, where: str) -> list[dict[str, Any]]:
    """Messages as templates expect them: a list of dicts with a role, text parts of the content joined to one text.

    Raises:
        InputError: what is wrong, and in which message.
    """
    mend = 'a list like [{"role": "user", "content": "Hello"}]'
    if not isinstance(messages, list | tuple):
        raise InputError(f"expected a list of messages, found {type(messages).__name__}", where=where, mend=mend)
    if not messages:
        raise InputError("there is no message", where=where, mend=mend)
    return [_check_message(each, f"{where}[{i}]", mend) for i, each in enumerate(messages)]


def _check_message(message: Any, where: str, mend: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"expected a dict, found {type(message).__name__}", where=where, mend=mend)
    if not isinstance(message.get("role"), str):
        what = "the message has no role" if "role" not in message else "the role is not text"
        raise InputError(what, where=where, mend='"role" is "system", "user", "assistant" or "tool"')
    content = message.get("content")
    if "content" not in message and not any(key in message for key in ("tool_calls", "tool_call_id", "function_call")):
        near = [key for key in message if key != "role"]
        found = f"; it has {', '.join(map(repr, near))}" if near else ""
        raise InputError(f"the message has no content{found}", where=where, mend=mend)
    if content is None or isinstance(content, str):
        return dict(message)
    if not isinstance(content, list | tuple):
        what = f"expected text or a list of text parts, found {type(content).__name__}"
        raise InputError(what, where=f"{where}.content")
    texts = []
    for i, part in enumerate(content):
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            what = f"expected a part like {{'type': 'text', 'text': …}}, found {kind!r}"
            raise InputError(what, where=f"{where}.content[{i}]")
        texts.append(text)
    return {**message, "content": "".join(texts)}


def render_template(source: str, values: Mapping[str, Any]) -> str:
    """A template of one's own with values filled in, in the same sandbox.

    Raises:
        InputError: the template is none, fails, or does too much.
    """
    return _render(source, values).text


def _leave_open(rendered: RenderedChat, messages: list[dict[str, Any]]) -> RenderedChat:
    """Cut off what the template wrote after the last message's words."""
    final = messages[-1].get("content")
    for words in (final, final.strip()) if isinstance(final, str) else ():
        at = rendered.text.rfind(words)
        if at >= 0 and words:
            end = at + len(words)
            return RenderedChat(rendered.text[:end], [(a, min(b, end)) for a, b in rendered.generated if a < end])
    raise InputError("the template does not write the last message as it stands", where="continue_final_message")


def _render(source: str, values: Mapping[str, Any]) -> RenderedChat:
    """Run a template within its budget; every way in which it can fail becomes one clear line."""
    import jinja2

    from tsumugu.text.sandbox import MAX_SOURCE, Budget, Refusal, TooMuch

    if len(source) > MAX_SOURCE:
        raise InputError(f"{len(source)} characters are too many for a template", where="chat template")
    try:
        with Budget() as budget:
            text = _compiled(source).render(**values)
    except jinja2.TemplateSyntaxError as error:
        where = f"chat template, line {error.lineno}"
        raise InputError(f"not a Jinja template ({error.message})", where=where) from None
    except Refusal as error:
        raise InputError(f"the template refuses the conversation: {error}", where="messages") from None
    except jinja2.exceptions.SecurityError as error:
        raise InputError(f"the template does what no template may ({error})", where="chat template") from None
    except TooMuch as error:
        raise InputError(f"stopped: {error}", where="chat template") from None
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the template failed ({type(error).__name__}: {error})", where="chat template") from None
    except (RecursionError, MemoryError, SyntaxError, NotImplementedError) as error:
        raise InputError(f"the template failed ({type(error).__name__})", where="chat template") from None
    return _without_marks(text, *budget.marks)


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    from tsumugu.text.sandbox import ChatEnvironment

    return ChatEnvironment().from_string(source)


def _without_marks(text: str, start: str, end: str) -> RenderedChat:
    """Take the marks of generation blocks out of a text and remember where they stood."""
    pieces: list[str] = []
    generated: list[tuple[int, int]] = []
    position = 0
    for i, part in enumerate(text.split(start)):
        inside, *after = part.split(end)
        if i and after:
            generated.append((position, position + len(inside)))
        pieces += [inside, *after]
        position += len(inside) + sum(map(len, after))
    return RenderedChat("".join(pieces), generated)
