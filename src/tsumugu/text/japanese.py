"""Japanese in texts: how much of it there is, where its scripts change, and the words that MeCab finds."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from typing import Any, Literal

from tsumugu.core.errors import InputError, MissingExtraError, did_you_mean

Dictionary = Literal["unidic-lite", "ipadic"]
DICTIONARIES = {"unidic-lite": "unidic_lite", "ipadic": "ipadic"}

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


class MecabWords:
    """Words by MeCab.

    Args:
        dictionary: "unidic-lite" (short units) or "ipadic" (the one of the first Japanese BERT models).

    Raises:
        InputError: there is no such dictionary.
        MissingExtraError: fugashi or the dictionary is not installed.
    """

    def __init__(self, dictionary: str = "unidic-lite") -> None:
        if dictionary not in DICTIONARIES:
            mend = did_you_mean(dictionary, DICTIONARIES)
            raise InputError(f"there is no dictionary {dictionary!r}", where="dictionary", mend=mend)
        purpose = "finding Japanese words with MeCab"
        fugashi = _needed("fugashi", "fugashi", purpose)
        data = _needed(DICTIONARIES[dictionary], dictionary, purpose)
        # ipadic names its own resource file; MeCab must read no other, whatever the machine has.
        self._tagger = fugashi.GenericTagger(f'-r "{data.DICDIR}/mecabrc" -d "{data.DICDIR}"')
        self.dictionary = dictionary

    def words(self, text: str) -> list[str]:
        """The words, with white space as pieces of its own; joined they are the text."""
        found: list[str] = []
        for line in re.split(r"([\s\0]+)", text):
            if not line or line.isspace() or line[0] == "\0":
                found += [line] if line else []
                continue
            at = 0
            for word in self._tagger(line):
                start = line.find(word.surface, at)
                if start < 0:
                    continue
                if start > at:
                    found.append(line[at:start])
                found.append(word.surface)
                at = start + len(word.surface)
            if at < len(line):
                found.append(line[at:])
        return found


def _needed(module: str, package: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(package, extra="ja", purpose=purpose) from None
