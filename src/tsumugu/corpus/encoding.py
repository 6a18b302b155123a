"""The token ids of one document, however long it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsumugu.text.tokenizer import Tokenizer

_PART = 1 << 18  # characters encoded at once: the library holds some 150 bytes for each token
_CONTEXT = 64


def encode_document(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text, without special tokens; what is spelt like a special token is read as plain text.

    A text longer than 262,144 characters is encoded in parts, so that memory stays bounded. It is cut behind a line
    end where there is one, else behind a space or 。, and every part is encoded with a little of what stands before
    it, so that no part begins as a text does.
    """
    if len(text) <= _PART:
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    found: list[int] = []
    for start, end in _parts(text):
        found += _encode_part(tokenizer, text, start, end)
    return found


def _encode_part(tokenizer: Tokenizer, text: str, start: int, end: int) -> list[int]:
    before = min(start, _CONTEXT)
    if before:
        row = tokenizer(text[start - before : end], add_special_tokens=False, split_special_tokens=True).encodings[0]
        own = [at for at, (begin, _) in enumerate(row.offsets) if begin >= before]
        across = any(begin < before < stop for begin, stop in row.offsets[: 2 * _CONTEXT])
        if own and not across:
            return list(row.ids[own[0] :])
    return tokenizer.encode(text[start:end], add_special_tokens=False, split_special_tokens=True)


def _parts(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while len(text) - start > _PART:
        low, high = start + _PART // 2, start + _PART
        found = text.rfind("\n", low, high)
        if found < 0:
            found = max(text.rfind(each, low, high) for each in " 。")
        end = high if found < 0 else found + 1
        yield start, end
        start = end
    yield start, len(text)
