"""How sure a score is, and whether one system beats another: bootstrap, approximate randomisation, McNemar.

A `Measure` is a metric as a function of weights, one for each example: 1 for all gives the metric, and a resample is a
row of counts. Needs NumPy alone; the same seed gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tsumugu.core.errors import InputError
from tsumugu.evaluation.metrics import Array, check_pairs, spearman

_CELLS = 1 << 22
"""Weights that are held at once."""

Test = Literal["randomization", "bootstrap"]


@dataclass(frozen=True)
class Measure:
    """A metric of some examples.

    Attributes:
        name: as in tables.
        rows: what each example adds, `[examples, sums]`; of ranks: the two values.
        finish: the metric of sums, `[…, sums]` to `[…]`; None for Spearman's correlation, which needs ranks.
        higher: whether more is better.
    """

    name: str
    rows: Array
    finish: Callable[[Array], Array] | None
    higher: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def value(self) -> float:
        """The metric of all examples."""
        if self.finish is None:
            return float(spearman(self.rows[:, 0], self.rows[:, 1]))
        return float(self.finish(self.rows.sum(0)))

    def of(self, weights: Array) -> Array:
        """The metric of each row of weights, `[resamples, examples]` to `[resamples]`."""
        if self.finish is None:
            return spearman(self.rows[:, 0], self.rows[:, 1], weights)
        return self.finish(weights @ self.rows)

    def part(self, keep: Array) -> Measure:
        """The same metric of some examples, by a mask or by places."""
        return Measure(self.name, self.rows[keep], self.finish, self.higher)


@dataclass(frozen=True)
class Score:
    """A value, and an interval that holds what other examples of the same kind would have given.

    Attributes:
        value: of all examples.
        low, high: the ends of the interval.
        examples: how many there are.
    """

    value: float
    low: float
    high: float
    examples: int

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


@dataclass(frozen=True)
class Difference:
    """How much better the first of two systems is on the same examples, by an interval and a p-value.

    Attributes:
        value: first less second.
        low, high: the ends of the bootstrap interval.
        p: how likely so large a difference, either way, is by chance alone.
        test: how `p` was found.
    """

    value: float
    low: float
    high: float
    p: float
    test: str


def bootstrap(measure: Measure, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> Score:
    """The percentile bootstrap interval.

    Resamples for which the metric is not a number (a correlation of constants) are left out.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    values = _bootstrap_values((measure,), resamples, seed)[0]
    low, high = _interval(values, confidence)
    return Score(measure.value, low, high, len(measure))


def compare(
    first: Measure,
    second: Measure,
    *,
    test: Test | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Two systems on the same examples.

    Args:
        first, second: the same metric of both, in the same order of examples.
        test: "randomization" swaps the systems' answers example by example; "bootstrap" draws the same examples for
            both. Randomisation where the metric is made of sums, when left out; a rank correlation is not.

    Raises:
        InputError: the examples are not the same number, or the test cannot be done.

    Source: Noreen 1989 (approximate randomisation), Koehn 2004 (paired bootstrap), and Riezler and Maxwell 2005,
    section 4, on both; the p-value of the bootstrap is of shifted differences (Efron and Tibshirani 1993, 16.4).
    """
    if len(first) != len(second):
        raise InputError(f"{len(first)} examples of one system and {len(second)} of the other", where="compare")
    sums = first.finish is not None
    chosen = test or ("randomization" if sums else "bootstrap")
    if chosen == "randomization" and not sums:
        raise InputError(f"{first.name} is not made of sums", where="test", mend="use bootstrap")
    mine, theirs = _bootstrap_values((first, second), resamples, seed)
    drawn = mine - theirs
    found = first.value - second.value
    low, high = _interval(drawn, confidence)
    if chosen == "randomization":
        drawn = _swapped(first, second, resamples, seed)
    else:
        drawn = drawn[np.isfinite(drawn)]
        drawn = drawn - found
    # What is as large but for rounding is as large.
    p = float((np.sum(np.abs(drawn) >= abs(found) - 1e-12) + 1) / (len(drawn) + 1))
    return Difference(found, low, high, p, chosen)


def mcnemar(first: Array, second: Array) -> float:
    """The exact p-value of McNemar's test: do two systems err equally often?

    Args:
        first, second: whether each is right, `[examples]`.

    Source: McNemar 1947; the exact form as in Dietterich 1998, section 3.1.
    """
    check_pairs(first, second)
    only_first = int(np.sum((first > 0) & ~(second > 0)))
    only_second = int(np.sum((second > 0) & ~(first > 0)))
    count = only_first + only_second
    least = min(only_first, only_second)
    # In logarithms: the coefficients of many examples are larger than any float.
    terms = [math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in range(least + 1)]
    tail = math.fsum(math.exp(each - count * math.log(2)) for each in terms)
    return min(1.0, 2 * tail)


def _bootstrap_values(measures: tuple[Measure, ...], resamples: int, seed: int) -> Array:
    """The metrics on the same resamples, `[measures, resamples]`."""
    return np.concatenate(
        [[each.of(counts) for each in measures] for counts in _draws(len(measures[0]), resamples, seed)], -1
    )


def _draws(count: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each example is drawn, some resamples at a time."""
    if resamples < 1 or count < 1:
        raise InputError("there is nothing to draw", where="resamples")
    generator = np.random.default_rng(seed)
    each = max(1, _CELLS // count)
    for begin in range(0, resamples, each):
        rows = min(each, resamples - begin)
        drawn = generator.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(float)


def _swapped(first: Measure, second: Measure, resamples: int, seed: int) -> Array:
    """Differences where each example's answers went to either system by the toss of a coin."""
    assert first.finish is not None
    generator = np.random.default_rng([seed, 1])
    mine, theirs, gap = first.rows.sum(0), second.rows.sum(0), second.rows - first.rows
    each = max(1, _CELLS // len(first))
    found = []
    for begin in range(0, resamples, each):
        coins = generator.integers(0, 2, (min(each, resamples - begin), len(first))).astype(float)
        moved = coins @ gap
        found.append(first.finish(mine + moved) - first.finish(theirs - moved))
    return np.concatenate(found)


def _interval(values: Array, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise InputError(f"{confidence} is no confidence", where="confidence", mend="between 0 and 1, such as 0.95")
    sound = values[np.isfinite(values)]
    if not len(sound):
        return math.nan, math.nan
    low, high = np.quantile(sound, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
