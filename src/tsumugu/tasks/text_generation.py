"""Text generation: a text, or a conversation, continued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tsumugu.core.config import type_hints
from tsumugu.core.errors import InputError
from tsumugu.engines.load import load_model
from tsumugu.generation.generate import complete, fitting, resolve_options, steps
from tsumugu.generation.options import GenerationOptions
from tsumugu.tasks.base import Task

Message = Mapping[str, Any]


class TextGeneration(Task):
    """Continue a text (`str`) or answer a conversation (a list of `{"role": …, "content": …}`).

    One text gives `[{"generated_text": …}]`, one entry for each of `num_return_sequences`; a list of texts gives a list
    of those. For a conversation `generated_text` is the conversation with the answer added. Stop strings are cut off.

    Options of a call are those of `GenerationOptions`, and:
        return_full_text: put the prompt in front (True for a text as usual).
        return_tensors: give `generated_token_ids` instead of text.
        max_length: as `max_new_tokens`, with the prompt counted in.
        truncation: drop the beginning of a prompt that is too long, where it would otherwise be refused.
        stop_sequence: another name of `stop_strings`.
        add_special_tokens: whether the tokenizer adds its own to a text.
        draft: a smaller model with the same vocabulary, or where it lies, that guesses tokens; the text stays the same.
    """

    name = "text-generation"
    default_model = "smollm2"
    engines = ("torch", "onnx", "native")
    options = frozenset(type_hints(GenerationOptions)) | {
        "return_full_text",
        "return_tensors",
        "max_length",
        "truncation",
        "stop_sequence",
        "add_special_tokens",
        "draft",
    }
    _draft: tuple[Any, Any] = (None, None)

    def stream(self, prompt: str | list[Message], **options: Any) -> Iterator[str]:
        """The new text of one prompt piece by piece; a character is never split, and a stop string never shown."""
        chosen = self.defaults | self._checked(options)
        truncation = bool(chosen.pop("truncation", False))
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

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str) or _is_conversation(inputs)

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        full = options.pop("return_full_text", None)
        as_tensors = options.pop("return_tensors", None)
        truncation = bool(options.pop("truncation", False))
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
            written = [self._text(prompt, answer, generation.stops) for answer in answers]
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
            ids = self.tokenizer.encode(prompt, add_special_tokens=special)
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
        chosen = {key: value for key, value in options.items() if key != "add_special_tokens"}
        if "stop_sequence" in chosen:
            chosen["stop_strings"] = chosen.pop("stop_sequence")
        return resolve_options(self.model, prompts, chosen)

    def _text(self, prompt: list[int], answer: list[int], stops: tuple[str, ...]) -> str:
        """The new text alone; decoded with its prompt, because a tokenizer may join the two."""
        before = self.tokenizer.decode(prompt, skip_special_tokens=True)
        whole = self.tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
        new = (
            whole[len(before) :]
            if whole.startswith(before)
            else self.tokenizer.decode(answer, skip_special_tokens=True)
        )
        return _cut(new, stops)[0]


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
