"""Intervals and tests of significance, held to SciPy and to plain repetition."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tsumugu.core.errors import InputError
from tsumugu.evaluation.metrics import class_counts, encode, mean, moments, pearson, precision_recall_f1
from tsumugu.evaluation.resampling import Measure, bootstrap, compare, mcnemar


def accuracy_of(right) -> Measure:
    right = np.asarray(right, float)
    return Measure("accuracy", np.stack([right, np.ones_like(right)], -1), mean)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=20), st.data())
def test_a_resample_is_a_repetition(pairs, data):
    places = encode([gold for gold, _ in pairs], [guess for _, guess in pairs], ["a", "b", "c"])
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs)).filter(any))
    measure = Measure("f1", class_counts(places, 3), lambda sums: precision_recall_f1(sums, "macro")[2])
    again = Measure("f1", class_counts(np.repeat(places, counts, axis=1), 3), measure.finish)
    assert measure.of(np.array([counts], float))[0] == pytest.approx(again.value, abs=1e-12)


@pytest.mark.parametrize(("right", "count"), [(30, 40), (5, 100), (450, 900)])
def test_the_interval_of_an_accuracy_is_the_binomials(right, count):
    score = bootstrap(accuracy_of([1] * right + [0] * (count - right)), resamples=20_000, seed=7)
    law = scipy.stats.binom(count, right / count)
    assert score.value == right / count
    assert abs(score.low * count - law.ppf(0.025)) <= 1
    assert abs(score.high * count - law.ppf(0.975)) <= 1


def test_the_interval_of_a_correlation_is_scipys():
    generator = np.random.default_rng(3)
    x = generator.normal(size=200)
    y = x + generator.normal(size=200)
    score = bootstrap(Measure("pearson", moments(x, y), pearson), resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (x, y),
        lambda a, b, axis: scipy.stats.pearsonr(a, b, axis=axis).statistic,
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert score.low == pytest.approx(theirs.low, abs=0.005)  # both draw by chance
    assert score.high == pytest.approx(theirs.high, abs=0.005)
    ranks = bootstrap(Measure("spearman", np.stack([x, y], -1), None))
    assert ranks.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    assert ranks.low < ranks.value < ranks.high


def test_the_same_seed_gives_the_same_interval():
    measure = accuracy_of([1, 0, 1, 1, 0, 1, 0] * 9)
    assert bootstrap(measure, seed=1) == bootstrap(measure, seed=1)
    assert bootstrap(measure, seed=1) != bootstrap(measure, seed=2)


def test_memory_is_bounded_by_pieces(monkeypatch):
    measure = accuracy_of([1, 0, 1, 1] * 25)
    monkeypatch.setattr("tsumugu.evaluation.resampling._CELLS", 250)
    assert abs(bootstrap(measure, resamples=999).value - 0.75) < 1e-12


def test_randomisation_is_that_of_all_swaps():
    first = np.array([1, 1, 1, 1, 0, 1, 1, 0, 1, 1], float)
    second = np.array([0, 1, 0, 1, 0, 0, 1, 1, 0, 0], float)
    gaps = first - second
    exact = np.mean([abs(np.dot(signs, gaps)) >= abs(gaps.sum()) - 1e-12 for signs in product([-1, 1], repeat=10)])
    found = compare(accuracy_of(first), accuracy_of(second), resamples=50_000)
    assert found.test == "randomization"
    assert found.value == pytest.approx(0.4)
    assert found.p == pytest.approx(exact, abs=0.01)
    theirs = scipy.stats.permutation_test(
        (first, second), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples", n_resamples=np.inf
    )
    assert theirs.pvalue == pytest.approx(exact, abs=1e-12)


def test_the_same_system_is_no_better_than_itself():
    measure = accuracy_of([1, 0, 1, 1, 0])
    for test in ("randomization", "bootstrap"):
        found = compare(measure, measure, test=test)
        assert (found.value, found.p, found.low, found.high) == (0, 1, 0, 0)


def test_a_clear_difference_is_significant_either_way():
    good, bad = accuracy_of([1] * 90 + [0] * 10), accuracy_of([0] * 60 + [1] * 40)
    for test in ("randomization", "bootstrap"):
        found, turned = compare(good, bad, test=test), compare(bad, good, test=test)
        assert found.p == pytest.approx(1 / 1001)
        assert turned.value == -found.value
        assert found.low > 0 > turned.high


def test_ranks_are_compared_by_bootstrap():
    x = np.arange(60.0)
    first = Measure("spearman", np.stack([x, x + np.tile([0, 3], 30)], -1), None)
    second = Measure("spearman", np.stack([x, np.roll(x, 17)], -1), None)
    found = compare(first, second)
    assert found.test == "bootstrap"
    assert found.p < 0.01
    with pytest.raises(InputError, match="spearman is not made of sums; use bootstrap"):
        compare(first, second, test="randomization")


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_mcnemar_is_the_binomial_test(pairs):
    first, second = np.array(pairs, float).T
    only = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    expected = scipy.stats.binomtest(only[0], sum(only), 0.5).pvalue if sum(only) else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, abs=1e-9)


def test_mcnemar_of_many():
    first = np.r_[np.ones(6000), np.zeros(5700)]
    expected = scipy.stats.binomtest(6000, 11700, 0.5).pvalue
    assert mcnemar(first, 1 - first) == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_drawn():
    with pytest.raises(InputError, match="4 examples of one system and 3"):
        compare(accuracy_of([1, 0, 1, 0]), accuracy_of([1, 0, 1]))
    with pytest.raises(InputError, match="is no confidence"):
        bootstrap(accuracy_of([1, 0]), confidence=95)
    with pytest.raises(InputError, match="nothing to draw"):
        bootstrap(accuracy_of([1, 0]), resamples=0)
    constant = bootstrap(Measure("pearson", moments([1, 1, 1], [1, 2, 3]), pearson))
    assert math.isnan(constant.value)
    assert math.isnan(constant.low)
