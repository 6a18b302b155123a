"""Sentence vectors after a teacher's: texts lie to one another as the teacher has their sources.

Source and target are a text and its translation, or twice the same text. The teacher reads the source and the model
the target, so an English teacher makes a Japanese model's vectors. Only cosines are compared: teacher and model need
neither the same size nor the same words.

Source: Reimers & Gurevych 2020, "Making Monolingual Sentence Embeddings Multilingual", section 3 (translations); Park
et al. 2019, "Relational Knowledge Distillation", section 3 (relations within a batch, not vectors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from tsumugu.core.errors import ConfigError
from tsumugu.data.labelled.examples import Examples
from tsumugu.objectives.base import Batch
from tsumugu.tuning.base import Row, TaskObjective
from tsumugu.tuning.embedding import SentenceSimilarity

if TYPE_CHECKING:
    from torch import Tensor


class SentenceDistillation(SentenceSimilarity):
    """A row's `ids` are those of the target, its answer the teacher's unit vector of the source."""

    name: ClassVar[str] = "sentence-distillation"
    kind: ClassVar[str | None] = "text-to-text"
    solver: ClassVar[str | None] = None
    obeys: ClassVar[frozenset[str]] = frozenset({"teacher"})
    compares: ClassVar[bool] = False  # rows of like length may share a batch: what is learnt are cosines, not ranks

    def rows(self, examples: Examples) -> list[Row]:
        from tsumugu.tasks.pipeline import pipeline
        from tsumugu.tasks.sentence_embedding import SentenceEmbedding

        if self.loss.teacher is None:
            raise ConfigError("no teacher is named", where="loss.teacher", mend="such as minilm")
        teacher = cast(SentenceEmbedding, pipeline("sentence-embedding", self.loss.teacher))
        taught = teacher.encode([row.source for row in examples], normalize=True)
        targets = [row.targets[0] for row in examples]
        encoded = self.encode([each.lower() for each in targets] if self.pooling.lower else targets)["input_ids"]
        return [Row(ids, vector) for ids, vector in zip(encoded, taught, strict=True)]

    def batch(self, rows: Sequence[Row]) -> Batch:
        return TaskObjective.batch(self, rows)

    def answers(self, rows: Sequence[Row], width: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        return {"taught": np.stack([row.answer for row in rows])}, {"pair": len(rows)}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.nn import functional

        vectors, taught = functional.normalize(self.vectors(model, inputs), dim=-1), inputs["taught"]
        # A text's cosine with itself is 1 on both sides and adds nothing.
        squares = (vectors @ vectors.T - taught @ taught.T).square()
        return {"pair": squares.sum() / max(len(vectors) - 1, 1)}
