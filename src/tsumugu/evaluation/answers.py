"""Extractive question answering, scored by the rules of SQuAD 1.1 and 2.0, and for Japanese by characters.

Source: Rajpurkar et al. 2016, section 6.1 (exact match, F1), and 2018, section 5 (no-answer); the official script's
normalisation and thresholds.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tsumugu.core.errors import InputError
from tsumugu.evaluation.metrics import Array, check_pairs

Rules = Literal["squad", "japanese"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str, rules: Rules = "squad") -> str:
    """An answer as it is compared.

    "squad": lower case, without ASCII punctuation and the articles a, an, the, blanks single. "japanese": NFKC (so that
    half and full width are one), lower case, without punctuation, symbols and blanks of any script.
    """
    if rules == "squad":
        return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
    folded = unicodedata.normalize("NFKC", text).lower()
    return "".join(each for each in folded if unicodedata.category(each)[0] not in "PSZC")


def answer_tokens(text: str, rules: Rules = "squad") -> list[str]:
    """What F1 counts: words, or characters in Japanese."""
    normal = normalize_answer(text, rules)
    return normal.split() if rules == "squad" else list(normal)


def exact_match(reference: str, prediction: str, rules: Rules = "squad") -> float:
    """1 when both are the same once normalised."""
    return float(normalize_answer(reference, rules) == normalize_answer(prediction, rules))


def answer_f1(reference: str, prediction: str, rules: Rules = "squad") -> float:
    """The overlap of both as bags of tokens; of an answer with none, or none with none, whether they agree."""
    gold, guessed = answer_tokens(reference, rules), answer_tokens(prediction, rules)
    if not gold or not guessed:
        return float(gold == guessed)
    common = sum((Counter(gold) & Counter(guessed)).values())
    return 2 * common / (len(gold) + len(guessed)) if common else 0.0


def answer_scores(references: Sequence[Sequence[str]], predictions: Sequence[str], rules: Rules = "squad") -> Array:
    """Exact match and F1 of each question, `[questions, 2]`, against the reference that is best for each.

    Args:
        references: the answers that people gave, none for a question without answer.
        predictions: the answers, empty for none.
        rules: "squad" or "japanese".
    """
    check_pairs(references, predictions)
    if rules not in ("squad", "japanese"):
        raise InputError(f"unknown rules {rules!r}", where="rules", mend="known: squad, japanese")
    rows = np.zeros((len(references), 2))
    for row, gold, guessed in zip(rows, references, predictions, strict=True):
        known = [each for each in gold if normalize_answer(each, rules)] or [""]
        row[0] = max(exact_match(each, guessed, rules) for each in known)
        row[1] = max(answer_f1(each, guessed, rules) for each in known)
    return rows


def best_threshold(
    scores: Array, has_answer: Sequence[bool], predictions: Sequence[str], no_answer: Sequence[float]
) -> tuple[float, float]:
    """The best mean score that a threshold on the scores for "no answer" gives, and the threshold.

    Questions whose score for "no answer" is above it get none.

    Args:
        scores: of each answer as it was given, `[questions]`: exact match or F1.
        has_answer: whether people found one.
        predictions: the answers that were given.
        no_answer: how surely the system holds that there is none.
    """
    check_pairs(scores, predictions)
    check_pairs(scores, no_answer)
    order = np.argsort(np.asarray(no_answer, float), kind="stable")
    answered, given = np.asarray(has_answer, bool), np.array([bool(each) for each in predictions])
    gains = np.where(answered, np.asarray(scores, float), np.where(given, -1.0, 0.0))[order]
    totals = np.sum(~answered) + np.r_[0.0, np.cumsum(gains)]
    best = int(np.argmax(totals))
    threshold = 0.0 if best == 0 else float(np.asarray(no_answer, float)[order][best - 1])
    return float(totals[best] / len(gains)), threshold
