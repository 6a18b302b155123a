"""Texts against texts: ROUGE by rouge-score, BLEU and chrF by sacrebleu, with tokens that fit the language.

Both libraries are the authorities whose numbers papers print, so they are asked and not written anew. Their own
tokenizers drop Japanese or take a sentence for a word; there, tokens are characters, or words by MeCab.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from tsumugu.core.errors import InputError, MissingExtraError
from tsumugu.evaluation.metrics import Array, check_pairs, mean
from tsumugu.evaluation.resampling import Measure
from tsumugu.text.japanese import MecabWords, japanese_share

Tokens = Literal["auto", "words", "characters", "mecab"]
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def find_tokens(texts: Sequence[str], tokens: Tokens = "auto") -> Tokens:
    """How texts are cut: as asked, else "characters" for mostly Japanese ones and "words" for all others."""
    if tokens not in ("auto", "words", "characters", "mecab"):
        raise InputError(f"unknown {tokens!r}", where="tokens", mend="known: auto, words, characters, mecab")
    if tokens != "auto":
        return tokens
    return "characters" if japanese_share(texts[:200]) > 0.3 else "words"


def rouge(
    references: Sequence[Sequence[str]], predictions: Sequence[str], *, tokens: Tokens = "auto", stem: bool = False
) -> list[Measure]:
    """ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum (F-measures, best reference of each), means over the texts.

    Args:
        references: one or more for each text.
        predictions: the texts.
        tokens: how they are cut; "words" is rouge-score's own way, which is for English.
        stem: take English endings off (Porter), as many papers do.

    Raises:
        MissingExtraError: rouge-score is not installed.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", sections 2 and 3.
    """
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise MissingExtraError("rouge-score", extra="eval", purpose="ROUGE") from None
    check_pairs(references, predictions)
    cut = find_tokens([each for one in references for each in one], tokens)
    tokenizer = None if cut == "words" else _RougeTokenizer(_cutter(cut))
    scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=stem, tokenizer=tokenizer)
    rows = np.zeros((len(predictions), len(ROUGE), 2))
    for row, gold, guessed in zip(rows, references, predictions, strict=True):
        found = scorer.score_multi(list(gold), guessed)
        row[:, 0] = [found[name].fmeasure for name in ROUGE]
    rows[:, :, 1] = 1
    return [Measure(name, rows[:, at], mean) for at, name in enumerate(ROUGE)]


def bleu(
    references: Sequence[Sequence[str]], predictions: Sequence[str], *, tokens: Tokens = "auto"
) -> tuple[Measure, str]:
    """BLEU of all texts together, 0 to 100, and sacrebleu's signature.

    Args:
        references: one or more for each text.
        predictions: the texts.
        tokens: how they are cut; "words" is 13a, the way of the shared tasks of translation.

    Raises:
        MissingExtraError: sacrebleu is not installed.

    Source: Papineni et al. 2002, section 2; Post 2018, "A Call for Clarity in Reporting BLEU Scores".
    """
    cut = find_tokens([each for one in references for each in one], tokens)
    metric = _sacrebleu().BLEU(tokenize={"words": "13a", "characters": "char"}.get(cut, "none"), force=cut == "mecab")
    if cut == "mecab":
        words = _cutter(cut)
        references = [[" ".join(words(each)) for each in one] for one in references]
        predictions = [" ".join(words(each)) for each in predictions]
    measure = _of_statistics("bleu", metric, references, predictions)
    signature = str(metric.get_signature())
    return measure, signature.replace("tok:none", "tok:mecab") if cut == "mecab" else signature


def chrf(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> tuple[Measure, str]:
    """chrF of all texts together, 0 to 100, and sacrebleu's signature; characters fit every language.

    Raises:
        MissingExtraError: sacrebleu is not installed.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation".
    """
    metric = _sacrebleu().CHRF()
    return _of_statistics("chrf", metric, references, predictions), str(metric.get_signature())


def _of_statistics(name: str, metric: Any, references: Sequence[Sequence[str]], predictions: Sequence[str]) -> Measure:
    """A metric of sacrebleu as sums over texts: the library keeps its counts for a text, and scores any sum of them."""
    check_pairs(references, predictions)
    most = max(map(len, references))
    streams = [[one[at] if at < len(one) else None for one in references] for at in range(most)]
    score = metric.corpus_score(list(predictions), streams)  # also notes the number of references for the signature
    rows = np.array(metric._extract_corpus_statistics(list(predictions), streams), float)

    def finish(sums: Array) -> Array:
        flat = sums.reshape(-1, sums.shape[-1])
        found = [metric._compute_score_from_stats([round(each) for each in row]).score for row in flat.tolist()]
        return np.array(found).reshape(sums.shape[:-1])

    measure = Measure(name, rows, finish)
    if abs(measure.value - score.score) > 1e-9:  # statistics are no public part of the library
        raise InputError(f"sacrebleu counts {name} otherwise than expected", mend="install sacrebleu 2.4 to 2.6")
    return measure


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise MissingExtraError("sacrebleu", extra="eval", purpose="BLEU and chrF") from None
    return metrics


def _cutter(tokens: Tokens) -> Callable[[str], list[str]]:
    if tokens == "characters":
        return lambda text: [each for each in text if not each.isspace()]
    mecab = MecabWords()
    return lambda text: [each for each in mecab.words(text) if not each.isspace()]


class _RougeTokenizer:
    """What rouge-score expects of a tokenizer."""

    def __init__(self, cut: Callable[[str], list[str]]) -> None:
        self._cut = cut

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text."""
        return self._cut(text.lower())
