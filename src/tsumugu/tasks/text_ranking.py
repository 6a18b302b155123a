"""Text ranking: texts by how well they answer a query, each read together with it (a cross-encoder).

Source: Nogueira & Cho 2019, Passage Re-ranking with BERT, section 3; the form as in sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tsumugu.core.errors import InputError
from tsumugu.tasks.base import Task
from tsumugu.tasks.batching import numbers, outputs, sigmoid


class TextRanking(Task):
    """A sequence classifier with one label says how well a text answers a query.

    Called with a query and a list of texts, or with `{"query", "texts"}`, it gives `[{"index", "text", "score"}]`, the
    best first. `scores` gives the numbers alone, in the texts' order.

    Options of a call:
        top_k: only the best so many.
        function_to_apply: sigmoid (the default), or none for the number as it comes.
    """

    name = "text-ranking"
    engines = ("torch", "onnx", "native")
    head = "sequence-classification"
    options = frozenset({"top_k", "function_to_apply"})
    sorts = True
    columns = (("query", "texts"),)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        labels = self.model.config.labels
        if len(labels) != 1:
            raise InputError(
                f"the model has {len(labels)} labels, and a ranking needs one number",
                where="model",
                mend="name a cross-encoder, or use text-classification",
            )

    def __call__(self, inputs: Any, texts: Sequence[str] | None = None, **options: Any) -> Any:
        return super().__call__(inputs if texts is None else {"query": inputs, "texts": list(texts)}, **options)

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping)

    def scores(self, pairs: Sequence[tuple[str, str]], function_to_apply: str = "sigmoid") -> list[float]:
        """How well the second text of each pair answers the first, in order."""
        if function_to_apply not in ("sigmoid", "none"):
            raise InputError(f"{function_to_apply!r} is neither sigmoid nor none", where="function_to_apply")
        found = np.empty(len(pairs), dtype=np.float64)
        if not pairs:
            return []
        encoded = self.tokenizer(list(pairs), truncation=True, max_length=self.longest)
        for group, output, _ in outputs(self.model, self.tokenizer, encoded, rows=self.batch_size):
            logits = numbers(output.logits)[:, 0]
            found[group] = sigmoid(logits) if function_to_apply == "sigmoid" else logits
        scores: list[float] = found.tolist()
        return scores

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        groups = [_query(row, index) for index, row in enumerate(rows)]
        pairs = [(query, text) for query, texts in groups for text in texts]
        scores = iter(self.scores(pairs, options.get("function_to_apply", "sigmoid")))
        results = []
        for _, texts in groups:
            found: list[dict[str, Any]] = [
                {"index": index, "text": text, "score": next(scores)} for index, text in enumerate(texts)
            ]
            results.append(sorted(found, key=lambda each: each["score"], reverse=True)[: options.get("top_k")])
        return results

    @classmethod
    def rows(cls, texts: Sequence[str]) -> list[dict[str, Any]]:
        if len(texts) < 2:
            raise InputError("a query and texts to rank are needed", where="text")
        return [{"query": texts[0], "texts": list(texts[1:])}]

    @classmethod
    def read(cls, row: Any, column: str | None = None) -> Any:
        query, texts = (each.strip() for each in column.split(",", 1)) if column and "," in column else cls.columns[0]
        return {"query": row.values.get(query), "texts": row.values.get(texts)}

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        return {"ranking": result}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        for each in result:
            yield f"{each['score']:.4f}  {each['text']}"


def _query(row: Mapping[str, Any], index: int) -> tuple[str, list[str]]:
    query, texts = row.get("query"), row.get("texts")
    if not isinstance(query, str) or not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise InputError("expected query, a text, and texts, a list of texts", where=f"inputs[{index}]")
    return query, texts
