"""Token classification: which tokens of a text are part of what; named entities, aspects.

Tokens are tagged B-, I- and O (Ramshaw & Marcus 1995): the first token of a span begins it, the rest are inside, in the
middle of words as well. A long text is read in pieces that overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsumugu.data.labelled.examples import Examples
from tsumugu.data.labelled.tags import OUTSIDE
from tsumugu.objectives.base import IGNORE
from tsumugu.tasks.alignment import tags_of
from tsumugu.tasks.batching import padded
from tsumugu.tuning.base import Row, TaskObjective, body
from tsumugu.tuning.classification import label_weights

if TYPE_CHECKING:
    from torch import Tensor

    from tsumugu.models.base import Model


class TokenClassification(TaskObjective):
    """A tag for each token."""

    name: ClassVar[str] = "token-classification"
    kind: ClassVar[str] = "token-classification"
    head: ClassVar[str] = "token-classification"
    solver: ClassVar[str] = "token-classification"
    term: ClassVar[str] = "tag"
    obeys: ClassVar[frozenset[str]] = frozenset({"label_smoothing", "class_weights"})

    @classmethod
    def outputs(cls, examples: Examples) -> tuple[str, ...] | None:
        return (OUTSIDE, *(f"{prefix}-{label}" for label in examples.labels or () for prefix in "BI"))

    def begin(self, model: Model, examples: Examples) -> None:
        import torch

        tags = [self.labels[tag] for row in self.rows(examples) for tag in row.answer if tag != IGNORE]
        self._weights = torch.tensor(label_weights(self.loss.class_weights, self.labels, tags))

    def rows(self, examples: Examples) -> list[Row]:
        encoded = self.encode([row.text for row in examples], stride=self.stride, return_overflowing_tokens=True)
        index = {label: at for at, label in enumerate(self.labels)}
        types = self.types(encoded)
        return [
            Row(
                ids, tags_of(examples[origin], encoded.offsets(piece), encoded.sequence_ids(piece), index), types[piece]
            )
            for piece, (ids, origin) in enumerate(
                zip(encoded["input_ids"], encoded["overflow_to_sample_mapping"], strict=True)
            )
        ]

    @property
    def stride(self) -> int:
        """Tokens that two pieces share."""
        return min(self.data.stride, self.max_length // 2)

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        tags = padded([row.answer for row in rows], IGNORE, width)
        return {"tags": tags}, {"tag": int((tags != IGNORE).sum())}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.nn import functional

        logits, tags = model(**body(inputs)).logits.float().flatten(0, 1), inputs["tags"].flatten()
        each = functional.cross_entropy(
            logits, tags, ignore_index=IGNORE, reduction="none", label_smoothing=self.loss.label_smoothing
        )
        return {"tag": (each * self._weights.to(logits)[tags.clamp(min=0)]).sum()}
