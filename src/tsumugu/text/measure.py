"""How well a tokenizer fits texts: how much text a token holds, in which scripts, and what it does not know."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from tsumugu.core.errors import InputError
from tsumugu.text.japanese import HIRAGANA, KANJI, KATAKANA, japanese_share
from tsumugu.text.tokenizer import Tokenizer

_BATCH = 64
_PART = 1 << 16  # characters of a text that are encoded at once
_SCRIPTS = re.compile(f"(?P<hiragana>[{HIRAGANA}])|(?P<katakana>[{KATAKANA}])|(?P<kanji>[{KANJI}])|(?P<digits>\\d)")


class Words(Protocol):
    """Something that finds Japanese words."""

    def words(self, text: str) -> list[str]:
        """The words; joined they are the text."""


@dataclass
class Measure:
    """Sums over texts, of one language or script or of all.

    Args:
        characters: of the texts.
        bytes: of the texts in UTF-8.
        tokens: without special tokens. Of a script: a token that spans several counts in each by its characters.
        words: between white space; in Japanese those of MeCab, None without it.
        unknown: tokens that are the unknown token.
        unknown_characters: what they stand for.
    """

    characters: int = 0
    bytes: int = 0
    tokens: float = 0
    words: int | None = 0
    unknown: int = 0
    unknown_characters: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The sums and their ratios."""
        tokens, characters, words = self.tokens, self.characters, self.words
        return {
            "characters": characters,
            "bytes": self.bytes,
            "tokens": round(tokens, 1) if isinstance(tokens, float) else tokens,
            "characters_per_token": characters / tokens if tokens else None,
            "bytes_per_token": self.bytes / tokens if tokens else None,
            "tokens_per_character": tokens / characters if characters else None,
            "tokens_per_word": tokens / words if words else None,
            "unknown_rate": self.unknown / tokens if tokens else None,
            "unknown_character_rate": self.unknown_characters / characters if characters else None,
        }


@dataclass
class Report:
    """What `measure` found.

    Args:
        texts: how many there were.
        total: of all texts.
        languages: "ja" for texts where one letter in ten is kana or kanji, else "other".
        scripts: latin, hiragana, katakana, kanji, digits, and so on; without words and unknown tokens.
        bytes_rate: tokens that are a piece of a character, of all.
        vocabulary: how many tokens there are, special ones left out.
        used: how many of them occur.
        longest: the longest tokens that occur, with how often.
    """

    texts: int = 0
    total: Measure = field(default_factory=Measure)
    languages: dict[str, Measure] = field(default_factory=dict)
    scripts: dict[str, Measure] = field(default_factory=dict)
    bytes_rate: float = 0.0
    vocabulary: int = 0
    used: int = 0
    longest: list[tuple[str, int]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "texts": self.texts,
            "total": self.total.as_dict(),
            "byte_piece_rate": self.bytes_rate,
            "vocabulary": self.vocabulary,
            "vocabulary_used": self.used,
            "vocabulary_used_share": self.used / self.vocabulary if self.vocabulary else None,
            "languages": {name: each.as_dict() for name, each in self.languages.items()},
            "scripts": {
                name: {
                    key: value
                    for key, value in each.as_dict().items()
                    if key not in ("tokens_per_word", "unknown_rate", "unknown_character_rate")
                }
                for name, each in self.scripts.items()
            },
            "longest": [{"token": token, "count": count} for token, count in self.longest],
        }


