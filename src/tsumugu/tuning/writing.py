"""Text from text: an encoder-decoder learns to write a summary, a translation, an answer.

Source: Raffel et al. 2020, T5, section 2.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.data.labelled.examples import Examples
from tsumugu.objectives.base import IGNORE
from tsumugu.tasks.batching import padded
from tsumugu.tuning.base import Row, TaskObjective, body

if TYPE_CHECKING:
    from torch import Tensor


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
        return [Row(ids, target) for ids, target in zip(sources["input_ids"], targets["input_ids"], strict=True)]

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        return {"targets": padded([row.answer for row in rows], IGNORE)}, {"token": sum(len(r.answer) for r in rows)}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"token": model(**body(inputs), targets=inputs["targets"]).loss}
