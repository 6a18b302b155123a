"""Japanese in texts: how much of it there is, where its scripts change, and the words that MeCab finds."""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from tsumugu.core.errors import InputError, MissingExtraError, did_you_mean

Dictionary = Literal["unidic-lite", "ipadic", "unidic"]
DICTIONARIES = {"unidic-lite": "unidic_lite", "ipadic": "ipadic", "unidic": "unidic"}
_IN_EXTRA = ("fugashi", "unidic-lite", "ipadic")
_PURPOSE = "finding Japanese words with MeCab"

HIRAGANA = r"\u3041-\u309f"
KATAKANA = r"\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f"
KANJI = r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
VOICED_MARKS = "\uff9e\uff9f\u3099\u309a"
_JAPANESE = re.compile(f"[{HIRAGANA}{KATAKANA}{KANJI}]")
_RUNS = re.compile(f"[{HIRAGANA}]+|[{KATAKANA}]+|[{KANJI}]+|[^{HIRAGANA}{KATAKANA}{KANJI}]+")
_LETTERS = re.compile(r"[^\W\d_]")


def is_japanese(character: str) -> bool:
    """Whether it is kana or kanji."""
    return _JAPANESE.match(character) is not None


def past_marks(text: str, end: int, limit: int) -> int:
    """`end`, or where the marks that turn が and ぱ out of か and は end, if they are written by themselves after it.

    A tokenizer that joins such a mark with its kana leaves it out of the token's offsets.
    """
    while end < limit and text[end] in VOICED_MARKS:
        end += 1
    return end


def japanese_share(texts: Iterable[str]) -> float:
    """Kana and kanji among the letters of some texts, 0 to 1."""
    japanese = letters = 0
    for text in texts:
        japanese += len(_JAPANESE.findall(text))
        letters += len(_LETTERS.findall(text))
    return min(japanese / letters, 1.0) if letters else 0.0


def script_runs(text: str) -> list[str]:
    """Stretches of hiragana, of katakana, of kanji, and of all else; joined they are the text."""
    return _RUNS.findall(text)


class Mecab:
    """MeCab with one dictionary; many threads may ask it.

    Args:
        dictionary: "unidic-lite" (short units), "ipadic" (that of the first Japanese BERT models), "unidic" (short
            units, larger), or None for the one that `options` or the system's own mecabrc names.
        options: further ones, as MeCab's command line takes them.

    Raises:
        InputError: there is no such dictionary, or MeCab cannot use it.
        MissingExtraError: fugashi or the dictionary is not installed.
    """

    def __init__(self, dictionary: str | None = "unidic-lite", options: str = "") -> None:
        if dictionary is not None and dictionary not in DICTIONARIES:
            mend = did_you_mean(dictionary, DICTIONARIES)
            raise InputError(f"there is no dictionary {dictionary!r}", where="dictionary", mend=mend)
        fugashi = _needed("fugashi", "fugashi", _PURPOSE)
        if dictionary is not None:
            folder = _folder(dictionary)
            # ipadic names its own resource file; MeCab must read no other, whatever the machine has.
            options = f'-r "{folder}/mecabrc" -d "{folder}" {options}'
        try:
            self._tagger = fugashi.GenericTagger(options)
        except RuntimeError as error:
            said = re.sub(r"-{3,}|(?<=\n)\s*$", "", str(error)).strip().splitlines()
            why = f"MeCab does not start ({said[-1].strip()})" if said else "MeCab does not start"
            mend = "name a dictionary that is installed: ipadic, unidic-lite or unidic"
            raise InputError(why, where=f"dictionary {dictionary or options!r}", mend=mend) from None
        self._lock = threading.Lock()

    def surfaces(self, text: str) -> list[str]:
        """The words of a text without NUL characters, in order; white space between them is left out."""
        with self._lock:  # what the tagger gives lies in its own memory, until it is asked again
            return [each.surface for each in self._tagger(text)]


class MecabWords:
    """Words by MeCab, for training.

    Args:
        dictionary: "unidic-lite", "ipadic" or "unidic".

    Raises:
        InputError, MissingExtraError: as `Mecab`.
    """

    def __init__(self, dictionary: str = "unidic-lite") -> None:
        self._mecab = Mecab(dictionary)
        self.dictionary = dictionary

    def words(self, text: str) -> list[str]:
        """The words, with white space as pieces of its own; joined they are the text."""
        found: list[str] = []
        for line in re.split(r"([\s\0]+)", text):
            if not line or line.isspace() or line[0] == "\0":
                found += [line] if line else []
                continue
            at = 0
            for surface in self._mecab.surfaces(line):
                start = line.find(surface, at)
                if start < 0:
                    continue
                if start > at:
                    found.append(line[at:start])
                found.append(surface)
                at = start + len(surface)
            if at < len(line):
                found.append(line[at:])
        return found


def _folder(dictionary: str) -> Path:
    """Where a dictionary lies."""
    module = _needed(DICTIONARIES[dictionary], dictionary, _PURPOSE)
    folder = Path(module.DICDIR)
    if not folder.is_dir():  # the package of unidic holds a program that fetches it
        mend = f"python -m {DICTIONARIES[dictionary]} download"
        raise InputError(f"the package {dictionary} is installed, its dictionary is not", where="dictionary", mend=mend)
    return folder


def _needed(module: str, package: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        if package not in _IN_EXTRA:
            what = f"{purpose} needs {package}"
            raise InputError(
                what, where="dictionary", mend=f"pip install {package} && python -m {module} download"
            ) from None
        raise MissingExtraError(package, extra="ja", purpose=purpose) from None
