"""Metrics, held to scikit-learn, SciPy, seqeval, sacrebleu and rouge-score."""

from __future__ import annotations

import math
import warnings
from itertools import combinations

import numpy as np
import pytest
import sacrebleu
import scipy.stats
import seqeval.metrics
import seqeval.scheme
import sklearn.calibration
import sklearn.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from tsumugu.core.errors import InputError
from tsumugu.evaluation import metrics
from tsumugu.evaluation.answers import answer_f1, answer_scores, best_threshold, exact_match, normalize_answer
from tsumugu.evaluation.entities import entity_counts, tags_to_entities
from tsumugu.evaluation.texts import ROUGE, bleu, chrf, find_tokens, rouge

EXACT = {"rtol": 0, "atol": 1e-9}
LABELS = ["a", "b", "c"]
labelled = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "none of them"])), min_size=1, max_size=30
)
floats = st.one_of(st.sampled_from([0.0, 1.0, 2.5]), st.floats(-1e3, 1e3).map(lambda value: round(value, 3)))
pairs_of_numbers = st.lists(st.tuples(floats, floats), min_size=2, max_size=30)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Classes ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(labelled)
def test_classes_are_scikit_learns(pairs):
    gold, guessed = (list(each) for each in zip(*pairs, strict=True))
    places = metrics.encode(gold, guessed, LABELS)
    sums = metrics.class_counts(places, 3).sum(0)
    assert np.isclose(metrics.accuracy(sums), sklearn.metrics.accuracy_score(gold, guessed), **EXACT)
    assert np.isclose(metrics.matthews(sums), sklearn.metrics.matthews_corrcoef(gold, guessed), **EXACT)
    each = sklearn.metrics.precision_recall_fscore_support(gold, guessed, labels=LABELS, zero_division=0)
    assert np.allclose(metrics.precision_recall_f1(sums), each[:3], **EXACT)
    occurring = sorted({*gold, *guessed} & set(LABELS))
    for average in ("micro", "macro", "weighted"):
        expected = sklearn.metrics.precision_recall_fscore_support(
            gold, guessed, labels=occurring, average=average, zero_division=0
        )
        assert np.allclose(metrics.precision_recall_f1(sums, average), expected[:3], **EXACT)
    matrix = sklearn.metrics.confusion_matrix(gold, guessed, labels=[*LABELS, "none of them"])
    assert (metrics.confusion_matrix(places, 3) == matrix[:3]).all()


def test_what_cannot_be_scored():
    with pytest.raises(InputError, match="example 2: the reference 'x' is not among the labels"):
        metrics.encode(["a", "x"], ["a", "a"], LABELS)
    with pytest.raises(InputError, match="1 predictions for 2 references"):
        metrics.encode(["a", "b"], ["a"], LABELS)
    with pytest.raises(InputError, match="there is nothing to score"):
        metrics.encode([], [], LABELS)


# Correlation ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(pairs_of_numbers)
def test_correlations_are_scipys(pairs):
    x, y = np.array(pairs).T
    if np.ptp(x) and np.ptp(y):
        assume(np.std(x) > 1e-6 * np.abs(x).max() and np.std(y) > 1e-6 * np.abs(y).max())
        found = metrics.pearson(metrics.moments(x, y).sum(0))
        assert np.isclose(found, scipy.stats.pearsonr(x, y).statistic, **EXACT)
        assert np.isclose(metrics.spearman(x, y), scipy.stats.spearmanr(x, y).statistic, **EXACT)
    else:
        assert np.isnan(metrics.pearson(metrics.moments(x, y).sum(0)))
        assert np.isnan(metrics.spearman(x, y))


@settings(deadline=None)
@given(pairs_of_numbers, st.data())
def test_weights_are_repetitions(pairs, data):
    x, y = np.array(pairs).T
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x))), float)
    assume(counts.sum() > 1)
    again = np.repeat(x, counts.astype(int)), np.repeat(y, counts.astype(int))
    expected = metrics.spearman(*again)
    assert np.isclose(metrics.spearman(x, y, counts[None])[0], expected, equal_nan=True, **EXACT)


# Calibration and likelihood ---------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.001, 1), st.booleans()), min_size=1, max_size=50), st.integers(1, 20))
def test_calibration_error(pairs, bins):
    sure, right = np.array(pairs, float).T
    expected = 0.0
    for at in range(bins):
        inside = (np.ceil(sure * bins) - 1) == at
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    table = metrics.calibration_bins(sure, right, bins)
    assert np.isclose(metrics.expected_calibration_error(table), expected, **EXACT)
    if len({*right}) == 2 and not (np.round(sure * bins, 9) % 1 == 0).any():  # scikit-learn puts edges elsewhere
        accuracy, confidence = sklearn.calibration.calibration_curve(right, sure, n_bins=bins)
        filled = table[table[:, 0] > 0]
        assert np.allclose(filled[:, 2] / filled[:, 0], accuracy, **EXACT)
        assert np.allclose(filled[:, 1] / filled[:, 0], confidence, **EXACT)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=2, max_size=30))
