"""Chat: a conversation that remembers itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.tasks.text_generation import Message, TextGeneration


class Chat(TextGeneration):
    """Talk with a model that has a chat template.

    Called with a text, it takes that as what the user says and gives the answer as a string; with a list of messages,
    it answers those. `say` continues the conversation that the object keeps, and gives the answer piece by piece.

    Attributes:
        messages: the conversation so far; `say` adds to it, `reset` empties it.
    """

    name = "chat"
    options = TextGeneration.options | {"system"}

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        if self.tokenizer.chat_template is None:
            raise InputError(
                "the model has no chat template",
                where="tokenizer",
                mend="use text-generation, or a model made for chat",
            )
        self.messages: list[Message] = []

    def say(self, text: str, **options: Any) -> Iterator[str]:
        """What the model answers to `text`, piece by piece; both are remembered once the answer is complete.

        When the conversation no longer fits the model, its oldest turns are left out of what the model reads.
        """
        system = (self.defaults | options).get("system")
        messages = [*self.messages, {"role": "user", "content": text}]
        answer = ""
        for piece in self.stream(self._fitting(messages, system), **options):
            answer += piece
            yield piece
        self.messages = [*messages, {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages = []

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        return {"answer": result}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        for each in result if isinstance(result, list) else [result]:
            yield each["generated_text"] if isinstance(each, Mapping) else each

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        system = options.pop("system", None)
        conversations = [_with_system(_conversation(row), system) for row in rows]
        answers = super()._solve(conversations, **{**options, "return_full_text": False})
        return [texts[0]["generated_text"] if len(texts) == 1 else texts for texts in answers]

    def _options(self, options: dict[str, Any], prompts: list[list[int]]) -> Any:
        return super()._options({key: value for key, value in options.items() if key != "system"}, prompts)

    def _fitting(self, messages: list[Message], system: str | None) -> list[Message]:
        """The latest turns that leave a quarter of the context for the answer; always the last one."""
        room = self.model.config.max_positions * 3 // 4
        while len(messages) > 1 and len(self._ids(_with_system(messages, system), {})) > room:
            messages = messages[2:]
        return _with_system(messages, system)


def _conversation(row: str | list[Message]) -> list[Message]:
    return [{"role": "user", "content": row}] if isinstance(row, str) else row


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    if system is None or (messages and messages[0].get("role") == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]
