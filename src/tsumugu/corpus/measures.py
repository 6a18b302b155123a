"""What quality rules look at: named numbers of a text, each quick to count and easy to explain.

Sources: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", appendix A.1 and
table A1; Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
section 2.2; Okazaki et al. 2024, "Building a Large Japanese Web Corpus for Large Language Models", section 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from tsumugu.corpus.units import Hashes, Units, grams, units_of
from tsumugu.text.japanese import HIRAGANA, KANJI, KATAKANA

_SENTENCES = re.compile(r"[^.。．!！?？\n]*[.。．!！?？]+|[^.。．!！?？\n]+")
_PARAGRAPHS = re.compile(r"\n[ \t\u3000]*\n\s*")
_WHITE = re.compile(r"\s+")
_DIGITS = re.compile(r"\d")
_LETTERS = re.compile(r"[^\W\d_]")
_SYMBOLS = re.compile(r"#|\.\.\.|…")
_ELLIPSES = ("...", "…", "・・・")
_BULLETS = ("-", "*", "•", "‣", "▪", "●", "○", "◦", "・", "■", "◆", "※")
_ENDS = (*'.!?"”’。．！？」』）)…', "’’", "''")
_HIRAGANA, _KATAKANA = re.compile(f"[{HIRAGANA}]"), re.compile(f"[{KATAKANA}]")
_JAPANESE = re.compile(f"[{HIRAGANA}{KATAKANA}{KANJI}、。，．！？「」『』・ー]")
_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})


class Text:
    """A text and what several measures need of it, each found when first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._grams: dict[int, Hashes] = {}
        self._repeated: dict[int, npt.NDArray[np.int64]] = {}

    @cached_property
    def units(self) -> Units:
        """Words, or characters in Japanese and other scripts without spaces."""
        return units_of(self.text)

    @cached_property
    def words(self) -> list[str] | None:
        """The words; None in scripts without spaces."""
        return self.text.split() if self.units.spaced else None

    @cached_property
    def visible(self) -> str:
        """The text without white space."""
        return _WHITE.sub("", self.text)

    @cached_property
    def lines(self) -> list[str]:
        """The lines that hold something, without the spaces around them."""
        return [line for each in self.text.split("\n") if (line := each.strip())]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What blank lines divide."""
        return [part for each in _PARAGRAPHS.split(self.text) if (part := each.strip())]

    @cached_property
    def sentences(self) -> list[str]:
        """Stretches up to a full stop, an exclamation or a question mark, or a line's end."""
        return [part for each in _SENTENCES.findall(self.text) if (part := each.strip())]

    def grams(self, n: int) -> tuple[Hashes, int]:
        """A number for each stretch of n words, and how many units that is: two characters stand for a word."""
        width = n if self.units.spaced else 2 * n
        if width not in self._grams:
            self._grams[width] = grams(self.units.hashes, width)
        return self._grams[width], width

    def repeated(self, n: int) -> tuple[npt.NDArray[np.int64], int]:
        """Where stretches of n words begin that stood earlier, and how many units they have."""
        rows, width = self.grams(n)
        if width not in self._repeated:
            shorter = self._repeated.get(width - 1, self._repeated.get(width - 2))
            if shorter is not None and not len(shorter):  # what is longer is repeated even less
                self._repeated[width] = shorter
            else:
                order = np.argsort(rows, kind="stable")
                self._repeated[width] = order[1:][rows[order][1:] == rows[order][:-1]]
        return self._repeated[width], width

    def share(self, pattern: re.Pattern[str]) -> float:
        """The share of what is visible that single characters of `pattern` have."""
        return len(pattern.findall(self.visible)) / len(self.visible) if self.visible else 0.0


def _repeated(parts: Sequence[str]) -> float:
    return 1 - len(set(parts)) / len(parts) if parts else 0.0


def _repeated_characters(parts: Sequence[str]) -> float:
    total = sum(map(len, parts))
    return 1 - sum(map(len, set(parts))) / total if total else 0.0


def _top_gram(n: int, text: Text) -> float:
    """The share of characters that the commonest stretch of n words covers, counted each time it stands there."""
    rows, width = text.grams(n)
    if len(rows) < 2:
        return 0.0
    order = np.argsort(rows, kind="stable")
    edges = np.flatnonzero(np.concatenate([[True], rows[order][1:] != rows[order][:-1], [True]]))
    counts = np.diff(edges)
    most = counts.max()
    if most < 2:
        return 0.0
    first = order[edges[:-1][counts == most]]
    sizes = np.concatenate([[0], np.cumsum(text.units.sizes)])
    return min(1.0, float(most * (sizes[first + width] - sizes[first]).max() / sizes[-1]))


