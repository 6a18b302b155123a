"""What an objective is: rows of tokens in, a batch of arrays out, and the sums of its losses over that batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from tsumugu.core.config import Config
from tsumugu.corpus.rows import Row, SlotRule

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100
"""A target that counts for nothing."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch, in NumPy.

    Attributes:
        inputs: what the objective's `losses` reads, by name.
        counts: how many terms each loss sums, by the loss's name. The training loop divides each sum by the count of
            the whole step, over all micro-batches and ranks, so that how a step is cut changes nothing.
        tokens: real tokens that the model reads.
        padding: places that hold none.
        bytes: how many UTF-8 bytes of text the main loss's targets stand for; bits per byte are counted with it.
    """

    inputs: dict[str, np.ndarray]
    counts: dict[str, int]
    tokens: int
    padding: int
    bytes: int


class Losses(Protocol):
    """What a model is asked for, as the training loop sees it.

    Attributes:
        weights: the share of each loss in the whole; the first is the main one.
    """

    weights: Mapping[str, float]

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum of each loss over the batch, scalars with their gradients, by the names in `counts`."""
        ...


class Objective(Losses, Protocol):
    """How a model learns from text without labels.

    Attributes:
        name: its name in the registry.
        head: the head that the model needs, a key of `tsumugu.models.base.HEADS`.
        slots: the places it needs beside the tokens.
    """

    name: str
    head: str
    slots: SlotRule

    def length(self, context: int) -> int:
        """How many places a row has, where the model reads `context` positions."""
        ...

    def batch(self, rows: Sequence[Row], random: Sequence[np.random.Generator]) -> Batch:
        """Arrays from rows; all chance is drawn from each row's own generator, so that no row depends on another."""
        ...


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config, ABC):
    """The options of an objective, as a recipe's section has them.

    Attributes:
        packing: how rows are packed for it where a recipe says nothing.
    """

    packing: ClassVar[str] = "stream"

    def for_packing(self, packing: str) -> Self:
        """The same with what depends on packing filled in: documents that were not cut do not see one another."""
        if getattr(self, "document_mask", False) is None:
            return self.replace(document_mask=packing == "best-fit")
        return self

    @abstractmethod
    def build(self, vocabulary: Vocabulary, context: int) -> Objective:
        """The objective, for a model that reads `context` positions.

        Raises:
            ConfigError: the vocabulary lacks a token that it needs.
        """


@dataclass(frozen=True)
class Vocabulary:
    """What an objective needs to know of a tokenizer.

    Attributes:
        size: how many ids there are.
        token_bytes: `[size]`, how many UTF-8 bytes of text each id stands for.
        bos, eos, pad, mask, cls, sep, unk: ids of the special tokens, None where there is none.
        special: all special ids.
        continues: bool `[size]`, True where a token goes on with the word before it (whole-word masking).
        sentinels: ids that stand for what was taken out (T5's extra ids), the first first.
        added: ids of all tokens that were added to the vocabulary, by what is written.
    """

    size: int
    token_bytes: np.ndarray
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    mask: int | None = None
    cls: int | None = None
    sep: int | None = None
    unk: int | None = None
    special: tuple[int, ...] = ()
    continues: np.ndarray | None = None
    sentinels: tuple[int, ...] = ()
    added: Mapping[str, int] = field(default_factory=dict)