def test_losses_of_probabilities(pairs):
    sure, gold = np.array(pairs, float).T
    table = np.stack([1 - sure, sure], -1)
    expected = sklearn.metrics.log_loss(gold, table, labels=[0, 1])
    assert np.isclose(metrics.log_loss(table, gold).mean(), expected, **EXACT)
    expected = sklearn.metrics.brier_score_loss(gold, sure, pos_label=1)
    assert np.isclose(metrics.brier_score(table, gold).mean(), 2 * expected, **EXACT)


def test_a_confidence_is_a_probability():
    with pytest.raises(InputError, match="a confidence is not between 0 and 1"):
        metrics.calibration_bins([1.2], [True])


def test_likelihoods():
    assert metrics.perplexity(3 * math.log(7), 3) == pytest.approx(7, abs=1e-9)
    assert metrics.perplexity(1e6, 1) == math.inf
    assert metrics.bits_per_byte(8 * math.log(2), 4) == pytest.approx(2, abs=1e-9)
    with pytest.raises(InputError, match="there is no token"):
        metrics.perplexity(1.0, 0)


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_pass_at_k_is_the_mean_over_all_draws(samples):
    for right in range(samples + 1):
        for k in range(1, samples + 1):
            draws = list(combinations(range(samples), k))
            expected = sum(any(each < right for each in draw) for draw in draws) / len(draws)
            assert metrics.pass_at_k(samples, right, k) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(InputError, match="pass@8 cannot be told"):
        metrics.pass_at_k(7, 0, 8)


# Entities ---------------------------------------------------------------------------------------------

tag = st.one_of(st.just("O"), st.builds("{}-{}".format, st.sampled_from("BI"), st.sampled_from(["PER", "LOC", "ORG"])))
sentences = st.lists(st.lists(st.tuples(tag, tag), min_size=1, max_size=10), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(sentences, st.sampled_from([None, "IOB2", "IOB1"]))
def test_entity_scores_are_seqevals(rows, scheme):
    gold, guessed = ([[pair[at] for pair in row] for row in rows] for at in (0, 1))
    found = [tags_to_entities(each, scheme) for each in (gold, guessed)]
    labels = sorted({entity[-1] for part in found for row in part for entity in row})
    sums = entity_counts(*found, labels).sum(0)
    strict = {} if scheme is None else {"mode": "strict", "scheme": getattr(seqeval.scheme, scheme)}
    for average in ("micro", "macro", "weighted"):
        assume(labels)
        expected = [
            score(gold, guessed, average=average, zero_division=0, **strict)
            for score in (seqeval.metrics.precision_score, seqeval.metrics.recall_score, seqeval.metrics.f1_score)
        ]
        assert np.allclose(metrics.precision_recall_f1(sums, average), expected, **EXACT)


def test_a_label_that_nobody_knows_still_counts_as_predicted():
    sums = entity_counts([[(0, 1, "A")]], [[(0, 1, "A"), (2, 3, "Z")]], ["A"]).sum(0)
    assert [float(each) for each in metrics.precision_recall_f1(sums, "micro")] == [0.5, 1.0, pytest.approx(2 / 3)]


# Answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "guessed", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel  tower", 1, 1),
        ("the", "", 1, 1),  # nothing is left of either
        ("a cat", "the dog", 0, 0),
        ("Barack Obama", "President Barack Obama", 0, 0.8),
        ("in the late 1990s", "late 1990s", 0, 0.8),
        ("", "something", 0, 0),
        ("another", "other", 0, 0),  # articles are words, not parts of words
        ("to to be", "to be be", 0, 2 / 3),  # bags, not sets
        ("a.b", "ab", 1, 1),
        ("東京", "東京", 1, 1),
        ("東京。", "東京", 0, 0),  # the rules know no punctuation but ASCII's
    ],
)
def test_the_rules_of_squad(gold, guessed, exact, f1):
    assert exact_match(gold, guessed) == exact
    assert answer_f1(gold, guessed) == pytest.approx(f1, abs=1e-12)


def test_japanese_answers_are_compared_by_characters():
    assert normalize_answer("「ＮＨＫ　ホール」。", "japanese") == "nhkホール"
    assert exact_match("１９９０年", "1990年。", "japanese") == 1
    assert answer_f1("東京都", "東京", "japanese") == pytest.approx(0.8)
    assert answer_f1("ﾎｰﾙ", "ホール", "japanese") == 1


