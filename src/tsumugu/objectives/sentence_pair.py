"""Pairs of texts: whether one goes on with the other, together with hidden tokens.

Rows are ``[CLS] A [SEP] B [SEP]``. The text of a row is cut in two at the beginning of a word. Next-sentence prediction
puts text of another document in place of B in half of the rows; sentence order puts B before A in half of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from tsumugu.core.config import limits
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.corpus.rows import Piece, Row, SlotRule
from tsumugu.objectives.base import IGNORE, Batch, Vocabulary
from tsumugu.objectives.masked import Masked, MaskedConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SentencePairConfig(MaskedConfig):
    """What both kinds share; the other options are those of hidden tokens.

    Attributes:
        changed: how many of the pairs are no longer what stood in the text.
    """

    packing: ClassVar[str] = "single"
    changed: float = limits(0.5, low=0.0, high=1.0)

    def check(self) -> None:
        """Both texts must see one another."""
        super().check()
        if self.document_mask:
            self.refuse("document_mask", "the two texts of a pair must see one another", mend="leave it out")


@dataclass(frozen=True, kw_only=True)
class NextSentenceConfig(SentencePairConfig):
    """Whether the second text follows the first, or is from another document.

    The other document is one of the same micro-batch; where all rows are of one document, each second text follows.

    Source: Devlin et al. 2019, "BERT", section 3.1, task 2.
    """

    def build(self, vocabulary: Vocabulary, context: int) -> NextSentence:
        """The objective."""
        return NextSentence(vocabulary, context, self)


@dataclass(frozen=True, kw_only=True)
class SentenceOrderConfig(SentencePairConfig):
    """Whether the two texts are in their order, or swapped.

    Source: Lan et al. 2020, "ALBERT", section 3.1.
    """

    def build(self, vocabulary: Vocabulary, context: int) -> SentenceOrder:
        """The objective."""
        return SentenceOrder(vocabulary, context, self)


class SentencePair(Masked, ABC):
    """A row holds one piece of one document: packing `single`. A piece of fewer than two tokens makes no pair."""

    head = "pretraining"
    weights: Mapping[str, float] = {"token": 1.0, "pair": 1.0}

    def __init__(self, vocabulary: Vocabulary, context: int, config: SentencePairConfig) -> None:
        super().__init__(vocabulary, context, config)
        if not len(self._first) or not len(self._last):
            raise ConfigError(
                "the tokenizer has no tokens before, between and behind two texts",
                where=f"objective {self.name}",
                mend="give it [CLS] and [SEP] (cls_token, sep_token) before the corpus is prepared",
            )
        self._changed = config.changed
        self.slots = SlotRule(per_row=3)

    def batch(self, rows: Sequence[Row], random: Sequence[np.random.Generator]) -> Batch:
        """As `Masked.batch`, with `token_type_ids` `[rows, length]`, 1 from B on, and `pair_targets` `[rows]`.

        A pair's target is 0 where the two are what stood in the text, 1 where not, and -100 where there is no pair.
        """
        for row in rows:
            if len(row) > 1:
                raise InputError(
                    f"a row of {len(row)} pieces, and a pair is made of one",
                    where=f"objective {self.name}",
                    mend="choose packing: single",
                )
        pieces = [row[0] if row else None for row in rows]
        pairs: list[Row] = []
        targets = np.full(len(rows), IGNORE, np.int64)
        types = np.zeros((len(rows), self._row), np.int64)
        for number, (piece, generator) in enumerate(zip(pieces, random, strict=True)):
            if piece is None or piece.stop - piece.start < 2:
                pairs.append([] if piece is None else [piece])
                continue
            cut = self._word(piece, piece.start + 1, piece.stop, generator)
            first, second = piece._replace(stop=cut), piece._replace(start=cut)
            pair = self._change(pieces, first, second, generator) if generator.random() < self._changed else None
            targets[number] = pair is not None
            first, second = pair or (first, second)
            pairs.append([first, second])
            begin = 2 + first.stop - first.start
            types[number, begin : begin + second.stop - second.start + 1] = 1
        batch = super().batch(pairs, random)
        inputs = {**batch.inputs, "token_type_ids": types, "pair_targets": targets}
        counts = {**batch.counts, "pair": int(np.count_nonzero(targets != IGNORE))}
        return Batch(inputs, counts, batch.tokens, batch.padding, batch.bytes)

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over all tokens and all pairs that are asked for."""
        from torch.nn import functional

        given = dict(inputs)
        targets = given.pop("pair_targets")
        output = model(**given)
        logits = output.next_sentence_logits.float()
        pair = functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        return {"token": output.loss, "pair": pair}

    @abstractmethod
    def _change(
        self, pieces: Sequence[Piece | None], first: Piece, second: Piece, random: np.random.Generator
    ) -> tuple[Piece, Piece] | None:
        """Two texts that did not stand so; None where there are none."""

    def _word(self, piece: Piece, low: int, high: int, random: np.random.Generator) -> int:
        """A place from `low` to before `high` where a word of the piece's document begins, or any if none does."""
        places: npt.NDArray[np.int64] = np.arange(low, high)
        if self._continues is not None:
            words = places[~self._continues[piece.tokens[low:high]]]
            places = words if len(words) else places
        return int(places[int(random.random() * len(places))])


class NextSentence(SentencePair):
    """See `NextSentenceConfig`."""

    name = "next-sentence"

    def _change(
        self, pieces: Sequence[Piece | None], first: Piece, second: Piece, random: np.random.Generator
    ) -> tuple[Piece, Piece] | None:
        """As much of another document in the micro-batch as `second` has, if one is that long: length tells nothing."""
        wanted = second.stop - second.start
        others = [each for each in pieces if each is not None and each.document != first.document]
        others = [each for each in others if each.stop > each.start]
        if not others:
            return None
        long = [each for each in others if each.stop - each.start >= wanted] or others
        other = long[int(random.random() * len(long))]
        taken = min(wanted, other.stop - other.start)
        start = self._word(other, other.start, other.stop - taken + 1, random)
        return first, other._replace(start=start, stop=start + taken)


class SentenceOrder(SentencePair):
    """See `SentenceOrderConfig`."""

    name = "sentence-order"

    def _change(
        self, pieces: Sequence[Piece | None], first: Piece, second: Piece, random: np.random.Generator
    ) -> tuple[Piece, Piece] | None:
        return second, first
