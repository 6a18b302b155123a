"""Masked language modelling: some tokens of a text are hidden, and asked for, from what stands on both sides.

Rows are ``[CLS] piece [SEP] piece [SEP] …``, filled across documents, as RoBERTa's FULL-SENTENCES are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tsumugu.core.config import limits
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.corpus.chance import generators, mix
from tsumugu.corpus.rows import Row, SlotRule
from tsumugu.objectives.base import IGNORE, Batch, ObjectiveConfig, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(ObjectiveConfig):
    """Hidden tokens, from both sides.

    Attributes:
        unit: what is chosen: single tokens, whole words, or spans of several units in a row, which are words where the
            tokenizer tells (`Vocabulary.continues`). No special token is ever chosen.
        probability: how likely each token is to be chosen.
        mask_share, random_share: of the chosen, how many are replaced by the mask token and by a random one; the rest
            stays. Drawn for each token; for spans, for each span.
        span_mean: a length of k units is as likely as (1 - 1/span_mean)^k, up to span_longest.
        static: the same row is masked alike in every epoch. Rows stay the same where cuts do not move.
        document_mask: keep documents that share a row apart. None: where they are packed by best fit.

    Source: Devlin et al. 2019, "BERT", section 3.1; whole words: its released code; Joshi et al. 2020, "SpanBERT",
    section 3.1; static and dynamic, FULL-SENTENCES: Liu et al. 2019, "RoBERTa", sections 4.1 and 4.2.
    """

    unit: Literal["token", "word", "span"] = "token"
    probability: float = limits(0.15, low=0.0, high=1.0)
    mask_share: float = limits(0.8, low=0.0, high=1.0)
    random_share: float = limits(0.1, low=0.0, high=1.0)
    span_mean: float = limits(5.0, low=1.0)
    span_longest: int = limits(10, low=1)
    static: bool = False
    document_mask: bool | None = None

    def check(self) -> None:
        """The two shares are parts of one whole."""
        if self.mask_share + self.random_share > 1:
            self.refuse("random_share", f"mask_share and random_share are {self.mask_share + self.random_share:g} of 1")

    def build(self, vocabulary: Vocabulary, context: int) -> Masked:
        """The objective."""
        return Masked(vocabulary, context, self)


class Choice(NamedTuple):
    """What is chosen, bool `[rows, length]`, and for each token the one whose draw decides what replaces it."""

    chosen: Bools
    leader: Int64s | None


class Masked:
    """See `MaskedConfig`. Where a tokenizer has no [CLS] or [SEP], what begins or ends a text takes their places."""

    name = "masked"
    head = "masked-lm"
    weights: Mapping[str, float] = {"token": 1.0}

    def __init__(self, vocabulary: Vocabulary, context: int, config: MaskedConfig) -> None:
        where = f"objective {self.name}"
        if vocabulary.mask is None:
            mend = "give it one (mask_token) before the corpus is prepared"
            raise ConfigError("the tokenizer has no mask token", where=where, mend=mend)
        if config.unit == "word" and vocabulary.continues is None:
            what = "this tokenizer's spelling does not tell where a word begins"
            raise ConfigError(what, where=where, mend="choose unit: token or span")
        self._config, self._mask = config, vocabulary.mask
        first = vocabulary.bos if vocabulary.cls is None else vocabulary.cls
        last = vocabulary.eos if vocabulary.sep is None else vocabulary.sep
        self._first = np.array([] if first is None else [first], np.int64)
        self._last = np.array([] if last is None else [last], np.int64)
        self.slots = SlotRule(per_piece=len(self._last), per_row=len(self._first))
        self._pad = self._mask if vocabulary.pad is None else vocabulary.pad
        self._special = np.zeros(vocabulary.size, bool)
        self._special[list(vocabulary.special)] = True
        self._ordinary = np.flatnonzero(~self._special)
        self._continues = vocabulary.continues
        self._token_bytes = vocabulary.token_bytes
        odds = (1 - 1 / config.span_mean) ** np.arange(config.span_longest)
        self._span_lengths = np.cumsum(odds / odds.sum())
        self._row = self.length(context)

    def length(self, context: int) -> int:
        """A row is what the model reads."""
        return context

    def batch(self, rows: Sequence[Row], random: Sequence[np.random.Generator]) -> Batch:
        """`input_ids`, `targets` and `attention_mask`, or in its place `document_ids`; `[rows, length]`."""
        ids, documents = self._lay_out(rows)
        if self._config.static:
            random = generators(0, [mix(row[0].document, row[0].start) if row else 0 for row in rows])
        draws = np.empty((len(rows), 3, self._row))
        for generator, out in zip(random, draws, strict=True):
            generator.random(out=out)
        open_ = (documents >= 0) & ~self._special[ids]
        choice = self._choose(ids, documents, open_, draws[:, 0], random)
        way = draws[:, 1] if choice.leader is None else np.take_along_axis(draws[:, 1], choice.leader, 1)
        config = self._config
        targets = np.where(choice.chosen, ids, IGNORE)
        strange = self._ordinary[(draws[:, 2] * len(self._ordinary)).astype(np.int64)]
        shown = np.where(way < config.mask_share, self._mask, strange)
        shown = np.where(choice.chosen & (way < config.mask_share + config.random_share), shown, ids)
        inputs = {"input_ids": shown, "targets": targets}
        if config.document_mask:
            inputs["document_ids"] = documents
        else:
            inputs["attention_mask"] = (documents >= 0).astype(np.int64)
        tokens, asked = int(np.count_nonzero(documents >= 0)), ids[choice.chosen]
        size = int(self._token_bytes[asked].sum(dtype=np.int64))
        return Batch(inputs, {"token": len(asked)}, tokens, ids.size - tokens, size)

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over all tokens that are asked for."""
        return {"token": model(**inputs).loss}

    def _lay_out(self, rows: Sequence[Row]) -> tuple[Int64s, Int64s]:
        """Ids and the number of the piece in its row that each belongs to, -1 for padding; `[rows, length]`."""
        ids = np.full((len(rows), self._row), self._pad)
        documents = np.full((len(rows), self._row), -1)
        for row, out, numbers in zip(rows, ids, documents, strict=True):
            parts: list[npt.NDArray[np.integer]] = [self._first]
            at, edges = len(self._first), []
            for piece in row:
                parts += [piece.tokens[piece.start : piece.stop], self._last]
                at += piece.stop - piece.start + len(self._last)
                edges.append(at)
            if at > self._row:
                raise InputError(f"a row of {at} tokens, longer than {self._row}", where=f"objective {self.name}")
            np.concatenate(parts, out=out[:at])
            numbers[:at] = 0
            for number, edge in enumerate(edges[:-1], 1):
                numbers[edge:at] = number
        return ids, documents

    def _choose(
        self,
        ids: Int64s,
        documents: Int64s,
        open_: Bools,
        draws: npt.NDArray[np.float64],
        random: Sequence[np.random.Generator],
    ) -> Choice:
        unit = self._config.unit
        if unit == "token":
            return Choice(open_ & (draws < self._config.probability), None)
        begins = open_.copy()  # where a unit begins
        if self._continues is not None:
            inside = self._continues[ids[:, 1:]] & open_[:, 1:] & open_[:, :-1]
            begins[:, 1:] &= ~(inside & (documents[:, 1:] == documents[:, :-1]))
        if unit == "word":
            first = np.maximum.accumulate(np.where(begins, np.arange(self._row), 0), axis=1)
            return Choice(open_ & (np.take_along_axis(draws, first, 1) < self._config.probability), None)
        spans = np.full(ids.shape, -1)  # the place of the span's first token, for those in a span
        for row, (generator, out) in enumerate(zip(random, spans, strict=True)):
            self._spans(np.flatnonzero(begins[row]), open_[row], generator, out)
        return Choice(spans >= 0, np.maximum(spans, 0))

    def _spans(self, begins: Int64s, open_: Bools, random: np.random.Generator, out: Int64s) -> None:
        """Choose spans among the units that begin at `begins`; write each one's first place where it lies in `out`.

        As many units as the probability asks for, fractions by chance, are dealt to spans of random lengths. These and
        the other units are put in random order on a ring, which is laid on the row anywhere: so every unit is as likely
        to be chosen, wherever it stands. Spans that meet the end go on at the beginning.
        """
        units = len(begins)
        budget = int(units * self._config.probability + random.random())
        if not budget:
            return
        lengths = 1 + np.searchsorted(self._span_lengths, random.random(budget), "right")
        total = np.cumsum(lengths)
        last = int(np.searchsorted(total, budget))
        lengths = lengths[: last + 1]
        lengths[last] -= total[last] - budget
        random.shuffle(lengths)
        places = units - budget + len(lengths)
        slots = np.sort(random.permutation(places)[: len(lengths)])
        starts = slots - np.arange(len(lengths)) + np.cumsum(lengths) - lengths
        covered = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(budget)
        turn = int(random.integers(units))
        unit_of = np.cumsum(np.bincount(begins, minlength=len(out))) - 1
        first = np.full(units, -1)
        first[(covered + turn) % units] = begins[np.repeat((starts + turn) % units, lengths)]
        out[open_] = first[unit_of[open_]]
