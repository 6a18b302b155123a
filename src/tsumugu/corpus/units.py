"""The units that texts are compared by: words where spaces divide them, single characters where none do."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsumugu.text.japanese import HIRAGANA, KANJI, KATAKANA

_UNSPACED = re.compile(f"[{HIRAGANA}{KATAKANA}{KANJI}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_SPACE = re.compile(r"\s+")
_SAMPLE = 4000  # characters that decide
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_CACHED = 1 << 18

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Units:
    """A text as a row of units.

    Attributes:
        spaced: whether they are words; else characters, white space left out.
        hashes: a number for each, equal for equal units, `[units]`.
        sizes: the characters of each, `[units]`.
    """

    spaced: bool
    hashes: Hashes
    sizes: npt.NDArray[np.int64]


def is_spaced(text: str) -> bool:
    """Whether words have spaces between them: not so where kana, kanji, Thai, Lao, Burmese or Khmer are a third."""
    sample = text[:: len(text) // _SAMPLE + 1]
    return 3 * len(_UNSPACED.findall(sample)) < len(_SPACE.sub("", sample))


def units_of(text: str) -> Units:
    """The units of a text."""
    if is_spaced(text):
        words = text.split()
        hashes = np.fromiter(map(_hash, words), np.uint64, len(words))
        return Units(True, hashes, np.fromiter(map(len, words), np.int64, len(words)))
    codes = np.frombuffer(_SPACE.sub("", text).encode("utf-32-le", "replace"), "<u4").astype(np.uint64)
    return Units(False, _mixed(codes + np.uint64(1)), np.ones(len(codes), np.int64))


def grams(units: Hashes, n: int) -> Hashes:
    """A number for each stretch of `n` units, `[units - n + 1]`; empty where there are fewer."""
    count = len(units) - n + 1
    if count <= 0:
        return units[:0]
    found = units[:count]
    for at in range(1, n):
        found = found * _MULTIPLIER + units[at : at + count]
    return found


@functools.lru_cache(maxsize=_CACHED)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _mixed(values: Hashes) -> Hashes:
    """Spread the bits. Source: Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators" (SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
