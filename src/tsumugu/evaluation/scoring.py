"""Answers against what is right: which metrics each kind of data has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.data.labelled.examples import Example, SpanExample
from tsumugu.evaluation.answers import Rules, answer_scores, best_threshold
from tsumugu.evaluation.entities import entity_counts
from tsumugu.evaluation.metrics import (
    Array,
    accuracy,
    brier_score,
    calibration_bins,
    class_counts,
    encode,
    expected_calibration_error,
    log_loss,
    matthews,
    mean,
    moments,
    pass_at_k,
    pearson,
    precision_recall_f1,
)
from tsumugu.evaluation.resampling import Measure
from tsumugu.evaluation.texts import Tokens, bleu, chrf, rouge
from tsumugu.text.japanese import japanese_share

BINS = 15
PRIMARY = {
    "text-classification": "accuracy",
    "pair-classification": "accuracy",
    "similarity": "spearman",
    "token-classification": "f1",
    "question-answering": "f1",
    "multiple-choice": "accuracy",
    "text-to-text": "rougeL",
    "language-modeling": "bits_per_byte",
    "code-generation": "pass@1",
}
"""The metric by which systems are ranked unless another is named."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a system answers to an example.

    Attributes:
        answer: a label, a score, spans, a text, or the number of a choice.
        confidence: how sure the system is of it, 0 to 1.
        probabilities: of every label, where the system says so.
        no_answer: how sure it is that a question has no answer.
    """

    answer: Any
    confidence: float | None = None
    probabilities: Mapping[str, float] | None = None
    no_answer: float | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """An example, solved.

    Attributes:
        id, texts, extra: the example's.
        reference: what is right: a label, a score, spans ``(start, end, label)``, texts, or the number of a choice.
        prediction: what the system answered.
    """

    id: str
    texts: tuple[str, ...]
    reference: Any
    prediction: Prediction
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Example, prediction: Prediction) -> Item:
        """An example with its prediction."""
        reference = example.answer
        if isinstance(example, SpanExample):
            reference = tuple(tuple(span) for span in example.spans)
        elif isinstance(reference, tuple):
            reference = tuple(getattr(each, "text", each) for each in reference)
        return cls(example.id, example.texts, reference, prediction, dict(example.extra))

    @property
    def correct(self) -> bool:
        """Whether the answer is exactly right."""
        answer = self.prediction.answer
        if isinstance(self.reference, tuple) and isinstance(answer, str):
            return answer.strip() in {each.strip() for each in self.reference or ("",)}
        if isinstance(self.reference, tuple):
            return set(self.reference) == set(answer)
        return bool(self.reference == answer)


@dataclass(frozen=True)
class Scoring:
    """How items are scored.

    Attributes:
        kind: of the data.
        labels: of the data, in order.
        rules: how answers to questions are compared; by the language of the references when left out.
        tokens: how texts are cut.
        k: of pass@k.
    """

    kind: str
    labels: tuple[str, ...] = ()
    rules: Rules | None = None
    tokens: Tokens = "auto"
    k: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Scored:
    """The metrics of some items, and what to say with them.

    Attributes:
        measures: by name, the usual ones first.
        labels: the labels that are counted.
        notes: settings that a reader must know to compare: signatures, rules, thresholds.
    """

    measures: dict[str, Measure]
    labels: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> Measure:
        """A metric by its name.

        Raises:
            InputError: there is none of this name.
        """
        if name not in self.measures:
            raise InputError(f"there is no metric {name!r}", where="metric", mend=did_you_mean(name, self.measures))
        return self.measures[name]


def score(items: Sequence[Item], scoring: Scoring) -> Scored:
    """All metrics of the items.

    Raises:
        InputError: there are none, or an answer is not of the kind.
        MissingExtraError: a library for texts is not installed.
    """
    if not items:
        raise InputError("there is nothing to score", where="items")
    match scoring.kind:
        case "text-classification" | "pair-classification":
            return _classes(items, scoring)
        case "similarity":
            return _similarities(items)
        case "token-classification":
            return _entities(items, scoring)
        case "question-answering":
            return _answers(items, scoring)
        case "multiple-choice":
            return _choices(items)
        case "language-modeling":
            return _likelihoods(items)
        case "code-generation":
            return _programs(items, scoring)
        case _:
            return _texts(items, scoring)


def _programs(items: Sequence[Item], scoring: Scoring) -> Scored:
    counts = [(int(item.reference), int(item.prediction.answer)) for item in items]
    rows = {k: np.array([[pass_at_k(samples, passed, k), 1.0] for samples, passed in counts]) for k in scoring.k}
    measures = {f"pass@{k}": Measure(f"pass@{k}", each, mean) for k, each in rows.items()}
    least, most = min(counts)[0], max(counts)[0]
    return Scored(measures, notes={"samples": str(least) if least == most else f"{least} to {most}"})


def _classes(items: Sequence[Item], scoring: Scoring) -> Scored:
    gold, guessed = [item.reference for item in items], [str(item.prediction.answer) for item in items]
    labels = scoring.labels or tuple(sorted(set(gold)))
    places = encode(gold, guessed, labels)
    rows = class_counts(places, len(labels))
    measures = {
        "accuracy": Measure("accuracy", rows, accuracy),
        "f1_macro": Measure("f1_macro", rows, lambda sums: precision_recall_f1(sums, "macro")[2]),
        "f1_micro": Measure("f1_micro", rows, lambda sums: precision_recall_f1(sums, "micro")[2]),
        "f1_weighted": Measure("f1_weighted", rows, lambda sums: precision_recall_f1(sums, "weighted")[2]),
        "mcc": Measure("mcc", rows, matthews),
    }
    measures |= _certainty(items)
    if all(item.prediction.probabilities for item in items):
        table = np.array(
            [[(item.prediction.probabilities or {}).get(label, 0.0) for label in labels] for item in items]
        )
        if (table.sum(-1) > 0).all():
            measures["log_loss"] = average("log_loss", log_loss(table, places[0]), higher=False)
            measures["brier"] = average("brier", brier_score(table, places[0]), higher=False)
    return Scored(measures, labels)


def _certainty(items: Sequence[Item]) -> dict[str, Measure]:
    """The calibration error, where every answer comes with a confidence."""
    sure = [item.prediction.confidence for item in items if item.prediction.confidence is not None]
    if len(sure) < len(items):
        return {}
    right = [float(item.correct) for item in items]
    # Bins of single examples, which add up to those of any number of them.
    rows = np.stack([calibration_bins([each], [hit], BINS).ravel() for each, hit in zip(sure, right, strict=True)])
    finish = lambda sums: expected_calibration_error(sums.reshape(*sums.shape[:-1], BINS, 3))  # noqa: E731
    return {"ece": Measure("ece", rows, finish, higher=False)}


def _similarities(items: Sequence[Item]) -> Scored:
    gold = [float(item.reference) for item in items]
    guessed = [float(item.prediction.answer) for item in items]
    return Scored(
        {
            "pearson": Measure("pearson", moments(gold, guessed), pearson),
            "spearman": Measure("spearman", np.stack([gold, guessed], -1), None),
        }
    )


def _entities(items: Sequence[Item], scoring: Scoring) -> Scored:
    gold = [item.reference for item in items]
    guessed = [[tuple(each) for each in item.prediction.answer] for item in items]
    found = {str(entity[-1]) for row in (*gold, *guessed) for entity in row}
    labels = (*scoring.labels, *sorted(found - set(scoring.labels)))
    rows = entity_counts(gold, guessed, labels)
    micro = [
        Measure(name, rows, lambda sums, at=at: precision_recall_f1(sums, "micro")[at])  # type: ignore[misc]
        for at, name in enumerate(("precision", "recall", "f1"))
    ]
    measures = {each.name: each for each in micro}
    measures["f1_macro"] = Measure("f1_macro", rows, lambda sums: precision_recall_f1(sums, "macro")[2])
    return Scored(measures, labels)


def _answers(items: Sequence[Item], scoring: Scoring) -> Scored:
    gold, guessed = [item.reference for item in items], [str(item.prediction.answer) for item in items]
    japanese = japanese_share(each for row in gold for each in row) > 0.3
    rules: Rules = scoring.rules or ("japanese" if japanese else "squad")
    rows = answer_scores(gold, guessed, rules)
    measures = {"exact_match": average("exact_match", rows[:, 0]), "f1": average("f1", rows[:, 1])}
    notes: dict[str, Any] = {"rules": rules}
    has = np.array([bool(row) for row in gold])
    if has.any() and not has.all():
        for name, kept in (("has_answer", has), ("no_answer", ~has)):
            # The others have weight 0, so that examples stay the same for every metric.
            measures[f"f1_{name}"] = Measure(f"f1_{name}", np.stack([rows[:, 1] * kept, kept], -1), mean)
        sure = [item.prediction.no_answer for item in items]
        if all(each is not None for each in sure):
            best, threshold = best_threshold(rows[:, 1], has.tolist(), guessed, [float(each or 0) for each in sure])
            notes |= {"best_f1": best, "best_f1_threshold": threshold}
    return Scored(measures, (), notes)


def _choices(items: Sequence[Item]) -> Scored:
    right = average("accuracy", np.array([float(item.correct) for item in items]))
    return Scored({"accuracy": right, **_certainty(items)})


def _likelihoods(items: Sequence[Item]) -> Scored:
    """Perplexity, and what it says of bytes, which does not depend on the tokenizer."""
    rows = np.array([[*item.prediction.answer, item.reference] for item in items], float)
    per_byte = lambda sums: sums[..., 0] / sums[..., 2] / math.log(2)  # noqa: E731
    per_token = lambda sums: np.exp(np.minimum(sums[..., 0] / sums[..., 1], 700))  # noqa: E731
    measures = [Measure("bits_per_byte", rows, per_byte, False), Measure("perplexity", rows, per_token, False)]
    return Scored({each.name: each for each in measures}, (), {"tokens": int(rows[:, 1].sum())})


def _texts(items: Sequence[Item], scoring: Scoring) -> Scored:
    gold, guessed = [item.reference for item in items], [str(item.prediction.answer) for item in items]
    measures = {each.name: each for each in rouge(gold, guessed, tokens=scoring.tokens)}
    measures["bleu"], bleu_signature = bleu(gold, guessed, tokens=scoring.tokens)
    measures["chrf"], chrf_signature = chrf(gold, guessed)
    measures["exact_match"] = average("exact_match", np.array([float(item.correct) for item in items]))
    return Scored(measures, (), {"bleu": bleu_signature, "chrf": chrf_signature})


def average(name: str, values: Array, *, higher: bool = True) -> Measure:
    """The mean of a value of each example as a measure."""
    return Measure(name, np.stack([values, np.ones(len(values))], -1), mean, higher)
