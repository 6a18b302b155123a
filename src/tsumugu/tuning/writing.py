"""Text from text: an encoder-decoder learns to write a summary, a translation, an answer; a decoder when asked for it.

Source: Raffel et al. 2020, T5, section 2.4; of a decoder: Radford et al. 2018, "Improving Language Understanding by
Generative Pre-Training", sections 3.2 and 3.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.core.errors import ConfigError, InputError
from tsumugu.core.registry import PROMPTED
from tsumugu.data.labelled.examples import Examples
from tsumugu.objectives.base import IGNORE, Batch
from tsumugu.tasks.batching import padded
from tsumugu.tasks.pipeline import pipeline
from tsumugu.tasks.prompting.writing import PromptedWriting
from tsumugu.text.japanese import japanese_share
from tsumugu.tuning.base import Row, TaskObjective, body

if TYPE_CHECKING:
    from torch import Tensor

    from tsumugu.models.base import Model

JAPANESE = 0.3
"""The share of Japanese in the texts from which on a prompt is Japanese, too."""


class TextToText(TaskObjective):
    """The tokens of the first target, each after those before it."""

    name: ClassVar[str] = "text2text-generation"
    kind: ClassVar[str] = "text-to-text"
    head: ClassVar[str] = "seq2seq-lm"
    solver: ClassVar[str] = "text2text-generation"
    term: ClassVar[str] = "token"

    def rows(self, examples: Examples) -> list[Row]:
        sources = self.encode([row.source for row in examples])
        targets = self.encode([row.targets[0] for row in examples])
        both = zip(sources["input_ids"], targets["input_ids"], strict=True)
        return [Row(ids, target, written=len(target)) for ids, target in both]

    def batch(self, rows: Sequence[Row]) -> Batch:
        made, targets = super().batch(rows), [row.written for row in rows]
        tokens, places = sum(targets), len(rows) * self.width(targets)
        return replace(made, tokens=made.tokens + tokens, padding=made.padding + places - tokens)

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        targets = [row.answer for row in rows]
        lengths = [row.written for row in rows]
        return {"targets": padded(targets, IGNORE, self.width(lengths))}, {"token": sum(lengths)}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"token": token_loss(model, inputs, self.loss.label_smoothing)}


class PromptedTextToText(TextToText):
    """The tokens of the first target, each after those before it and the prompt of the task.

    The model is asked for an answer later as it was in training, so the language of the prompt goes with it.
    """

    head: ClassVar[str] = "causal-lm"

    def begin(self, model: Model, examples: Examples) -> None:
        language = "ja" if japanese_share([row.source for row in examples[:500]]) > JAPANESE else "en"
        task = pipeline(self.solver, model, self.tokenizer, language=language)
        assert isinstance(task, PromptedWriting)
        self._task = task
        every = {**(model.usage.get("task_specific_params") or {}), task.name: task.defaults}
        model.usage = {**model.usage, "task_specific_params": every}

    def rows(self, examples: Examples) -> list[Row]:
        found = []
        for row in examples:
            try:
                ids, start = self._task.taught(row.source, row.targets[0], limit=self.max_length)
            except InputError as error:
                if self.data.skip:
                    continue
                raise InputError(error.what, where=f"example {row.id}", mend=error.mend) from None
            found.append(Row(ids, [IGNORE] * (start - 1) + ids[start:] + [IGNORE]))
        if not found:
            raise InputError(f"no answer fits into {self.max_length} tokens", where=examples.source)
        return found

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        targets = padded([row.answer for row in rows], IGNORE, width)
        return {"targets": targets}, {"token": int((targets != IGNORE).sum())}


def token_loss(model: Any, inputs: Mapping[str, Tensor], smoothing: float) -> Tensor:
    """The sum of cross-entropies of the targets, of which the share `smoothing` is spread over all words."""
    from torch.nn import functional

    targets = inputs["targets"]
    if not smoothing:
        found: Tensor = model(**body(inputs), targets=targets).loss
        return found
    written = {"labels": targets} if model.head_name == "seq2seq-lm" else {}
    logits = model(**body(inputs), **written).logits.float().flatten(0, 1)
    return functional.cross_entropy(
        logits, targets.flatten(), ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
    )


def asked_as(task: str) -> type[TaskObjective]:
    """How a decoder learns `task`, by the name that it will be asked for by.

    Raises:
        ConfigError: a decoder has no prompt for it.
    """
    form = task.lower().replace("_", "-")
    if form == "translation" or not (form in PROMPTED or re.fullmatch("translation-.+-to-.+", form)):
        mend = "name summarization, translation_en_to_ja and the like, or instruction-tuning"
        raise ConfigError(f"a model that only goes on with texts is not asked for {task}", where="task", mend=mend)
    return type("AskedText", (PromptedTextToText,), {"solver": task.lower()})