def measure(tokenizer: Tokenizer, texts: Iterable[str], *, mecab: Words | None = None, longest: int = 10) -> Report:
    """Measure a tokenizer on texts, in bounded memory; special tokens are neither added nor looked for.

    Args:
        mecab: finds the words of Japanese texts; without it tokens per Japanese word stay unknown.
        longest: how many of the longest tokens to list.

    Raises:
        InputError: there is no text.
    """
    report = Report()
    counts: Counter[int] = Counter()
    pieces = 0
    shares: dict[str, dict[str, float]] = {}
    unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    rest = iter(texts)
    while batch := list(islice(rest, _BATCH)):
        report.texts += len(batch)
        for text in batch:
            japanese = japanese_share([text]) >= 0.1
            part = Measure(
                len(text), len(text.encode()), words=_count_words(text, mecab if japanese else None, japanese)
            )
            for row_text in _parts(text):
                row = tokenizer(row_text, add_special_tokens=False, split_special_tokens=True).encodings[0]
                part.tokens += len(row.ids)
                spans = [
                    end - start for index, (start, end) in zip(row.ids, row.offsets, strict=True) if index == unknown
                ]
                part.unknown += len(spans)
                part.unknown_characters += sum(spans)
                counts.update(row.ids)
                pieces += _add_scripts(report.scripts, row_text, row.offsets, shares)
            for each in (report.total, report.languages.setdefault("ja" if japanese else "other", Measure())):
                _add(each, part)
    if not report.total.tokens:
        raise InputError("there is no text to measure", where="texts")
    report.bytes_rate = pieces / report.total.tokens
    special = set(tokenizer.all_special_ids)
    report.vocabulary = len(tokenizer) - len(special)
    report.used = len(counts.keys() - special)
    report.longest = _longest(tokenizer, counts, longest, special)
    report.scripts = dict(sorted(report.scripts.items(), key=lambda each: -each[1].characters))
    return report


def _parts(text: str) -> Iterator[str]:
    at = 0
    while len(text) - at > _PART:
        end = max(text.rfind(each, at + _PART // 2, at + _PART) for each in "\n 。") + 1 or at + _PART
        yield text[at:end]
        at = end
    yield text[at:]


def _count_words(text: str, mecab: Words | None, japanese: bool) -> int | None:
    if not japanese:
        return len(text.split())
    return None if mecab is None else sum(not each.isspace() for each in mecab.words(text))


def _add(total: Measure, part: Measure) -> None:
    total.characters += part.characters
    total.bytes += part.bytes
    total.tokens += part.tokens
    total.unknown += part.unknown
    total.unknown_characters += part.unknown_characters
    total.words = None if total.words is None or part.words is None else total.words + part.words


def _add_scripts(
    scripts: dict[str, Measure], text: str, offsets: list[tuple[int, int]], shares: dict[str, dict[str, float]]
) -> int:
    """Count characters and tokens by script; give how many tokens are a piece of one character."""
    for character, count in Counter(text).items():
        each = scripts.setdefault(script(character), Measure(words=None))
        each.characters += count
        each.bytes += count * len(character.encode())
    pieces, before = 0, (-1, -1)
    for start, end in offsets:
        pieces += end - start == 1 and (start, end) == before
        before = (start, end)
        span = text[start:end]
        share = shares.get(span)
        if share is None:
            found = Counter(map(script, span))
            share = {name: count / len(span) for name, count in found.items()}
            if len(shares) < 1 << 18:
                shares[span] = share
        for name, part in share.items():
            scripts[name].tokens += part
    return pieces


def script(character: str) -> str:
    """latin, hiragana, katakana, kanji, digits, another script's name, space, punctuation or symbols."""
    match = _SCRIPTS.match(character)
    if match is not None:
        return str(match.lastgroup)
    if character.isspace():
        return "space"
    category = unicodedata.category(character)
    if category[0] == "L":
        name = unicodedata.name(character, "other").split()[0].lower()
        return "latin" if name in ("feminine", "masculine", "fullwidth") else name
    return "punctuation" if category[0] == "P" else "symbols"


def _longest(tokenizer: Tokenizer, counts: Counter[int], number: int, special: set[int]) -> list[tuple[str, int]]:
    found = []
    for index, count in counts.items():
        if index not in special:
            text = tokenizer.decode([index])
            if "\ufffd" not in text:
                found.append((text, count))
    return sorted(found, key=lambda each: (-len(each[0]), -each[1], each[0]))[:number]
