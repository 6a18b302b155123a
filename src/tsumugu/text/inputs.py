"""What may be handed to a tokenizer, and one clear sentence about what may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tsumugu.core.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """A call's texts as the backend takes them.

    Args:
        texts: each a str or a list of words, or a pair of these.
        batched: whether a batch was handed in, rather than one text.
        paired: whether every row is a pair.
        split: whether texts are lists of words.
    """

    texts: list[Any]
    batched: bool
    paired: bool
    split: bool


def read_inputs(text: Any, pair: Any, *, split: bool) -> Inputs:
    """Tell one text from a batch, and single texts from pairs. What the texts hold is checked by the backend."""
    if split:
        if not isinstance(text, list | tuple):
            raise InputError(f"expected a list of words, found {_kind(text)}", where="text")
        batched = bool(text) and isinstance(text[0], list | tuple)
    else:
        batched = isinstance(text, list | tuple)
        if not batched and not isinstance(text, str):
            raise InputError(f"expected text, found {_kind(text)}", where="text", mend=_mend(text))
    if not batched:
        return Inputs([text] if pair is None else [(text, pair)], False, pair is not None, split)
    if pair is not None:
        if not isinstance(pair, list | tuple):
            raise InputError(f"expected a list like text, found {_kind(pair)}", where="text_pair")
        if len(pair) != len(text):
            raise InputError(f"{len(text)} first texts and {len(pair)} second ones", where="text_pair")
        return Inputs(list(zip(text, pair, strict=True)), True, True, split)
    paired = _are_pairs(text, split=split)
    return Inputs([tuple(each) for each in text] if paired else list(text), True, paired, split)


def _are_pairs(texts: Any, *, split: bool) -> bool:
    first = texts[0] if texts else None
    paired = isinstance(first, list | tuple) and (
        not split or (isinstance(first, tuple) and bool(first) and isinstance(first[0], list | tuple))
    )
    if paired:
        for i, each in enumerate(texts):
            if not isinstance(each, list | tuple) or len(each) != 2:
                found = f"{len(each)} texts" if isinstance(each, list | tuple) else _kind(each)
                mend = "pass is_split_into_words=True if these are words"
                raise InputError(f"expected a pair of texts, found {found}", where=f"text[{i}]", mend=mend)
    return paired


def explain(inputs: Inputs) -> InputError:
    """The error for texts that the backend refused: which one, and what is wrong with it."""
    for i, each in enumerate(inputs.texts):
        place = f"text[{i}]" if inputs.batched else "text"
        for name, part in _parts(each, place, paired=inputs.paired, split=inputs.split):
            if not isinstance(part, str):
                return InputError(f"expected text, found {_kind(part)}", where=name, mend=_mend(part))
            problem = surrogate(part, where=name)
            if problem is not None:
                return problem
    return InputError("expected text, a list of texts, or a list of pairs of texts", where="text")


def surrogate(text: str, *, where: str) -> InputError | None:
    """The error for a text that holds half of a surrogate pair, which no encoding can write; None if it holds none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        was = f" (byte 0x{code - 0xDC00:02X} of a file that is not UTF-8)" if 0xDC80 <= code <= 0xDCFF else ""
        return InputError(
            f"character {error.start} is the lone surrogate U+{code:04X}{was}",
            where=where,
            mend="read the file with its real encoding, or replace: text.encode('utf-8', 'replace').decode()",
        )
    return None


def _parts(text: Any, place: str, *, paired: bool, split: bool) -> Iterator[tuple[str, Any]]:
    for name, each in [(f"{place} (first)", text[0]), (f"{place} (second)", text[1])] if paired else [(place, text)]:
        if split and isinstance(each, list | tuple):
            yield from ((f"{name}, word {i}", word) for i, word in enumerate(each))
        else:
            yield name, each


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _mend(value: Any) -> str | None:
    if isinstance(value, bytes | bytearray):
        return "decode it first: text.decode('utf-8')"
    if hasattr(value, "tolist"):
        return "hand in a list of str: values.tolist()"
    return None


def read_ids(ids: Any) -> list[int]:
    """One row of token ids from a list, a tensor, an `Encoding` or a single id."""
    if isinstance(ids, Mapping):
        ids = ids["input_ids"]
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    row = [ids] if isinstance(ids, int) else list(ids)
    for i, each in enumerate(row):
        if not isinstance(each, int):
            if not hasattr(each, "__index__"):
                what = f"expected a token id, found {_kind(each)}"
                raise InputError(what, where=f"ids[{i}]", mend="decode takes one row; use batch_decode for several")
            row[i] = each = each.__index__()
        if not 0 <= each < 1 << 32:
            raise InputError(f"{each} is no token id", where=f"ids[{i}]")
    return row
