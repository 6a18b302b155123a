"""Sentence similarity: how alike texts are in meaning, by the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError
from tsumugu.data.rows import PAIRS, Row
from tsumugu.tasks.sentence_embedding import SentenceEmbedding
from tsumugu.tasks.shown import ShowsScore


class SentenceSimilarity(ShowsScore, SentenceEmbedding):
    """Cosines between -1 and 1.

    Called with two texts it gives `{"score": …}`; with a text and a list, a list of `{"text", "score"}` in the order
    given; with `{"source_sentence": …, "sentences": […]}`, a list of scores; with pairs, `{"score": …}` for each.
    """

    name = "sentence-similarity"
    columns = PAIRS

    def __call__(self, inputs: Any, others: str | Sequence[str] | None = None, **options: Any) -> Any:
        if others is None:
            return super().__call__(inputs, **options)
        if isinstance(others, str):
            return self((inputs, others), **options)
        scores = self({"source_sentence": inputs, "sentences": list(others)}, **options)
        return [{"text": text, "score": score} for text, score in zip(others, scores, strict=True)]

    def rank(self, query: str, texts: Sequence[str], *, top_k: int | None = None) -> list[dict[str, Any]]:
        """`texts` by likeness to `query`, the most alike first, as `{"index", "text", "score"}`."""
        scores = self.matrix([query], texts)[0]
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"index": int(index), "text": texts[index], "score": float(scores[index])} for index in order]

    def matrix(self, texts: Sequence[str], others: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Cosines `[texts, others]`; of the texts among themselves when `others` is left out."""
        left = self.encode(texts, normalize=True)
        right = left if others is None else self.encode(others, normalize=True)
        result: NDArray[np.float32] = left @ right.T
        return result

    @classmethod
    def read(cls, row: Row, column: str | None = None) -> Any:
        first, second = cls._texts_of(row, column)
        return first, second

    def _is_one(self, inputs: Any) -> bool:
        if isinstance(inputs, Mapping):
            return True
        return isinstance(inputs, tuple | list) and len(inputs) == 2 and all(isinstance(each, str) for each in inputs)

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        groups = [_group(row) for row in rows]
        texts = [text for source, others in groups for text in (source, *others)]
        unique = list(dict.fromkeys(texts))
        vectors = self.encode(unique, pooling=options.get("pooling"), normalize=True)
        place = {text: index for index, text in enumerate(unique)}
        results: list[Any] = []
        for row, (source, others) in zip(rows, groups, strict=True):
            scores = [float(vectors[place[source]] @ vectors[place[other]]) for other in others]
            results.append(scores if isinstance(row, Mapping) else {"score": scores[0]})
        return results


def _group(row: Any) -> tuple[str, list[str]]:
    if not isinstance(row, Mapping):
        return row[0], [row[1]]
    source, others = row.get("source_sentence"), row.get("sentences")
    if not isinstance(source, str) or not isinstance(others, list) or not all(isinstance(each, str) for each in others):
        raise InputError(
            "expected source_sentence, a text, and sentences, a list of texts", where="inputs", mend="or give two texts"
        )
    return source, others
