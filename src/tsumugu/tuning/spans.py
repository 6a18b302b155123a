"""Extractive question answering: where in a context the answer begins and ends, or that there is none.

A long context is read in pieces that overlap. In a piece without the answer, and for a question without one, the first
token is right.

Source: Devlin et al. 2019, BERT, sections 4.2 and 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.data.labelled.examples import Examples
from tsumugu.tasks.alignment import span_of
from tsumugu.tuning.base import Row, TaskObjective, body

if TYPE_CHECKING:
    from torch import Tensor


class QuestionAnswering(TaskObjective):
    """The first and the last token of an answer."""

    name: ClassVar[str] = "question-answering"
    kind: ClassVar[str] = "question-answering"
    head: ClassVar[str] = "question-answering"
    solver: ClassVar[str] = "question-answering"
    term: ClassVar[str] = "span"
    obeys: ClassVar[frozenset[str]] = frozenset()

    def rows(self, examples: Examples) -> list[Row]:
        # A question may take half of the room.
        asked = self.tokenizer([row.question for row in examples], add_special_tokens=False)
        room = self.max_length // 2
        questions = []
        for at, row in enumerate(examples):
            ends = [end for _, end in asked.offsets(at)]
            questions.append(row.question if len(ends) <= room else row.question[: ends[room - 1]])
        encoded = self.encode(
            questions,
            [row.context for row in examples],
            truncation="only_second",
            stride=min(self.data.stride, self.max_length // 4),
            return_overflowing_tokens=True,
        )
        types = self.types(encoded)
        return [
            Row(ids, span_of(examples[origin], encoded.offsets(piece), encoded.sequence_ids(piece)), types[piece])
            for piece, (ids, origin) in enumerate(
                zip(encoded["input_ids"], encoded["overflow_to_sample_mapping"], strict=True)
            )
        ]

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        return {"span": np.array([row.answer for row in rows], np.int64)}, {"span": len(rows)}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.nn import functional

        output, span = model(**body(inputs)), inputs["span"]
        sums = [
            functional.cross_entropy(logits.float(), span[:, side], reduction="sum")
            for side, logits in enumerate((output.start_logits, output.end_logits))
        ]
        return {"span": (sums[0] + sums[1]) / 2}
