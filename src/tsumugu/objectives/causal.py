"""Left to right: causal language modelling, and the prefix LM, which reads the beginning of a text in both directions.

A document d of n tokens is [start] d [end], and every two neighbours are a pair: the first is read, the second asked
for. These n + 1 pairs are the document's slots, so that each token is asked for once, wherever documents are cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from tsumugu.core.errors import ConfigError, InputError
from tsumugu.corpus.rows import Piece, Row, SlotRule
from tsumugu.objectives.base import IGNORE, Batch, ObjectiveConfig, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

Int64s = npt.NDArray[np.int64]
Parts = list[npt.NDArray[np.integer]]

_CHUNK = 1 << 20  # tokens whose bytes are counted at once


@dataclass(frozen=True, kw_only=True)
class CausalConfig(ObjectiveConfig):
    """The next token, from all before it.

    Attributes:
        document_mask: keep documents that share a row apart, each with positions from 0. None: where they are packed
            by best fit, not where they are cut from a stream.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 3.1.
    """

    document_mask: bool | None = None

    def build(self, vocabulary: Vocabulary, context: int) -> Causal:
        """The objective."""
        return Causal(vocabulary, context, document_mask=bool(self.document_mask))


@dataclass(frozen=True, kw_only=True)
class PrefixLMConfig(ObjectiveConfig):
    """The next token of what follows a prefix, which is read in both directions. Where it ends is drawn anew each time.

    Attributes:
        document_mask: keep documents that share a row apart, each with a prefix of its own. Without, each row has one.
            None: as `CausalConfig`.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning" (T5), sections 3.2.1 and 3.3.1.
    """

    packing: ClassVar[str] = "best-fit"
    document_mask: bool | None = None

    def build(self, vocabulary: Vocabulary, context: int) -> PrefixLM:
        """The objective."""
        return PrefixLM(vocabulary, context, document_mask=bool(self.document_mask))


class Stretch(NamedTuple):
    """What is read and, shifted by one, asked for of a piece: arrays in order that hold one token more than `pairs`."""

    parts: Parts
    pairs: int


class Pairs(NamedTuple):
    """Rows laid out.

    Attributes:
        read, asked: `[rows, length]`; behind the last pair of a row the filler, and IGNORE.
        places: where in `rows * length` each pair lies, `[pairs]`, piece after piece.
        counts: pairs of each piece, `[pieces]`.
        owners: the row of each piece, `[pieces]`.
        bytes: UTF-8 bytes of what is asked for.
    """

    read: Int64s
    asked: Int64s
    places: Int64s
    counts: Int64s
    owners: Int64s
    bytes: int

    def within(self, counts: Int64s) -> Int64s:
        """Where each pair stands in its unit, `[pairs]`, for units of so many pairs."""
        return np.arange(len(self.places)) - np.repeat(np.cumsum(counts) - counts, counts)

    def spread(self, values: npt.NDArray[Any], filler: Any) -> npt.NDArray[Any]:
        """A value for each pair as `[rows, length]`, with `filler` behind the last."""
        table = np.full(self.read.size, filler, values.dtype)
        table[self.places] = values
        return table.reshape(self.read.shape)


class Causal:
    """See `CausalConfig`."""

    name = "causal"
    head = "causal-lm"
    weights: Mapping[str, float] = {"token": 1.0}
    slots = SlotRule(per_document=1)

    def __init__(self, vocabulary: Vocabulary, context: int, *, document_mask: bool) -> None:
        if vocabulary.eos is None:
            raise ConfigError(
                "the tokenizer has no token that ends a text",
                where=f"objective {self.name}",
                mend="give it one (eos_token) before the corpus is prepared",
            )
        self._end = np.array([vocabulary.eos])
        self._start = self._end if vocabulary.bos is None else np.array([vocabulary.bos])
        self._filler = vocabulary.eos if vocabulary.pad is None else vocabulary.pad
        self._token_bytes, self._document_mask = vocabulary.token_bytes, document_mask
        self._row = self.length(context)

    def length(self, context: int) -> int:
        """A row is what the model reads."""
        return context

    def batch(self, rows: Sequence[Row], random: Sequence[np.random.Generator]) -> Batch:
        """`input_ids` and `targets`, `[rows, length]`; with a document mask `document_ids` and `position_ids` too."""
        pairs = self._lay_out(rows, random)
        inputs = self._inputs(pairs)
        return _batch(inputs, pairs, asked=len(pairs.places), size=pairs.bytes)

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over all tokens that are asked for."""
        return {"token": model(**inputs).loss}

    def _stretches(self, row: Row, random: np.random.Generator) -> list[Stretch]:
        """What is read and asked of each piece."""
        return [self._plain(piece) for piece in row]

    def _plain(self, piece: Piece) -> Stretch:
        tokens, start, stop = piece.tokens, piece.start, piece.stop
        parts: Parts = [self._start, tokens[:stop]] if start == 0 else [tokens[start - 1 : stop]]
        if stop > len(tokens):
            parts.append(self._end)
        return Stretch(parts, stop - start)

    def _lay_out(self, rows: Sequence[Row], random: Sequence[np.random.Generator]) -> Pairs:
        parts: Parts = []
        counted, owning = [], []
        for number, (row, generator) in enumerate(zip(rows, random, strict=True)):
            for stretch in self._stretches(row, generator):
                parts += stretch.parts
                counted.append(stretch.pairs)
                owning.append(number)
        counts, owners = np.array(counted, np.int64), np.array(owning, np.int64)
        taken = np.bincount(owners, counts, len(rows)).astype(np.int64)
        if taken.max() > self._row:
            raise InputError(f"a row of {taken.max()} pairs, longer than {self._row}", where=f"objective {self.name}")
        read, asked = np.full(len(rows) * self._row, self._filler), np.full(len(rows) * self._row, IGNORE)
        ends = np.cumsum(counts)
        begins, before = ends - counts, np.cumsum(taken) - taken  # pairs before each piece, and before each row
        places = np.arange(taken.sum()) + np.repeat(owners * self._row - before[owners], counts)
        tokens = np.concatenate([*parts, self._end[:0]], dtype=np.int64)
        pieces = np.arange(len(counts))  # a stretch has one token more than pairs
        read[places] = np.delete(tokens, ends + pieces)
        asked[places] = wanted = np.delete(tokens, begins + pieces)
        size = self._bytes([piece for row in rows for piece in row], wanted, begins)
        shape = len(rows), self._row
        return Pairs(read.reshape(shape), asked.reshape(shape), places, counts, owners, size)

    def _inputs(self, pairs: Pairs) -> dict[str, np.ndarray]:
        inputs: dict[str, np.ndarray] = {"input_ids": pairs.read, "targets": pairs.asked}
        if self._document_mask:
            inputs["document_ids"] = pairs.spread(np.repeat(np.arange(len(pairs.counts)), pairs.counts), -1)
            inputs["position_ids"] = pairs.spread(pairs.within(pairs.counts), 0)
        return inputs

    def _bytes(self, pieces: Sequence[Piece], asked: Int64s, begins: Int64s) -> int:
        """UTF-8 bytes that `asked` stands for; over a whole corpus exactly those of its documents.

        Tokens do not tell all of a text's bytes where the tokenizer rewrites it. So the last piece of a document counts
        what those before it left over.
        """
        if not len(begins):
            return 0
        own = np.add.reduceat(self._token_bytes[asked], begins, dtype=np.int64)
        total = int(own.sum())
        for piece, counted in zip(pieces, own.tolist(), strict=True):
            if piece.stop > len(piece.tokens) and piece.size is not None:
                total += piece.size - counted - self._counted(piece.tokens[: piece.start])
        return total

    def _counted(self, tokens: npt.NDArray[np.integer]) -> int:
        chunks = range(0, len(tokens), _CHUNK)
        return sum(int(self._token_bytes[tokens[at : at + _CHUNK]].sum(dtype=np.int64)) for at in chunks)


