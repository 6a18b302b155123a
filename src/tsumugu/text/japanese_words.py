"""How tokenizers of the Japanese BERT family divide a text into words, each knowing its place in the original."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from tsumugu.text.alignment import Aligned
from tsumugu.text.japanese import Mecab


class Words(NamedTuple):
    """Words of one text: how each is spelt, and where in `text` it begins."""

    text: Aligned
    strings: Sequence[str]
    begins: Sequence[int]


class Splitter:
    """Takes the text as one word.

    Each method gives the words of a text; those of `never_split` stay whole and keep their capitals.
    """

    def places(self, text: Aligned, never_split: Collection[str]) -> Iterable[Words]:
        """Words that know their place."""
        return (_one(text),)

    def strings(self, text: str, never_split: Collection[str]) -> Iterable[str]:
        """The same words, sooner."""
        for words in self.places(Aligned.of(text, 0, len(text)), never_split):
            yield from words.strings


class MecabSplitter(Splitter):
    """The words of MeCab, which sees the text in NFKC if `normalize`; small letters are made afterwards."""

    def __init__(self, mecab: Mecab, *, lowercase: bool, normalize: bool) -> None:
        self._mecab, self._lowercase, self._normalize = mecab, lowercase, normalize

    def places(self, text: Aligned, never_split: Collection[str]) -> Iterable[Words]:
        """Words that know their place."""
        text = text.normalized("NFKC") if self._normalize else text
        strings = self._surfaces(text.text)
        at, begins, find = 0, list[int](), text.text.index
        for each in strings:
            at = find(each, at)  # no word begins with white space, so that this is the one
            begins.append(at)
            at += len(each)
        if not self._lowercase:
            return (Words(text, strings, begins),)
        lower = self._lower(strings, never_split)
        if list(map(len, lower)) == list(map(len, strings)):
            return (Words(text, lower, begins),)
        places = zip(strings, begins, strict=True)
        parts = ((each, text.part(begin, begin + len(each))) for each, begin in places)
        return [_one(part if each in never_split else part.lower()) for each, part in parts]

    def strings(self, text: str, never_split: Collection[str]) -> Iterable[str]:
        """The same words, sooner."""
        found = self._surfaces(unicodedata.normalize("NFKC", text) if self._normalize else text)
        return self._lower(found, never_split) if self._lowercase else found

    def _surfaces(self, text: str) -> list[str]:
        if "\0" not in text:
            return self._mecab.surfaces(text)
        return [surface for part in text.split("\0") for surface in self._mecab.surfaces(part)]

    def _lower(self, words: Iterable[str], never_split: Collection[str]) -> list[str]:
        return [each if each in never_split else each.lower() for each in words]


class SpaceSplitter(Splitter):
    """BERT's own manner: words are divided by white space and punctuation marks, kanji are not.

    Source: google-research/bert, tokenization.py; Devlin et al. 2019, "BERT", section 3.
    """

    def __init__(self, *, lowercase: bool) -> None:
        self._lowercase = lowercase

    def places(self, text: Aligned, never_split: Collection[str]) -> Iterable[Words]:
        """Words that know their place."""
        for word in text.replaced(_clean).normalized("NFC").words():
            if self._lowercase and word.text not in never_split:
                word = word.lower().without_accents()
            parts = [word] if word.text in never_split else _apart(word)
            for part in parts:
                yield from map(_one, part.words())


def _one(word: Aligned) -> Words:
    return Words(word, (word.text,), (0,))


def _clean(character: str) -> str:
    """A space for white space, nothing for a control character."""
    if character in " \t\n\r":
        return " "
    category = unicodedata.category(character)
    if category.startswith("C") or character == "\ufffd":
        return ""
    return " " if category == "Zs" else character


def _apart(word: Aligned) -> Iterator[Aligned]:
    """The word with each punctuation mark by itself."""
    begin = 0
    for at, each in enumerate(word.text):
        if _is_punctuation(each):
            if at > begin:
                yield word.part(begin, at)
            yield word.part(at, at + 1)
            begin = at + 1
    if begin < len(word.text):
        yield word.part(begin, len(word.text))


def _is_punctuation(character: str) -> bool:
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character).startswith("P")
