"""Multiple choice: each choice is read together with the question and scored; the best score is the answer.

The model is a cross-encoder with one output, so that it ranks any number of choices.

Source: Devlin et al. 2019, BERT, section 4.4 (SWAG).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.data.labelled.examples import Examples
from tsumugu.objectives.base import Batch
from tsumugu.tasks.batching import padded
from tsumugu.tuning.base import Row, TaskObjective, body, in_pieces

if TYPE_CHECKING:
    from torch import Tensor


class MultipleChoice(TaskObjective):
    """One of some choices. A row's `ids` are those of its longest choice, its answer all of them and the right one."""

    name: ClassVar[str] = "multiple-choice"
    kind: ClassVar[str] = "multiple-choice"
    head: ClassVar[str] = "sequence-classification"
    solver: ClassVar[str] = "text-ranking"
    term: ClassVar[str] = "choice"
    pieces: ClassVar[bool] = True
    obeys: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def outputs(cls, examples: Examples) -> tuple[str, ...] | None:
        return ("LABEL_0",)

    def rows(self, examples: Examples) -> list[Row]:
        pairs = [(" ".join(row.texts), choice) for row in examples for choice in row.choices]
        encoded = self.encode([first for first, _ in pairs], [second for _, second in pairs])
        types, at, rows = self.types(encoded), 0, []
        for row in examples:
            some = [Row(encoded["input_ids"][at + i], None, types[at + i]) for i in range(len(row.choices))]
            at += len(some)
            rows.append(Row(max((each.ids for each in some), key=len), (some, row.label)))
        return rows

    def batch(self, rows: Sequence[Row]) -> Batch:
        flat = [choice for row in rows for choice in row.answer[0]]
        made = super().batch(flat)
        ends = np.cumsum([len(row.answer[0]) for row in rows])
        # Where each row's choices are among all; one that is not there points to the first.
        places = padded(
            [range(end - len(row.answer[0]), end) for row, end in zip(rows, ends.tolist(), strict=True)], -1
        )
        answers = {"places": places, "right": np.array([row.answer[1] for row in rows], np.int64)}
        return Batch(made.inputs | answers, {"choice": len(rows)}, made.tokens, made.padding, 0)

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        return {}, {"choice": 0}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.nn import functional

        def scored(asked: dict[str, Tensor]) -> Tensor:
            found: Tensor = model(**asked).logits.float().squeeze(-1)
            return found

        scores, places = in_pieces(scored, body(inputs), rounds=self.rounds), inputs["places"]
        table = scores[places.clamp(min=0)].masked_fill(places < 0, float("-inf"))
        return {"choice": functional.cross_entropy(table, inputs["right"], reduction="sum")}
