"""What a tokenizer returns: ids and masks by key or by attribute, and the way from a token back to the text.

Truncation and padding are done here, on encodings that belong to one call, never in the shared backend: two
threads may use one tokenizer with different lengths at the same time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import tokenizers

from tsumugu.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from tsumugu.core.tensors import TensorFormat

Side = Literal["left", "right"]
Strategy = Literal["longest_first", "only_first", "only_second"]


class Encoding(dict[str, Any]):
    """The result of a tokenizer call: a dict whose keys are attributes too (``encoding.input_ids``).

    Integer keys give the backend's `tokenizers.Encoding` of one row. Rows are numbered after truncation and
    padding; characters are numbered in the text as it was handed in.
    """

    def __init__(
        self, data: dict[str, Any], rows: Sequence[tokenizers.Encoding] | Callable[[], list[tokenizers.Encoding]] = ()
    ) -> None:
        super().__init__(data)
        self._rows = rows if callable(rows) else list(rows)

    @property
    def encodings(self) -> list[tokenizers.Encoding]:
        """The backend's encoding of each row."""
        if callable(self._rows):
            self._rows = self._rows()
        return self._rows

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getitem__(name)
        except KeyError:
            raise AttributeError(f"the encoding has no {name!r}; it has {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        return self.encodings[key] if isinstance(key, int) else super().__getitem__(key)

    def __reduce__(self) -> Any:
        return (Encoding, (dict(self), self.encodings))

    def tokens(self, row: int = 0) -> list[str]:
        """The tokens of one row as the vocabulary spells them."""
        return list(self.encodings[row].tokens)

    def offsets(self, row: int = 0) -> list[tuple[int, int]]:
        """Where each token of one row lies in its text: [start, end) in characters; (0, 0) for added tokens."""
        return list(self.encodings[row].offsets)

    def word_ids(self, row: int = 0) -> list[int | None]:
        """The word that each token came from; None for special tokens and padding."""
        return list(self.encodings[row].word_ids)

    def sequence_ids(self, row: int = 0) -> list[int | None]:
        """0 for tokens of the first text, 1 for those of the second, None for special tokens and padding."""
        return list(self.encodings[row].sequence_ids)

    def char_to_token(self, row: int, char: int | None = None, sequence: int = 0) -> int | None:
        """The token that holds a character, or None (whitespace, say). ``char_to_token(char)`` means row 0."""
        row, char = (0, row) if char is None else (row, char)
        found: int | None = self.encodings[row].char_to_token(char, sequence)
        return found

    def token_to_chars(self, row: int, token: int | None = None) -> tuple[int, int] | None:
        """[start, end) of a token in its text, or None for an added one. ``token_to_chars(token)`` means row 0."""
        row, token = (0, row) if token is None else (row, token)
        found: tuple[int, int] | None = self.encodings[row].token_to_chars(token)
        return found

    def word_to_tokens(self, row: int, word: int | None = None, sequence: int = 0) -> tuple[int, int] | None:
        """[start, end) of a word in tokens. ``word_to_tokens(word)`` means row 0."""
        row, word = (0, row) if word is None else (row, word)
        found: tuple[int, int] | None = self.encodings[row].word_to_tokens(word, sequence)
        return found

    def to(self, device: Any) -> Encoding:
        """Move PyTorch tensors to a device, in place; other values stay as they are."""
        for key, value in self.items():
            if callable(getattr(value, "to", None)):
                self[key] = value.to(device)
        return self


@dataclass(frozen=True)
class Limits:
    """How one call truncates and pads.

    Args:
        max_length: tokens per row, special tokens included; None for no truncation.
        strategy: which text of a pair gives way.
        stride: tokens that an overflowing row repeats from the row before.
        truncation_side: where tokens are cut off.
        pad_to: "longest", a length, or None for no padding.
        multiple_of: padded lengths are rounded up to a multiple of it.
        padding_side: where padding goes.
    """

    max_length: int | None
    strategy: Strategy
    stride: int
    truncation_side: Side
    pad_to: Literal["longest"] | int | None
    multiple_of: int | None
    padding_side: Side


def legal_side(side: str, *, where: str) -> Side:
    """`side` if it is "left" or "right", or an InputError."""
    sides: tuple[Side, ...] = ("left", "right")
    for each in sides:
        if each == side:
            return each
    raise InputError(f"{side!r} is not a side", where=where, mend="left or right")


def plan_limits(
    *,
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    stride: int,
    multiple_of: int | None,
    padding_side: str,
    truncation_side: str,
    model_max_length: int | None,
) -> Limits:
    """The usual arguments of a tokenizer call, checked.

    As everywhere in the field, `max_length` alone (no padding, `truncation` left out) truncates; and
    ``truncation=True`` without `max_length` cuts at `model_max_length`, or not at all where that is unknown.
    """
    if max_length is not None and max_length < 0:
        raise InputError(f"{max_length} is less than 0", where="max_length")
    if padding in (False, None, "do_not_pad"):
        wanted = None
    elif padding in (True, "longest"):
        wanted = "longest"
    elif padding == "max_length":
        wanted = "max_length"
    else:
        legal = ("longest", "max_length", "do_not_pad")
        raise InputError(f"{padding!r} is not a way to pad", where="padding", mend=did_you_mean(str(padding), legal))
    if truncation is None:
        truncation = max_length is not None and wanted is None
    if truncation is True:
        truncation = "longest_first"
    strategies: tuple[Strategy, ...] = ("longest_first", "only_first", "only_second")
    strategy = next((each for each in strategies if each == truncation), None)
    if strategy is None and truncation not in (False, "do_not_truncate"):
        mend = did_you_mean(str(truncation), [*strategies, "do_not_truncate"])
        raise InputError(f"{truncation!r} is not a way to truncate", where="truncation", mend=mend)
    length = max_length if max_length is not None else model_max_length
    if wanted == "max_length" and length is None:
        raise InputError("padding to max_length, but no length is known", where="padding", mend="pass max_length=…")
    return Limits(
        max_length=length if strategy is not None else None,
        strategy=strategy or "longest_first",
        stride=stride,
        truncation_side=legal_side(truncation_side, where="truncation_side"),
        pad_to=length if wanted == "max_length" else "longest" if wanted else None,
        multiple_of=multiple_of,
        padding_side=legal_side(padding_side, where="padding_side"),
    )


def truncated(
    backend: tokenizers.Tokenizer,
    first: tokenizers.Encoding,
    second: tokenizers.Encoding | None,
    limits: Limits,
    *,
    add_special_tokens: bool,
) -> tokenizers.Encoding:
    """Cut texts that were encoded without special tokens to `limits.max_length`, then add the special tokens.

    Raises:
        InputError: the length leaves no room for the special tokens or for the stride, or the text that the
            strategy names is too short to give way.
    """
    added = backend.num_special_tokens_to_add(second is not None) if add_special_tokens else 0
    kept = shares(len(first.ids), None if second is None else len(second.ids), added, limits)
    for each, length in zip((first, second), kept, strict=True):
        if each is not None and length < len(each.ids):
            if length and limits.stride >= length:
                raise InputError(f"{limits.stride} is not less than the {length} tokens of a row", where="stride")
            each.truncate(length, limits.stride if length else 0, limits.truncation_side)
    first.set_sequence_id(0)
    if second is not None:
        _make_second(second)
    return backend.post_process(first, second, add_special_tokens)


def _make_second(encoding: tokenizers.Encoding) -> None:
    """Say that all tokens are of the second text, and of no other.

    `set_sequence_id` only adds: a text that was encoded alone would stay a first text too, and when the two are
    joined it would take the number away from the real first.
    """
    if encoding.sequence_ids[:1] != [None]:
        state = json.loads(encoding.__getstate__())
        state["sequence_ranges"] = {}
        encoding.__setstate__(json.dumps(state).encode())
    encoding.set_sequence_id(1)


def shares(first: int, pair: int | None, added: int, limits: Limits) -> tuple[int, int]:
    """How many tokens of a text, or of each of a pair, are kept, if so many special tokens are added.

    Raises:
        InputError: as `truncated`.
    """
    assert limits.max_length is not None
    room = limits.max_length - added
    if room < 0:
        raise InputError(
            f"{limits.max_length} leaves no room for the {added} special tokens",
            where="max_length",
            mend=f"at least {added}",
        )
    second = pair or 0
    surplus = first + second - room
    if surplus <= 0:
        return first, second
    if limits.strategy == "longest_first":
        if pair is None:
            return room, 0
        short, long = sorted((first, second))
        long = room - short if short <= room // 2 else room - room // 2
        short = min(short, room // 2)
        return (short, long) if first <= second else (long, short)
    kept = (first if limits.strategy == "only_first" else second) - surplus
    if kept <= 0:
        which = "first" if limits.strategy == "only_first" else "second"
        raise InputError(
            f"the {which} text is too short to give up {surplus} tokens",
            where="truncation",
            mend="use truncation='longest_first' or a larger max_length",
        )
    return (kept, second) if limits.strategy == "only_first" else (first, kept)


def pad(rows: Iterable[Any], limits: Limits, *, pad_id: int, pad_token: str, type_id: int) -> None:
    """Pad every row (encodings, or what has their `ids` and `pad`), in place, to one length."""
    rows = list(rows)
    assert limits.pad_to is not None
    length = max((len(each.ids) for each in rows), default=0) if limits.pad_to == "longest" else limits.pad_to
    if limits.multiple_of:
        length = -(-length // limits.multiple_of) * limits.multiple_of
    for each in rows:
        each.pad(length, direction=limits.padding_side, pad_id=pad_id, pad_type_id=type_id, pad_token=pad_token)


def as_tensor(key: str, rows: list[Any], to: str | TensorFormat) -> Any:
    """Rows of numbers as an int64 tensor `[batch, time]`, offsets as `[batch, time, 2]`."""
    import numpy as np

    from tsumugu.core.tensors import TensorFormat, convert_tensor

    to = TensorFormat.parse(to)
    lengths = {len(each) for each in rows} if rows and isinstance(rows[0], list) else set()
    if len(lengths) > 1:
        raise InputError(
            f"rows of {min(lengths)} to {max(lengths)} tokens make no tensor", where=key, mend="pass padding=True"
        )
    shape = (len(rows), *lengths, *((2,) if key == "offset_mapping" else ()))
    array = np.array(rows, dtype=np.int64).reshape(shape if rows else (0, 0))
    return convert_tensor(array, to)
