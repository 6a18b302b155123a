"""What a model must beat: the majority, TF-IDF with logistic regression, sentence vectors with it, and simple rules.

scikit-learn fits; these are its textbook settings, not searched: C = 10 for logistic regression, alpha = 1 for ridge.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tsumugu.core.errors import InputError, MissingExtraError, did_you_mean
from tsumugu.data.labelled.examples import ChoiceExample, Examples, QuestionExample, SpanExample
from tsumugu.data.labelled.tags import spans_to_tags, tags_to_spans
from tsumugu.evaluation.scoring import Prediction
from tsumugu.tasks.extractive_summarization import lexrank
from tsumugu.text.japanese import japanese_share

Embed = Callable[[Sequence[str]], Any]
"""Texts to vectors, `[texts, dim]`."""

Predict = Callable[[Examples], Iterator[Prediction]]


class Fit(Protocol):
    """Learns from examples; what it gives predicts others."""

    def __call__(self, train: Examples, embed: Embed | None) -> Predict: ...


@dataclass(frozen=True)
class Baseline:
    """A baseline of some kinds of data.

    Attributes:
        summary: what it does, in one line.
        kinds: of data that it solves.
        fit: learns from examples.
        embeds: whether it needs vectors of texts.
    """

    summary: str
    kinds: tuple[str, ...]
    fit: Fit
    embeds: bool = False


def find_baseline(name: str, kind: str) -> Baseline:
    """The baseline of this name.

    Raises:
        InputError: there is none, or it is for other kinds of data.
    """
    if name not in BASELINES:
        raise InputError(f"there is no baseline {name!r}", where="baseline", mend=did_you_mean(name, BASELINES))
    found = BASELINES[name]
    if kind not in found.kinds:
        fitting = ", ".join(each for each, baseline in BASELINES.items() if kind in baseline.kinds)
        raise InputError(f"the baseline {name} is not for {kind}", where="baseline", mend=f"use {fitting}")
    return found


# The majority -----------------------------------------------------------------------------------------


def _majority(train: Examples, embed: Embed | None) -> Predict:
    """The commonest label, with the shares of all as probabilities; the mean score; no answer; the commonest place."""
    if train.kind == "similarity":
        mean = float(np.mean(train.answers))
        return lambda examples: (Prediction(mean) for _ in examples)
    if train.kind == "question-answering":
        return lambda examples: (Prediction("") for _ in examples)
    counts = Counter(train.answers)
    best = min(counts, key=lambda each: (-counts[each], str(each)))
    shares = {each: count / len(train) for each, count in counts.items()}
    if train.kind == "multiple-choice":
        return lambda examples: (Prediction(min(best, len(row.choices) - 1)) for row in examples)
    return lambda examples: (Prediction(best, shares[best], shares) for _ in examples)


def _token_majority(train: Examples, embed: Embed | None) -> Predict:
    """The commonest tag of each token in training; tokens are the data's own, else runs of one script."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        for (start, end), tag in zip(*_tagged(row), strict=True):
            seen[row.text[start:end]][tag] += 1
    commonest = {token: min(tags, key=lambda tag: (-tags[tag], tag)) for token, tags in seen.items()}

    def predict(examples: Examples) -> Iterator[Prediction]:
        for row in examples:
            tokens = _tokens(row)
            tags = [commonest.get(row.text[start:end], "O") for start, end in tokens]
            spans = tags_to_spans(tags)
            yield Prediction(tuple((tokens[each.start][0], tokens[each.end - 1][1], each.label) for each in spans))

    return predict


_RUNS = re.compile(r"[ぁ-ゟ]+|[゠-ヿㇰ-ㇿー]+|[々〆一-鿿]+|[^\W\d_ぁ-ヿ々〆一-鿿]+|\d+|\S")


def _tokens(row: SpanExample) -> list[tuple[int, int]]:
    return list(row.tokens) if row.tokens is not None else [each.span() for each in _RUNS.finditer(row.text)]


def _tagged(row: SpanExample) -> tuple[list[tuple[int, int]], list[str]]:
    """Tokens with the tags of the spans that they lie in."""
    tokens = _tokens(row)
    spans = []
    for start, end, label in row.spans:
        inside = [at for at, token in enumerate(tokens) if start <= token[0] and token[1] <= end]
        if inside:
            spans.append((label, inside[0], inside[-1] + 1))
    return tokens, spans_to_tags(spans, len(tokens))


