"""Text-to-text generation: an encoder-decoder reads a text and writes another; what summarising and translating share.

Source: Raffel et al. 2020, T5, section 2.4 and appendix D (the prefixes, which checkpoints keep in config.json).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from tsumugu.core.config import type_hints
from tsumugu.core.errors import InputError
from tsumugu.generation.generate import DRAWING, beginnings, complete, resolve_options
from tsumugu.generation.options import GenerationOptions
from tsumugu.tasks.base import ROWS, Task
from tsumugu.tasks.batching import longest_first
from tsumugu.tasks.usual import WRITING, configured

DEFAULTS = {"max_new_tokens": 256, "num_beams": 4}
"""What is asked of generation where neither the call nor the checkpoint says anything, as in the usual pipeline."""


class Text2TextGeneration(Task):
    """What an encoder-decoder makes of a text.

    A text gives `[{"generated_text"}]`, one entry for each of `num_return_sequences`; a list of texts gives a list of
    such entries, or of such lists where there are several for each. What config.json says of the task
    (`task_specific_params`: a prefix, beams, lengths) holds unless the call says otherwise; without either there are 4
    beams and at most 256 tokens.

    Options of a call are those of `GenerationOptions`, and:
        max_length, min_length: tokens that are written, the start token counted in.
        prefix: put in front of the text, instead of the checkpoint's own.
        truncation: cut a text that is too long for the model (True).
        return_tensors: give token ids under `…_token_ids` instead of text.
        clean_up_tokenization_spaces: as in `Tokenizer.decode`.
        generation_config: as of `TextGeneration`.
    """

    name = "text2text-generation"
    engines = ("torch", "onnx")
    head = "seq2seq-lm"
    key: ClassVar[str] = "generated"
    options = frozenset(type_hints(GenerationOptions)) | {
        "max_length",
        "min_length",
        "prefix",
        "truncation",
        "return_tensors",
        "return_text",
        "clean_up_tokenization_spaces",
    }
    usual: ClassVar[Mapping[str, str | None]] = {**WRITING, "stop_sequence": "stop_strings"}
    sorts = True

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        return super()._checked(configured(options))

    def __call__(self, inputs: Any, **options: Any) -> Any:
        results = super().__call__(inputs, **options)
        if isinstance(inputs, list | tuple) and all(len(each) == 1 for each in results):
            return [each[0] for each in results]
        return results

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        asked = self._params(options)
        prefix = str(asked.pop("prefix", ""))
        as_tensors = bool(asked.pop("return_tensors", False))
        clean = asked.pop("clean_up_tokenization_spaces", None)
        cut: dict[str, Any] = {"truncation": True, "max_length": self.longest} if asked.pop("truncation", True) else {}
        asked.pop("return_text", None)
        ids: list[list[int]] = self.tokenizer([f"{prefix}{row}" for row in rows], **cut)["input_ids"]
        for index, prompt in enumerate(ids):
            if not prompt:
                raise InputError("the text is empty", where=f"row {index}", mend="give at least one character")
        results: list[Any] = [None] * len(rows)
        for group in longest_first([len(row) for row in ids], rows=self.batch_size or ROWS):
            prompts = [ids[row] for row in group]
            generation = resolve_options(self.model, beginnings(self.model, prompts), dict(asked))
            texts = complete(self.model, prompts, generation, self.tokenizer)
            count = generation.num_return_sequences
            for place, row in enumerate(group):
                mine = texts[place * count : (place + 1) * count]
                if as_tensors:
                    results[row] = [{f"{self.key}_token_ids": list(text)} for text in mine]
                else:
                    decode = self.tokenizer.decode
                    results[row] = [
                        {f"{self.key}_text": decode(text, True, clean_up_tokenization_spaces=clean)} for text in mine
                    ]
        return results

    def _params(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked of generation: by the call, else by the checkpoint for this task, else by default."""
        known = {**self.model.usage, **self._task_params(options)}
        asked = {key: value for key, value in known.items() if key in self.options}
        for ours, theirs in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if ours in options or theirs in options:
                asked.pop(ours, None)
                asked.pop(theirs, None)
        asked |= options
        draws = options.get("do_sample", any(name in options for name in DRAWING))
        if draws and "num_beams" not in options:
            asked["num_beams"] = 1
        for name, value in DEFAULTS.items():
            if name != "max_new_tokens" or "max_length" not in asked:
                asked.setdefault(name, value)
        if "min_length" in asked:
            asked["min_new_tokens"] = max(0, int(asked.pop("min_length")) - 1)
        return asked

    def _task_params(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """What config.json says about this task."""
        return self._all_task_params().get(self.name, {})

    def _all_task_params(self) -> Mapping[str, Mapping[str, Any]]:
        params = self.model.usage.get("task_specific_params") or {}
        return {name: value for name, value in params.items() if isinstance(value, Mapping)}

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        name = f"{cls.key}_text"
        texts = [each[name] for each in ([result] if isinstance(result, Mapping) else result)]
        return {name: texts[0] if len(texts) == 1 else texts}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        found = cls.record(result)[f"{cls.key}_text"]
        yield from [found] if isinstance(found, str) else found