def test_the_best_reference_counts_and_no_answer_is_one():
    scores = answer_scores([["Obama", "Barack Obama"], [], ["the"]], ["Barack Obama", "", ""])
    assert scores.tolist() == [[1, 1], [1, 1], [1, 1]]
    assert answer_scores([[]], ["something"]).tolist() == [[0, 0]]
    with pytest.raises(InputError, match="unknown rules 'squat'"):
        answer_scores([["a"]], ["a"], "squat")  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["", "x"]), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12
    )
)
def test_the_best_threshold_is_the_best_of_all(rows):
    has, given_answers, f1, no_answer = (list(each) for each in zip(*rows, strict=True))
    scores = [value if known else float(not text) for known, text, value in zip(has, given_answers, f1, strict=True)]

    def mean(threshold):
        return np.mean(
            [
                (score if sure <= threshold else float(not known))
                for score, known, sure in zip(scores, has, no_answer, strict=True)
            ]
        )

    best, threshold = best_threshold(np.array(scores), has, given_answers, no_answer)
    candidates = [mean(-1.0), *(mean(each) for each in no_answer)]
    # Ties in the scores for "no answer" are taken one by one, as the official script does.
    if len(set(no_answer)) == len(no_answer):
        assert best == pytest.approx(max(candidates), abs=1e-12)
        if best > candidates[0] + 1e-12:
            assert mean(threshold) == pytest.approx(best, abs=1e-12)


# Texts ------------------------------------------------------------------------------------------------

WORDS = ["the", "cat", "sat", "on", "a", "mat", ".", "Mats", ",", "dogs'", "run", "running"]
words = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
japanese = st.text("今日は良い天気です。東京、大阪ABC 12", max_size=12)
texts = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(texts)
def test_rouge_is_rouge_scores(rows):
    guessed, gold = [each for each, _ in rows], [each for _, each in rows]
    scorer = rouge_scorer.RougeScorer(list(ROUGE))
    for measure in rouge(gold, guessed, tokens="words"):
        expected = [
            max(scorer.score(one, text)[measure.name].fmeasure for one in each)
            for text, each in zip(guessed, gold, strict=True)
        ]
        assert measure.value == pytest.approx(np.mean(expected), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(texts)
def test_bleu_and_chrf_are_sacrebleus(rows):
    guessed, gold = [each for each, _ in rows], [each for _, each in rows]
    assume(len({len(each) for each in gold}) == 1)
    streams = list(zip(*gold, strict=True))
    assert bleu(gold, guessed, tokens="words")[0].value == pytest.approx(
        sacrebleu.corpus_bleu(guessed, streams).score, abs=1e-9
    )
    assert chrf(gold, guessed)[0].value == pytest.approx(sacrebleu.corpus_chrf(guessed, streams).score, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(japanese, japanese), min_size=1, max_size=5), st.data())
def test_any_part_of_the_texts_has_the_librarys_score(rows, data):
    guessed, gold = [each for each, _ in rows], [[each] for _, each in rows]
    keep = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
    weights = np.bincount(keep, minlength=len(rows)).astype(float)[None]
    part = [guessed[at] for at in keep], [[gold[at][0] for at in keep]]
    measure, signature = bleu(gold, guessed, tokens="characters")
    assert "tok:char" in signature
    assert measure.of(weights)[0] == pytest.approx(sacrebleu.corpus_bleu(*part, tokenize="char").score, abs=1e-9)
    assert chrf(gold, guessed)[0].of(weights)[0] == pytest.approx(sacrebleu.corpus_chrf(*part).score, abs=1e-9)


def test_japanese_texts_are_cut_as_japanese():
    gold, guessed = [["今日は良い天気です。"]], ["今日は良い日です。"]
    assert find_tokens(gold[0]) == "characters"
    assert find_tokens(["It is fine."]) == "words"
    assert {each.name: each.value for each in rouge(gold, guessed)}["rouge1"] == pytest.approx(16 / 19)
    assert rouge(gold, guessed, tokens="words")[0].value == 0  # rouge-score's own tokens are of English
    measure, signature = bleu(gold, guessed, tokens="mecab")
    assert "tok:mecab" in signature
    assert 0 < measure.value < 100
    with pytest.raises(InputError, match="unknown 'word'"):
        find_tokens([], "word")  # type: ignore[arg-type]


def test_texts_may_have_different_numbers_of_references():
    measure, signature = bleu([["a b c d e"], ["x", "a b c d f"]], ["a b c d e", "a b c d f"])
    assert measure.value == pytest.approx(100)
    assert "nrefs:var" in signature