# Bags of n-grams, and vectors -------------------------------------------------------------------------


def _vectorizer(texts: Sequence[str]) -> Any:
    """TF-IDF of characters for Japanese (1 to 3), of words (1, 2) and parts of words (2 to 4) for all else."""
    sklearn_text = _sklearn("sklearn.feature_extraction.text")
    if japanese_share(texts[:500]) > 0.3:
        return sklearn_text.TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True, min_df=2)
    words = sklearn_text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\S+")
    parts = sklearn_text.TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, min_df=2)
    return _sklearn("sklearn.pipeline").FeatureUnion([("words", words), ("parts", parts)])


class _Bags:
    """Features by TF-IDF; of two texts: both, their product, their distance, and how much they share."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._vectorizer = _vectorizer(texts).fit(texts)

    def one(self, texts: Sequence[str]) -> Any:
        return self._vectorizer.transform(texts)

    def two(self, first: Sequence[str], second: Sequence[str]) -> Any:
        sparse = _sklearn("scipy.sparse")
        left, right = self.one(first), self.one(second)
        product = left.multiply(right)
        return sparse.hstack([left, right, product, abs(left - right), product.sum(1)], format="csr")


class _Vectors:
    """Features by sentence vectors; of two texts: both, their product, their distance and their cosine."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed

    def one(self, texts: Sequence[str]) -> Any:
        return self._embed(texts)

    def two(self, first: Sequence[str], second: Sequence[str]) -> Any:
        left, right = self.one(first), self.one(second)
        product = left * right
        return np.hstack([left, right, product, abs(left - right), product.sum(-1, keepdims=True)])


def _tfidf(train: Examples, embed: Embed | None) -> Predict:
    return _regression(train, _Bags([text for row in train for text in _read(row)]))


def _embeddings(train: Examples, embed: Embed | None) -> Predict:
    if embed is None:
        raise InputError("vectors of texts are needed", where="baseline", mend="name a model that makes them")
    return _regression(train, _Vectors(embed))


def _read(row: Any) -> Sequence[str]:
    return (*row.texts, *row.choices) if isinstance(row, ChoiceExample) else row.texts


def _regression(train: Examples, features: _Bags | _Vectors) -> Predict:
    """Logistic regression on labels and choices, ridge regression on scores."""
    linear = _sklearn("sklearn.linear_model")

    def table(examples: Examples) -> Any:
        if examples.kind == "text-classification":
            return features.one([row.text for row in examples])
        if examples.kind == "multiple-choice":
            pairs = [(" ".join(row.texts), choice) for row in examples for choice in row.choices]
            return features.two([first for first, _ in pairs], [second for _, second in pairs])
        return features.two([row.text1 for row in examples], [row.text2 for row in examples])

    if train.kind == "similarity":
        ridge = linear.Ridge(alpha=1.0, solver="lsqr").fit(table(train), train.answers)
        return lambda examples: (Prediction(float(each)) for each in ridge.predict(table(examples)))
    if train.kind == "multiple-choice":
        right = [at == row.label for row in train for at in range(len(row.choices))]
        chooser = linear.LogisticRegression(C=10.0, max_iter=1000).fit(table(train), right)
        return lambda examples: _chosen(examples, chooser.decision_function(table(examples)))
    if len(set(train.answers)) == 1:
        return _majority(train, None)
    model = linear.LogisticRegression(C=10.0, max_iter=1000).fit(table(train), train.answers)
    return lambda examples: _labelled(model.classes_.tolist(), model.predict_proba(table(examples)))


def _labelled(labels: Sequence[str], probabilities: Any) -> Iterator[Prediction]:
    for row in probabilities.tolist():
        best = max(range(len(row)), key=row.__getitem__)
        yield Prediction(labels[best], row[best], dict(zip(labels, row, strict=True)))


def _chosen(examples: Examples, scores: Any) -> Iterator[Prediction]:
    at = 0
    for row in examples:
        mine = np.exp(scores[at : at + len(row.choices)] - scores[at : at + len(row.choices)].max())
        at += len(row.choices)
        yield Prediction(int(mine.argmax()), float(mine.max() / mine.sum()))


# Rules ------------------------------------------------------------------------------------------------

_SENTENCE = re.compile(r"[^。！？.!?\n]*(?:[。！？\n]+|[.!?]+(?=\s|$)|[.!?]|$)")


