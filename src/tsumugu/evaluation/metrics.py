"""Metrics of classification, correlation, calibration, likelihood and sampled code. Needs NumPy alone.

Metrics of classes work on sums: `class_counts` says of each example what it adds, and any metric is a function of the
sums over some examples. So a thousand resamples cost one matrix product (see `tsumugu.evaluation.resampling`), where a
library that reads labels would count anew for each.

Where a denominator is 0, the value is 0, as scikit-learn has it; correlations of constants are not a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tsumugu.core.errors import InputError

Array = npt.NDArray[np.float64]
Average = Literal["micro", "macro", "weighted"]


def encode(references: Sequence[str], predictions: Sequence[str], labels: Sequence[str]) -> npt.NDArray[np.int64]:
    """The places of both in `labels`, `[2, examples]`; a prediction that is none of the labels is -1.

    Raises:
        InputError: as many of both are needed, at least one, and every reference must be a label.
    """
    check_pairs(references, predictions)
    places = {label: at for at, label in enumerate(labels)}
    for at, reference in enumerate(references):
        if reference not in places:
            raise InputError(f"the reference {reference!r} is not among the labels", where=f"example {at + 1}")
    return np.array([[places[each] for each in references], [places.get(each, -1) for each in predictions]])


def class_counts(places: npt.NDArray[np.int64], classes: int) -> Array:
    """What each example adds to true positives, predictions and references of each class, `[examples, 3 * classes]`."""
    gold, predicted = places
    rows = np.zeros((3, len(gold), classes + 1))
    at = np.arange(len(gold))
    rows[0, at, np.where(gold == predicted, gold, classes)] = 1
    rows[1, at, np.where(predicted >= 0, predicted, classes)] = 1
    rows[2, at, gold] = 1
    return rows[:, :, :classes].transpose(1, 0, 2).reshape(len(gold), 3 * classes)


def confusion_matrix(places: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """How often a reference (row) was predicted as what (column), `[classes, classes + 1]`; the last column: none."""
    gold, predicted = places
    cells = gold * (classes + 1) + np.where(predicted >= 0, predicted, classes)
    return np.bincount(cells, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def _parts(sums: Array) -> tuple[Array, Array, Array]:
    true, predicted, gold = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    return true, predicted, gold


def accuracy(sums: Array) -> Array:
    """The share of examples that are right, of sums of `class_counts`, `[…, 3 * classes]`."""
    true, _, gold = _parts(sums)
    return _divide(true.sum(-1), gold.sum(-1))


def precision_recall_f1(sums: Array, average: Average | None = None) -> tuple[Array, Array, Array]:
    """Precision, recall and F1 of sums of `class_counts`.

    Args:
        sums: `[…, 3 * classes]`.
        average: "micro" (over all decisions), "macro" (the mean of the classes that occur as reference or prediction),
            "weighted" (by how often they occur as reference); None: each class, `[…, classes]`.

    Source: van Rijsbergen 1979, chapter 7 (F); Sokolova and Lapalme 2009, table 3 (micro and macro averages).
    """
    true, predicted, gold = _parts(sums)
    if average == "micro":
        true, predicted, gold = (each.sum(-1, keepdims=True) for each in (true, predicted, gold))
    values = _divide(true, predicted), _divide(true, gold), _divide(2 * true, predicted + gold)
    if average is None:
        return values
    weights = gold if average == "weighted" else ((predicted + gold) > 0).astype(float)
    total = weights.sum(-1)
    precision, recall, f1 = (_divide((each * weights).sum(-1), total) for each in values)
    return precision, recall, f1


def matthews(sums: Array) -> Array:
    """Matthews' correlation coefficient for any number of classes, of sums of `class_counts`.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient", equation 8.
    """
    true, predicted, gold = _parts(sums)
    count = gold.sum(-1)
    above = true.sum(-1) * count - (predicted * gold).sum(-1)
    # A prediction that is no label is a class of its own, which no reference has.
    none = count - predicted.sum(-1)
    spread = (count**2 - (predicted**2).sum(-1) - none**2) * (count**2 - (gold**2).sum(-1))
    return _divide(above, np.sqrt(np.maximum(spread, 0)))


def mean(sums: Array) -> Array:
    """The mean of values, of sums of a value and a count, `[…, 2]`."""
    return _divide(sums[..., 0], sums[..., 1])


def moments(first: npt.ArrayLike, second: npt.ArrayLike) -> Array:
    """What each pair adds to count, sums, squares and product, `[pairs, 6]`, both centred on their means."""
    x, y = (np.asarray(each, float) for each in (first, second))
    check_pairs(x, y)
    x, y = x - x.mean(), y - y.mean()
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1)


def pearson(sums: Array) -> Array:
    """Pearson's correlation of sums of `moments`, `[…, 6]`; not a number where either is constant."""
    count, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt((count * xx - x * x) * (count * yy - y * y))
        value = (count * xy - x * y) / spread
    return np.where(spread > 0, np.clip(value, -1, 1), np.nan)