class PrefixLM(Causal):
    """See `PrefixLMConfig`."""

    name = "prefix-lm"

    def batch(self, rows: Sequence[Row], random: Sequence[np.random.Generator]) -> Batch:
        """As `Causal.batch`, with `prefix`, bool `[rows, length]`: what is read in both directions.

        The prefix of a unit of k pairs has 1 to k - 1 tokens, each number as likely. Its last token asks for the first
        behind it; what the prefix itself shows is not asked for.
        """
        pairs = self._lay_out(rows, random)
        counts, owners = pairs.counts, pairs.owners
        if not self._document_mask:
            counts = np.bincount(owners, counts, len(rows)).astype(np.int64)
            owners = np.flatnonzero(counts)
            counts = counts[owners]
        units = np.bincount(owners, minlength=len(rows)).tolist()
        draws = np.concatenate([each.random(count) for each, count in zip(random, units, strict=True)])
        ends = np.repeat(1 + (draws * (counts - 1)).astype(np.int64), counts)
        within = pairs.within(counts)
        shown = pairs.places[within < ends - 1]
        pairs.asked.reshape(-1)[shown] = IGNORE
        wanted = pairs.asked[pairs.asked != IGNORE]
        inputs = {**self._inputs(pairs), "prefix": pairs.spread(within < ends, False)}
        return _batch(inputs, pairs, asked=len(wanted), size=self._counted(wanted))


def _batch(inputs: dict[str, np.ndarray], pairs: Pairs, *, asked: int, size: int) -> Batch:
    tokens = len(pairs.places)
    return Batch(inputs, {"token": asked}, tokens, pairs.read.size - tokens, size)