def sentences(text: str) -> list[str]:
    """The sentences of a text; a dot ends one only where a blank or the end follows."""
    found: list[str] = []
    for each in _SENTENCE.findall(text):
        if found and re.search(r"\w[.!?]$", found[-1]) and re.match(r"\w", each):
            found[-1] += each  # 3.5, e.g.
        elif each.strip():
            found.append(each)
    return [each.strip() for each in found]


def _lead(train: Examples, embed: Embed | None) -> Predict:
    """The first sentence: the usual baseline of short summaries."""
    return lambda examples: (Prediction(next(iter(sentences(row.source)), row.source)) for row in examples)


def _copy(train: Examples, embed: Embed | None) -> Predict:
    """The text as it is."""
    return lambda examples: (Prediction(row.source) for row in examples)


def _lexrank(train: Examples, embed: Embed | None) -> Predict:
    """The sentence most like the others (Erkan & Radev 2004)."""

    def central(text: str) -> str:
        parts = sentences(text)
        return parts[int(lexrank(parts).argmax())] if parts else text

    return lambda examples: (Prediction(central(row.source)) for row in examples)


def _nearest(train: Examples, embed: Embed | None) -> Predict:
    """The answer to the text of training that is most like the text, by the cosine of TF-IDF."""
    bags = _Bags([row.source for row in train])
    known = bags.one([row.source for row in train]).T

    def predict(examples: Examples) -> Iterator[Prediction]:
        for row in examples:
            yield Prediction(train[int((bags.one([row.source]) @ known).toarray().argmax())].targets[0])

    return predict


def _overlap(train: Examples, embed: Embed | None) -> Predict:
    """The cosine of TF-IDF: of two texts; of the question with each choice, or with each sentence of the context."""
    bags = _Bags([text for row in train for text in _read(row)])

    def cosines(first: Sequence[str], second: Sequence[str]) -> list[float]:
        left, right = bags.one(first), bags.one(second)
        above = np.asarray(left.multiply(right).sum(1)).ravel()
        below = np.sqrt(
            np.asarray(left.multiply(left).sum(1) * 1.0).ravel() * np.asarray(right.multiply(right).sum(1)).ravel()
        )
        return np.divide(above, below, out=np.zeros_like(above), where=below > 0).tolist()  # type: ignore[no-any-return]

    def best(question: str, texts: Sequence[str]) -> int:
        scores = cosines([question] * len(texts), texts)
        return max(range(len(scores)), key=scores.__getitem__)

    def predict(examples: Examples) -> Iterator[Prediction]:
        if examples.kind == "similarity":
            yield from map(Prediction, cosines([row.text1 for row in examples], [row.text2 for row in examples]))
            return
        for row in examples:
            if isinstance(row, QuestionExample):
                parts = sentences(row.context)
                yield Prediction(parts[best(row.question, parts)])
            else:
                yield Prediction(best(" ".join(row.texts), row.choices))

    return predict


def _sklearn(module: str) -> Any:
    """A module of scikit-learn, or of SciPy, which comes with it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError("scikit-learn", extra="eval", purpose="this baseline") from None


UNTAUGHT = ("lead", "lexrank", "copy")
"""Those that need no examples of training."""
_CLASSES = ("text-classification", "pair-classification")
BASELINES = {
    "majority": Baseline(
        "the commonest label", (*_CLASSES, "similarity", "question-answering", "multiple-choice"), _majority
    ),
    "tfidf": Baseline("TF-IDF and logistic regression", (*_CLASSES, "similarity", "multiple-choice"), _tfidf),
    "embeddings": Baseline(
        "sentence vectors and logistic regression", (*_CLASSES, "similarity", "multiple-choice"), _embeddings, True
    ),
    "token-majority": Baseline("the commonest tag of each token", ("token-classification",), _token_majority),
    "overlap": Baseline("the cosine of TF-IDF", ("similarity", "question-answering", "multiple-choice"), _overlap),
    "lead": Baseline("the first sentence", ("text-to-text",), _lead),
    "lexrank": Baseline("the sentence most like the others", ("text-to-text",), _lexrank),
    "nearest": Baseline("the answer to the most similar text of training", ("text-to-text",), _nearest),
    "copy": Baseline("the text as it is", ("text-to-text",), _copy),
}