def spearman(first: npt.ArrayLike, second: npt.ArrayLike, weights: Array | None = None) -> Array:
    """Spearman's rank correlation; ties share their mean rank.

    Args:
        first, second: `[pairs]`.
        weights: how often each pair is there, `[resamples, pairs]`; once each when left out.

    Returns:
        `[resamples]`, or a single value without `weights`.

    Source: Spearman 1904, "The proof and measurement of association between two things".
    """
    x, y = (np.asarray(each, float) for each in (first, second))
    check_pairs(x, y)
    counts = np.ones((1, len(x))) if weights is None else weights
    ranks = [_ranks(each, counts) for each in (x, y)]
    total = counts.sum(-1, keepdims=True)
    x, y = (each - (counts * each).sum(-1, keepdims=True) / total for each in ranks)
    spread = np.sqrt((counts * x * x).sum(-1) * (counts * y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(spread > 0, np.clip((counts * x * y).sum(-1) / spread, -1, 1), np.nan)
    return found if weights is not None else found[0]


def _ranks(values: Array, counts: Array) -> Array:
    """The mean rank of each value where it occurs `counts` times, `[resamples, values]`."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    ties = np.add.reduceat(counts[:, order], starts, axis=-1)
    ranks = np.cumsum(ties, -1) - (ties - 1) / 2
    group = np.empty(len(values), int)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    found: Array = ranks[:, group]
    return found


def calibration_bins(confidences: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> Array:
    """Examples, the sum of confidences and how many are right in bins of equal width, `[bins, 3]`.

    A confidence on an edge belongs to the bin below it.
    """
    sure, right = (np.asarray(each, float) for each in (confidences, correct))
    check_pairs(sure, right)
    if ((sure < 0) | (sure > 1)).any():
        raise InputError("a confidence is not between 0 and 1", where="confidences")
    which = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    return np.stack([np.bincount(which, each, bins) for each in (np.ones_like(sure), sure, right)], -1)


def expected_calibration_error(found: Array) -> Array:
    """The mean distance of confidence and accuracy, of `calibration_bins` `[…, bins, 3]`.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 5.
    """
    count, sure, right = np.moveaxis(found, -1, 0)
    return _divide(np.abs(sure - right).sum(-1), count.sum(-1))


def log_loss(probabilities: npt.ArrayLike, gold: npt.ArrayLike) -> Array:
    """The negative log-likelihood of each example in nats, from `[examples, classes]` and the right classes."""
    table, right = np.asarray(probabilities, float), np.asarray(gold, int)
    tiny = np.finfo(float).eps
    found: Array = -np.log(np.clip(table[np.arange(len(right)), right] / table.sum(-1), tiny, 1 - tiny))
    return found


def brier_score(probabilities: npt.ArrayLike, gold: npt.ArrayLike) -> Array:
    """The squared distance of each example's probabilities from certainty, summed over classes.

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability", equation 2.
    """
    table, right = np.asarray(probabilities, float), np.asarray(gold, int)
    found: Array = ((table - np.eye(table.shape[-1])[right]) ** 2).sum(-1)
    return found


def perplexity(nats: float, tokens: int) -> float:
    """The perplexity of text whose negative log-likelihood is `nats` over `tokens` predictions."""
    if tokens < 1:
        raise InputError("there is no token", where="tokens")
    mean = nats / tokens
    return math.exp(mean) if mean < 700 else math.inf


def bits_per_byte(nats: float, size: int) -> float:
    """The bits that a model needs for a byte of the text: comparable between tokenizers.

    Source: Gao et al. 2020, "The Pile", section 3.1.
    """
    if size < 1:
        raise InputError("there is no text", where="size")
    return nats / size / math.log(2)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that one of `k` samples is right, estimated without bias from `correct` of `samples`.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise InputError(f"pass@{k} cannot be told from {samples} samples, {correct} of them right", where="k")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def check_pairs(references: Sequence[Any] | npt.NDArray[Any], predictions: Sequence[Any] | npt.NDArray[Any]) -> None:
    """Raise InputError unless there are as many predictions as references, and at least one."""
    if len(references) != len(predictions):
        raise InputError(f"{len(predictions)} predictions for {len(references)} references", where="predictions")
    if not len(references):
        raise InputError("there is nothing to score", where="references")


def _divide(above: Array, below: Array) -> Array:
    return np.divide(
        above, below, out=np.zeros(np.broadcast_shapes(np.shape(above), np.shape(below))), where=below != 0
    )
