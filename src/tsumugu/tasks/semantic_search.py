"""Semantic search: the texts of a corpus that are nearest in meaning to a query; the nearest may be read again with it.

Source: Reimers & Gurevych 2019, Sentence-BERT, section 1 (vectors first); Nogueira & Cho 2019, Passage Re-ranking with
BERT (the second reading).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError
from tsumugu.tasks.sentence_embedding import SentenceEmbedding
from tsumugu.tasks.text_ranking import TextRanking

QUERIES_AT_ONCE = 64
"""Rows of the table of likeness that are held together."""


class SemanticSearch(SentenceEmbedding):
    """The nearest texts of a corpus, as `[{"index", "text", "score"}]` for a query, the nearest first.

    The corpus is turned into vectors once, by `index` or when it is first searched. Scores are cosines; with a reranker
    they are its own.

    Args:
        reranker: a model with one label that reads query and text together: a source, or a `TextRanking`.

    Options of a call:
        corpus: the texts that are searched; those of the last `index` when left out.
        top_k: how many are found (5).
        candidates: how many of the nearest a reranker reads (50).
    """

    name = "semantic-search"
    options = frozenset({"corpus", "top_k", "candidates"})

    def __init__(
        self, *arguments: Any, reranker: TextRanking | str | Path | None = None, corpus: Any = None, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        loaded = reranker is None or isinstance(reranker, TextRanking)
        self.reranker: TextRanking | None = reranker if loaded else TextRanking.load(reranker)  # type: ignore[assignment,arg-type]
        self.corpus: list[str] = []
        self.vectors: NDArray[np.float32] = np.empty((0, 0), np.float32)
        if corpus is not None:
            self.index(corpus)

    def index(self, corpus: Sequence[str]) -> None:
        """Make `corpus` what is searched from now on.

        Raises:
            InputError: it holds no text, or something else.
        """
        texts = [corpus] if isinstance(corpus, str) else list(corpus)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError("a list of texts is needed to search in", where="corpus")
        if texts != self.corpus:
            self.corpus, self.vectors = texts, self.encode(texts, normalize=True)

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        if options.get("corpus") is not None:
            self.index(options["corpus"])
        if not self.corpus:
            raise InputError("there is nothing to search in", where="corpus", mend="pass corpus=, a list of texts")
        count = int(options.get("top_k", 5))
        if count < 1:
            raise InputError(f"{count} texts are none", where="top_k", mend="at least 1")
        near = count if self.reranker is None else max(count, int(options.get("candidates", 50)))
        found: list[list[dict[str, Any]]] = [
            [{"index": index, "text": self.corpus[index], "score": score} for index, score in mine]
            for mine in self._nearest(rows, near)
        ]
        if self.reranker is None:
            return found
        pairs = [(row, each["text"]) for row, mine in zip(rows, found, strict=True) for each in mine]
        scores = iter(self.reranker.scores(pairs))
        read = [[{**each, "score": next(scores)} for each in mine] for mine in found]
        return [sorted(mine, key=lambda each: each["score"], reverse=True)[:count] for mine in read]

    def _nearest(self, queries: list[str], count: int) -> Iterator[list[tuple[int, float]]]:
        """Numbers and cosines of the `count` nearest texts of each query, the nearest first."""
        asked = self.encode(queries, normalize=True)
        count = min(count, len(self.corpus))
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            likeness = asked[start : start + QUERIES_AT_ONCE] @ self.vectors.T
            some = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
            for row, places in zip(likeness, some, strict=True):
                order = places[np.argsort(-row[places], kind="stable")]
                yield [(int(index), float(row[index])) for index in order]

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        return {"found": result}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        for each in result:
            yield f"{each['score']:.4f}  {each['text']}"
