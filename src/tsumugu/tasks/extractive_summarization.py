"""Extractive summarization: the sentences of a text that stand for the others, or its first ones. No model is needed.

What a written summary must beat: it invents nothing, and of news and papers the first sentences are hard to beat.

Source: Erkan & Radev 2004, LexRank, sections 3.2 and 3.3 (continuous); lead sentences: Nenkova 2005, section 2.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.tasks.base import Task
from tsumugu.text.japanese import is_japanese
from tsumugu.text.sentences import spans

Method = Literal["lexrank", "lead"]

DAMPING = 0.85
"""How much of a sentence's weight comes from the others; the rest is the same for all."""

_WORDS = re.compile(r"[^\W_]+")


class ExtractiveSummarization(Task):
    """Sentences of the text itself.

    A text gives `[{"summary_text", "sentences"}]`: the chosen sentences in the text's order, joined, and of each its
    `{"text", "start", "end", "score"}` in characters of the text.

    Options of a call:
        num_sentences: how many (3).
        ratio: as a share of the text's sentences instead, at least one.
        method: lexrank: those most like the others, by words that are rare elsewhere in the text. lead: the first ones.
    """

    name = "extractive-summarization"
    options = frozenset({"num_sentences", "ratio", "method"})
    needs_model = False

    def __init__(self, *, batch_size: int | None = None, **defaults: Any) -> None:
        self.batch_size = batch_size
        self.defaults = self._checked(defaults)

    @classmethod
    def load(cls, source: str | Path | None = None, **options: Any) -> Self:
        """Ready to be called; there is nothing to load.

        Raises:
            InputError: a model is named.
        """
        if source is not None:
            raise InputError(f"{cls.name} needs no model", where="model", mend="leave it out, or use summarization")
        for name in ("tokenizer", "dtype", "device", "engine", "quantize", "kv_cache", "adapter", "progress"):
            options.pop(name, None)
        return cls(**options)

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        method = options.get("method", "lexrank")
        if method not in get_args(Method):
            raise InputError(f"no method {method!r}", where="method", mend=did_you_mean(str(method), get_args(Method)))
        return [[self._summary(text, method, options)] for text in rows]

    def _summary(self, text: str, method: Method, options: dict[str, Any]) -> dict[str, Any]:
        places = list(spans(text))
        scores = lexrank([text[start:end] for start, end in places]) if method == "lexrank" else lead(len(places))
        count = _count(len(places), options)
        best = sorted(np.argsort(-scores, kind="stable")[:count].tolist())
        chosen = [
            {"text": text[start:end], "start": start, "end": end, "score": float(scores[index])}
            for index, (start, end) in ((index, places[index]) for index in best)
        ]
        return {"summary_text": _joined([each["text"] for each in chosen]), "sentences": chosen}

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        return {"summary_text": result[0]["summary_text"]}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        yield result[0]["summary_text"]


def lexrank(sentences: Sequence[str]) -> NDArray[np.float64]:
    """How central each sentence is, `[sentences]`, summing to 1: a walk from sentence to sentence along likeness.

    Likeness is the cosine of words weighted by how few of the sentences have them.
    """
    count = len(sentences)
    if count == 0:
        return np.zeros(0)
    found = [Counter(words(sentence)) for sentence in sentences]
    number = {word: index for index, word in enumerate(dict.fromkeys(word for each in found for word in each))}
    weights = np.zeros((count, max(1, len(number))))
    for row, counts in enumerate(found):
        for word, times in counts.items():
            weights[row, number[word]] = times
    weights *= np.log(1 + count / np.maximum(1, (weights > 0).sum(0)))
    lengths = np.linalg.norm(weights, axis=1, keepdims=True)
    weights /= np.where(lengths == 0, 1, lengths)
    likeness = weights @ weights.T
    rows = likeness.sum(1, keepdims=True)
    steps = np.where(rows == 0, 1 / count, likeness / np.where(rows == 0, 1, rows))
    # The walk's weights are the solution of w = d · stepsᵀ w + (1 - d) / n.
    solved: NDArray[np.float64] = np.linalg.solve(
        np.eye(count) - DAMPING * steps.T, np.full(count, (1 - DAMPING) / count)
    )
    return solved


def lead(count: int) -> NDArray[np.float64]:
    """Scores that fall from the first sentence on, `[count]`."""
    scores: NDArray[np.float64] = np.arange(count, 0, -1) / max(1, count * (count + 1) // 2)
    return scores


def words(sentence: str) -> list[str]:
    """What a sentence is compared by: words in lower case, and of Japanese every two neighbouring characters."""
    found: list[str] = []
    for run in _WORDS.findall(sentence.lower()):
        for piece in _by_script(run):
            found += _pairs(piece) if is_japanese(piece[0]) else [piece]
    return found


def _by_script(run: str) -> list[str]:
    """The run cut where Japanese begins or ends."""
    pieces: list[str] = []
    for character in run:
        if pieces and is_japanese(pieces[-1][0]) == is_japanese(character):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def _pairs(piece: str) -> list[str]:
    return [piece] if len(piece) == 1 else [piece[at : at + 2] for at in range(len(piece) - 1)]


def _count(available: int, options: dict[str, Any]) -> int:
    ratio, wanted = options.get("ratio"), int(options.get("num_sentences", 3))
    if ratio is not None:
        if not 0 < ratio <= 1:
            raise InputError(f"{ratio} is no share", where="ratio", mend="more than 0, at most 1")
        return max(1, round(float(ratio) * available))
    if wanted < 1:
        raise InputError(f"{wanted} sentences are none", where="num_sentences", mend="at least 1")
    return wanted


def _joined(sentences: Sequence[str]) -> str:
    """Sentences as one text, with a space where the sentence before it is not Japanese."""
    text = ""
    for sentence in sentences:
        text += sentence if not text or text[-1] in "。！？．｡」』）" else f" {sentence}"
    return text
