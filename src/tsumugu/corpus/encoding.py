"""The token ids of one document, however long it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsumugu.text.tokenizer import Tokenizer

_PART = 1 << 18  # characters encoded at once: the library holds some 150 bytes for each token
_CONTEXT = 256


def encode_document(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text, without special tokens; what is spelt like a special token is read as plain text.

    A text longer than 262,144 characters is encoded in parts, so that memory stays bounded. Parts end at the ends of
    lines where there are any, and each is encoded together with what stands around it, so that the edges leave no
    trace in the tokens.
    """
    if len(text) <= _PART:
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    found: list[int] = []
    at = 0
    while at < len(text):
        ids, at = _encode_part(tokenizer, text, at, _end(text, at))
        found += ids
    return found


def _encode_part(
    tokenizer: Tokenizer, text: str, start: int, end: int, context: int = _CONTEXT
) -> tuple[list[int], int]:
    """The ids of the tokens that begin in [start, end), and where the last of them ends, or `end`."""
    base = max(0, start - context)
    window = text[base : min(len(text), end + _CONTEXT)]
    row = tokenizer(window, add_special_tokens=False, split_special_tokens=True).encodings[0]
    spans = [(base + begin, base + stop) for begin, stop in row.offsets]
    if context and any(begin < start < stop for begin, stop in spans[: 4 * context]):
        return _encode_part(tokenizer, text, start, end, 0)  # cut otherwise than before: nothing may get lost
    taken = [at for at, (begin, _) in enumerate(spans) if start <= begin < end]
    ids = row.ids
    return [ids[at] for at in taken], max([end, *(spans[at][1] for at in taken[-1:])])


def _end(text: str, start: int) -> int:
    """Where a part may end that starts here: behind a line end, else a space or a 。, else anywhere."""
    low, high = start + _PART // 2, start + _PART
    if high >= len(text):
        return len(text)
    found = text.rfind("\n", low, high)
    if found < 0:
        found = max(text.rfind(each, low, high) for each in " 。")
    return high if found < 0 else found + 1
