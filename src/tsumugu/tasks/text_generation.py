"""Text generation: a text, or a conversation, continued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from tsumugu.core.config import type_hints
from tsumugu.core.errors import InputError
from tsumugu.engines.load import load_model
from tsumugu.generation.generate import complete, fitting, resolve_options, steps
from tsumugu.generation.options import GenerationOptions
from tsumugu.tasks.base import Task
from tsumugu.tasks.usual import WRITING, configured

Message = Mapping[str, Any]

OF_TEXTS = ("add_special_tokens", "prefix", "skip_special_tokens", "clean_up_tokenization_spaces")
"""Options that are about reading and spelling texts, not about choosing tokens."""


class TextGeneration(Task):
    """Continue a text (`str`) or answer a conversation (a list of `{"role": …, "content": …}`).

    One text gives `[{"generated_text": …}]`, one entry for each of `num_return_sequences`; a list of texts gives a list
    of those. For a conversation `generated_text` is the conversation with the answer added. Stop strings are cut off.

    Options of a call are those of `GenerationOptions`, and:
        return_full_text: put the prompt in front (True for a text as usual).
        return_tensors: give `generated_token_ids` instead of text.
        max_length, min_length: as `max_new_tokens` and `min_new_tokens`, with the prompt counted in.
        truncation: drop the beginning of a prompt that is too long, where it would otherwise be refused;
            `handle_long_generation="hole"` is the same.
        stop_sequence: another name of `stop_strings`.
        prefix: is read before a text, and not given back.
        add_special_tokens: whether the tokenizer adds its own to a text.
        skip_special_tokens, clean_up_tokenization_spaces: as in `Tokenizer.decode`.
        generation_config: what holds where the call says nothing, as a mapping or the usual library's object.
        draft: a smaller model with the same vocabulary, or where it lies, that guesses tokens; the text stays the same.
    """

    name = "text-generation"
    default_model = "smollm2"
    engines = ("torch", "onnx", "native")
    options = frozenset(type_hints(GenerationOptions)) | {
        "return_full_text",
        "return_tensors",
        "max_length",
        "min_length",
        "truncation",
        "handle_long_generation",
        "prefix",
        "add_special_tokens",
        "skip_special_tokens",
        "clean_up_tokenization_spaces",
        "draft",
    }
    usual: ClassVar[Mapping[str, str | None]] = {**WRITING, "stop_sequence": "stop_strings", "return_text": None}
    _draft: tuple[Any, Any] = (None, None)

    def stream(self, prompt: str | list[Message], **options: Any) -> Iterator[str]:
        """The new text of one prompt piece by piece; a character is never split, and a stop string never shown."""
        chosen = self.defaults | self._checked(options)
        truncation = _truncates(chosen)
        draft = self._guesser(chosen.pop("draft", None))
        ids = fitting(self._ids(prompt, chosen), self.model.config.max_positions, truncation)
        generation = self._options(chosen, [ids])
        decoder = self.tokenizer.stream(skip_special_tokens=True)
        held = ""
        longest = max((len(stop) for stop in generation.stops), default=1)
        for step in steps(self.model, [ids], generation, self.tokenizer, draft=draft):
            held += decoder.push(int(step.tokens[0]))
            cut, stopped = _cut(held, generation.stops)
            if stopped:
                yield cut
                return
            # What could still become a stop string waits.
            ready = len(held) - longest + 1
            if ready > 0:
                yield held[:ready]
                held = held[ready:]
        if rest := _cut(held + decoder.finish(), generation.stops)[0]:
            yield rest

    def __call__(self, inputs: Any = None, *, text_inputs: Any = None, **options: Any) -> Any:
        return super().__call__(inputs if text_inputs is None else text_inputs, **options)

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        return super()._checked(configured(options))

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str) or _is_conversation(inputs)

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        full = options.pop("return_full_text", None)
        as_tensors = options.pop("return_tensors", None)
        truncation = _truncates(options)
        draft = self._guesser(options.pop("draft", None))
        prompts = [self._ids(row, options) for row in rows]
        prompts = [fitting(prompt, self.model.config.max_positions, truncation) for prompt in prompts]
        generation = self._options(options, prompts)
        texts = complete(self.model, prompts, generation, self.tokenizer, draft=draft)
        count = generation.num_return_sequences
        results: list[Any] = []
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            answers = texts[number * count : (number + 1) * count]
            if as_tensors:
                results.append([{"generated_token_ids": [*prompt, *answer]} for answer in answers])
                continue
            written = [self._text(prompt, answer, generation.stops, options) for answer in answers]
            results.append([{"generated_text": _joined(row, text, full)} for text in written])
        return results

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        texts = [each["generated_text"] for each in result]
        return {"generated_text": texts[0] if len(texts) == 1 else texts}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        for each in result:
            yield each["generated_text"]

    def _ids(self, prompt: str | list[Message], options: dict[str, Any]) -> list[int]:
        special = options.get("add_special_tokens", True)
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(f"{options.get('prefix') or ''}{prompt}", add_special_tokens=special)
            if not ids:
                first = self.tokenizer.bos_token_id
                if first is None:
                    raise InputError("the text is empty", where="text", mend="give at least one character")
                ids = [first]
            return ids
        ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True)
        return list(ids)

    def _guesser(self, draft: Any) -> Any:
        """The draft model, loaded once."""
        if not isinstance(draft, str | Path):
            return draft
        if self._draft[0] != draft:
            self._draft = (draft, load_model(draft, engine="auto", quantize="auto", task="causal-lm"))
        return self._draft[1]

    def _options(self, options: dict[str, Any], prompts: list[list[int]]) -> GenerationOptions:
        return resolve_options(
            self.model, prompts, {key: value for key, value in options.items() if key not in OF_TEXTS}
        )

    def _text(self, prompt: list[int], answer: list[int], stops: tuple[str, ...], options: Mapping[str, Any]) -> str:
        """The new text alone; decoded with its prompt, because a tokenizer may join the two."""
        before, whole, new = (
            self.tokenizer.decode(
                ids,
                options.get("skip_special_tokens", True),
                clean_up_tokenization_spaces=options.get("clean_up_tokenization_spaces"),
            )
            for ids in (prompt, [*prompt, *answer], answer)
        )
        return _cut(whole[len(before) :] if whole.startswith(before) else new, stops)[0]


def _truncates(options: dict[str, Any]) -> bool:
    """Whether a prompt may lose its beginning; what says so is taken out of the options."""
    hole = options.pop("handle_long_generation", None)
    if hole not in (None, "hole"):
        raise InputError(f"{hole!r} is no way", where="handle_long_generation", mend="'hole' is the only one")
    return bool(options.pop("truncation", False)) or hole is not None


def _cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there is one."""
    where = [found for stop in stops if (found := text.find(stop)) >= 0]
    return (text[: min(where)], True) if where else (text, False)


def _is_conversation(inputs: Any) -> bool:
    return isinstance(inputs, list | tuple) and bool(inputs) and all(isinstance(each, Mapping) for each in inputs)


def _joined(row: Any, text: str, full: bool | None) -> Any:
    if isinstance(row, str):
        return text if full is False else row + text
    return text if full is False else [*row, {"role": "assistant", "content": text}]
