"""What packing hands to an objective: rows, made of pieces of documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer]


class Piece(NamedTuple):
    """A stretch of one document that a row holds.

    A document of n tokens has n slots, or more where the objective asks for places of its own (see `SlotRule`).

    Attributes:
        document: the document's number in its corpus.
        tokens: the whole document's ids, `[n]`, a read-only view of the shard.
        start, stop: the slots of the document that lie in this row.
        size: UTF-8 bytes of the whole document's text; None where nobody counted.
    """

    document: int
    tokens: Ids
    start: int
    stop: int
    size: int | None = None


Row = list[Piece]


@dataclass(frozen=True)
class SlotRule:
    """The places an objective needs beside the tokens.

    Attributes:
        per_document: added to every document (a causal model learns to end a text: 1).
        per_piece: added to every piece (a separator behind each: 1).
        per_row: added to every row (a token before the first: 1).
    """

    per_document: int = 0
    per_piece: int = 0
    per_row: int = 0