def _repeated_grams(n: int, text: Text) -> float:
    """The share of characters in stretches of n words that stood earlier in the text; none is counted twice."""
    again, width = text.repeated(n)
    if not len(again):
        return 0.0
    edges = np.zeros(len(text.units.hashes) + 1, np.int64)
    edges[again] += 1  # no position stands twice in `again`
    edges[again + width] -= 1
    inside = np.cumsum(edges[:-1]) > 0
    return float(text.units.sizes[inside].sum() / text.units.sizes.sum())


def _of_words(measure: Callable[[list[str]], float], text: Text) -> float | None:
    """A measure of words; none where there are no spaces."""
    return measure(text.words) if text.words else None


def _alphabetic(words: list[str]) -> float:
    return sum(_LETTERS.search(each) is not None for each in words) / len(words)


def _stop_words(words: list[str]) -> float:
    return len(_STOP_WORDS & {each.lower().strip('.,;:!?"') for each in words})


def _lines(ends: Callable[[str], bool], text: Text) -> float:
    return sum(map(ends, text.lines)) / len(text.lines) if text.lines else 0.0


def _mean(parts: Sequence[str]) -> float:
    return sum(map(len, parts)) / len(parts) if parts else 0.0


MEASURES: dict[str, tuple[Callable[[Text], float | None], str]] = {
    "characters": (lambda text: len(text.text), "characters, white space included"),
    "words": (partial(_of_words, len), "words between spaces"),
    "mean_word": (partial(_of_words, _mean), "characters of a word, on average"),
    "alphabetic_words": (partial(_of_words, _alphabetic), "share of words with a letter in them"),
    "stop_words": (partial(_of_words, _stop_words), "how many of: the be to of and that have with"),
    "letters": (lambda text: text.share(_LETTERS), "share of letters (kana and kanji are) in what is visible"),
    "digits": (lambda text: text.share(_DIGITS), "share of digits in what is visible"),
    "symbols": (
        lambda text: len(_SYMBOLS.findall(text.text)) / max(len(text.units.hashes), 1),
        "# and ellipses for each word",
    ),
    "braces": (lambda text: text.text.count("{"), "opening braces: source code has them, prose does not"),
    "lorem_ipsum": (lambda text: text.text.lower().count("lorem ipsum"), "times that filler text is announced"),
    "sentences": (lambda text: len(text.sentences), "sentences"),
    "mean_sentence": (lambda text: _mean(text.sentences), "characters of a sentence, on average"),
    "longest_sentence": (lambda text: max(map(len, text.sentences), default=0), "characters of the longest sentence"),
    "ended_lines": (
        partial(_lines, lambda line: line.endswith(_ENDS)),
        "share of lines that end as sentences do",
    ),
    "bullet_lines": (
        partial(_lines, lambda line: line.startswith(_BULLETS)),
        "share of lines that begin with a bullet",
    ),
    "ellipsis_lines": (
        partial(_lines, lambda line: line.endswith(_ELLIPSES)),
        "share of lines that end with an ellipsis",
    ),
    "repeated_lines": (lambda text: _repeated(text.lines), "share of lines that stood earlier"),
    "repeated_line_characters": (
        lambda text: _repeated_characters(text.lines),
        "share of characters in lines that stood earlier",
    ),
    "repeated_paragraphs": (lambda text: _repeated(text.paragraphs), "share of paragraphs that stood earlier"),
    "repeated_paragraph_characters": (
        lambda text: _repeated_characters(text.paragraphs),
        "share of characters in paragraphs that stood earlier",
    ),
    **{
        f"top_{n}_gram": (
            partial(_top_gram, n),
            f"share of characters that the commonest {n} words fill",
        )
        for n in (2, 3, 4)
    },
    **{
        f"repeated_{n}_grams": (
            partial(_repeated_grams, n),
            f"share of characters in {n} words that stood earlier",
        )
        for n in range(5, 11)
    },
    "hiragana": (lambda text: text.share(_HIRAGANA), "share of hiragana in what is visible"),
    "katakana": (lambda text: text.share(_KATAKANA), "share of katakana in what is visible"),
    "japanese": (lambda text: text.share(_JAPANESE), "share of kana, kanji and their punctuation in what is visible"),
}
"""Name to what it counts, and its description. None: it has no meaning for this text, so no rule on it applies."""
