"""Text classification: a label for a text or for a pair of texts; sentiment, topics, inference, ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.data.rows import PAIRS, Row, text_column, text_of
from tsumugu.tasks.base import Task
from tsumugu.tasks.batching import numbers, outputs, sigmoid, softmax
from tsumugu.tasks.shown import ShowsLabel

FUNCTIONS = ("sigmoid", "softmax", "none")
"""What turns logits into scores."""


class TextClassification(ShowsLabel, Task):
    """Labels with their scores.

    A text, or a pair `{"text": …, "text_pair": …}`, gives `{"label", "score"}`, the likeliest; a text alone gives it in
    a list, as the usual pipeline does. With `top_k` it is a list, the likeliest first.

    Options of a call:
        top_k: how many labels; None for all of them.
        function_to_apply: sigmoid, softmax or none. When left out: none for a model whose config.json calls its
            problem a regression, sigmoid for one with several labels at once or with a single label, else softmax.
        return_all_scores: every label, in the order of the model's labels.
        truncation: cut texts that are too long for the model (True).
        max_length: cut them here instead.
        add_special_tokens: whether the tokenizer adds its own (True).
    """

    name = "text-classification"
    engines = ("torch", "onnx", "native")
    head = "sequence-classification"
    options = frozenset(
        {"top_k", "function_to_apply", "return_all_scores", "truncation", "max_length", "add_special_tokens"}
    )
    usual: ClassVar[Mapping[str, str | None]] = {"padding": None}
    sorts = True
    columns = (("text", "text_pair"), *PAIRS)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        result = super().__call__(inputs, **options)
        return [result] if isinstance(inputs, str) and "top_k" not in options else result

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str | Mapping)

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        cut: dict[str, Any] = {"truncation": True, "max_length": options.get("max_length") or self.longest}
        texts = [_texts(row) for row in rows]
        results: list[Any] = [None] * len(rows)
        alone = [index for index, pair in enumerate(texts) if pair[1] is None]
        paired = [index for index, pair in enumerate(texts) if pair[1] is not None]
        for some in (alone, paired):
            if not some:
                continue
            encoded = self.tokenizer(
                [texts[index][0] for index in some],
                None if some is alone else [texts[index][1] for index in some],
                add_special_tokens=options.get("add_special_tokens", True),
                **(cut if options.get("truncation", True) else {}),
            )
            for group, output, _ in outputs(self.model, self.tokenizer, encoded, rows=self.batch_size):
                scores = self._scores(numbers(output.logits), options.get("function_to_apply"))
                for place, row in enumerate(group):
                    results[some[row]] = self._answer(scores[place].tolist(), options)
        return results

    def _scores(self, logits: NDArray[np.float32], function: str | None) -> NDArray[Any]:
        """What logits `[rows, labels]` say, as the model's problem asks for it."""
        problem = self.model.usage.get("problem_type")
        if function in (None, "default"):
            several = problem == "multi_label_classification" or logits.shape[-1] == 1
            function = "none" if problem == "regression" else "sigmoid" if several else "softmax"
        match function.lower() if isinstance(function, str) else function:
            case "sigmoid":
                return sigmoid(logits)
            case "softmax":
                return softmax(logits)
            case "none":
                return logits
        mend = did_you_mean(str(function), FUNCTIONS)
        raise InputError(f"{function!r} is no such function", where="function_to_apply", mend=mend)

    def _answer(self, scores: list[float], options: Mapping[str, Any]) -> Any:
        answers = [
            {"label": label, "score": score} for label, score in zip(self.model.config.labels, scores, strict=True)
        ]
        if options.get("return_all_scores"):
            return answers
        ranked = sorted(answers, key=lambda answer: answer["score"], reverse=True)
        if "top_k" not in options:
            return ranked[0]
        count = options["top_k"]
        if count is not None and count < 1:
            raise InputError(f"{count} labels are none", where="top_k", mend="at least 1, or None for all")
        return ranked[:count]

    @classmethod
    def rows(cls, texts: Sequence[str]) -> list[dict[str, Any]]:
        return [{"text": text} for text in texts]

    @classmethod
    def read(cls, row: Row, column: str | None = None) -> Any:
        paired = any(all(name in row.values for name in names) for names in cls.columns)
        if "," in column if column is not None else paired:
            return super().read(row, column)
        return text_of(row, text_column(row, column))


def _texts(row: Any) -> tuple[str, str | None]:
    if isinstance(row, str):
        return row, None
    text, pair = row.get("text"), row.get("text_pair")
    extra = [key for key in row if key not in ("text", "text_pair")]
    if not isinstance(text, str) or not isinstance(pair, str | None) or extra:
        found = ", ".join(map(repr, row)) or "nothing"
        raise InputError(f"expected text and text_pair, two texts, found {found}", where="inputs")
    return text, pair
