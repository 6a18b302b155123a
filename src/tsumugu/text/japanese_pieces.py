"""How tokenizers of the Japanese BERT family divide a word into tokens."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tsumugu.core.errors import MissingExtraError
from tsumugu.text.alignment import Aligned
from tsumugu.text.pieces import SPACE

_LONGEST_WORD = 100  # characters; a longer one is unknown
_REMEMBERED = 1 << 16  # words
_SHORT = 64  # characters of a word that is worth remembering


class Piece(NamedTuple):
    """A token of a word: its id, how the vocabulary spells it, its characters [start, end) in the word."""

    id: int
    token: str
    start: int
    end: int


Cut = Callable[[str], Sequence[Piece]]
"""Gives the tokens of a word; none for white space."""


class Tokens:
    """The tokens of one word, in the forms in which they are asked for.

    Attributes:
        ids: their ids.
        places: their characters [start, end) in the word.
        ids_json, tokens_json: ids and spellings as JSON has them, without brackets.
    """

    __slots__ = ("ids", "ids_json", "places", "tokens_json")

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.ids = [each.id for each in pieces]
        self.places = [(each.start, each.end) for each in pieces]
        self.ids_json = json.dumps(self.ids)[1:-1]
        self.tokens_json = json.dumps([each.token for each in pieces])[1:-1]


def remembering(cut: Cut) -> Callable[[str], Tokens]:
    """What gives the tokens of a word, and need not look twice for those of words that come often."""

    def tokens(word: str) -> Tokens:
        return Tokens(cut(word))

    remembered = functools.lru_cache(maxsize=_REMEMBERED)(tokens)
    return lambda word: remembered(word) if len(word) <= _SHORT else tokens(word)


def word_pieces(vocabulary: Mapping[str, int], unknown: str) -> Cut:
    """The longest pieces from the left; those inside of a word begin with "##". What is left over makes it unknown.

    Source: Wu et al. 2016, "Google's Neural Machine Translation System", section 4.1.
    """
    longest = max(map(len, vocabulary), default=0)

    def cut(word: str) -> Sequence[Piece]:
        found: list[Piece] = []
        for match in re.finditer(r"\S+", word):
            begin, end = match.span()
            pieces = list(_longest(match[0], begin)) if end - begin <= _LONGEST_WORD else [None]
            found += [Piece(vocabulary[unknown], unknown, begin, end)] if None in pieces else pieces  # type: ignore[arg-type]
        return found

    def _longest(word: str, offset: int) -> Iterator[Piece | None]:
        at = 0
        while at < len(word):
            prefix = "##" if at else ""
            for end in range(min(len(word), at + longest), at, -1):
                token = prefix + word[at:end]
                index = vocabulary.get(token)
                if index is not None:
                    yield Piece(index, token, offset + at, offset + end)
                    at = end
                    break
            else:
                yield None
                return

    return cut


def characters(vocabulary: Mapping[str, int], unknown: str) -> Cut:
    """Single characters, in NFKC."""

    def cut(word: str) -> Sequence[Piece]:
        text = Aligned.of(word, 0, len(word)).normalized("NFKC")
        found = []
        for at, each in enumerate(text.text):
            token = each if each in vocabulary else unknown
            found.append(Piece(vocabulary[token], token, *text.span(at, at + 1)))
        return found

    return cut


def no_pieces(vocabulary: Mapping[str, int], unknown: str) -> Cut:
    """The word itself."""

    def cut(word: str) -> Sequence[Piece]:
        token = word if word in vocabulary else unknown
        return (Piece(vocabulary[token], token, 0, len(word)),)

    return cut


def sentence_pieces(model: bytes) -> Cut:
    """Pieces of a SentencePiece model; a comma behind a digit becomes a token of its own.

    Raises:
        MissingExtraError: sentencepiece is not installed.
    """
    try:
        import sentencepiece
        from sentencepiece import sentencepiece_pb2
    except ImportError:
        raise MissingExtraError("sentencepiece", extra="ja", purpose="reading a SentencePiece model") from None
    processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)

    def cut(word: str) -> Sequence[Piece]:
        text = _tidy(word)
        found: list[Piece] = []
        encoded = sentencepiece_pb2.SentencePieceText()
        encoded.ParseFromString(processor.encode(text.text, out_type="serialized_proto"))
        last = 0
        for each, size in zip(encoded.pieces, _sizes(encoded.pieces), strict=True):
            first, last = last, last + len(each.surface)
            begin, end = text.span(first, first + size)
            tokens = [each.piece]
            if len(each.piece) > 1 and each.piece[-1] == "," and each.piece[-2].isdigit():
                tokens = [*_before_comma(processor, each.piece), ","]
            found += [Piece(processor.piece_to_id(token), token, begin, end) for token in tokens]
        return found

    return cut


def _tidy(word: str) -> Aligned:
    """One space for all white space, none at the ends; quotation marks of two characters become one."""
    text = Aligned.of(word, 0, len(word))
    for pattern, to in ((r"\A\s+|\s+\Z", ""), (r"\s+", " "), ("``|''", '"')):
        text = text.substituted(re.compile(pattern), to)
    return text


def _sizes(pieces: Any) -> list[int]:
    """How many characters each piece stands for. Of several that one character became, only the last says so."""
    sizes = [len(each.surface) for each in pieces]
    for at in reversed(range(len(sizes) - 1)):
        if not sizes[at] and pieces[at].piece != SPACE:  # the space put in front stands for nothing
            sizes[at] = sizes[at + 1]
    return sizes


def _before_comma(processor: Any, piece: str) -> list[str]:
    """The pieces of a number without the comma at its end."""
    parts: list[str] = processor.encode(piece[:-1].replace(SPACE, ""), out_type=str)
    if piece[0] != SPACE and parts[0][0] == SPACE:
        return parts[1:] if len(parts[0]) == 1 else [parts[0][1:], *parts[1:]]
    return parts
