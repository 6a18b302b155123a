"""Replaced-token detection: a small generator fills in hidden tokens, and the model tells which are not the text's.

Both are trained together. The model that is built for it is a pair, of which the generator is only there to teach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tsumugu.core.config import limits
from tsumugu.corpus.rows import Row
from tsumugu.objectives.base import Batch, Vocabulary
from tsumugu.objectives.masked import Masked, MaskedConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ReplacedTokenConfig(MaskedConfig):
    """Which tokens a generator replaced.

    The options of hidden tokens are the generator's; where nothing is said, 85 of 100 show the mask token and the rest
    stay as they are. How large the generator is, the model's configuration says (`generator_size`).

    Attributes:
        weight: how much the detection counts against the generator's loss.

    Source: Clark et al. 2020, "ELECTRA", section 2, and the released code.
    """

    mask_share: float = limits(0.85, low=0.0, high=1.0)
    random_share: float = limits(0.0, low=0.0, high=1.0)
    weight: float = limits(50.0, low=0.0)

    def build(self, vocabulary: Vocabulary, context: int) -> ReplacedToken:
        """The objective."""
        return ReplacedToken(vocabulary, context, self)


class ReplacedToken(Masked):
    """See `ReplacedTokenConfig`. All real tokens are judged, special ones too."""

    name = "replaced-token"
    head = "replaced-token-pair"

    def __init__(self, vocabulary: Vocabulary, context: int, config: ReplacedTokenConfig) -> None:
        super().__init__(vocabulary, context, config)
        self.weights: Mapping[str, float] = {"token": 1.0, "replaced": config.weight}

    def batch(self, rows: Sequence[Row], random: Sequence[np.random.Generator]) -> Batch:
        """As `Masked.batch`, with `noise` `[rows, length]`: what chooses among the generator's tokens."""
        batch = super().batch(rows, random)
        noise = np.stack([each.random(self._row, dtype=np.float32) for each in random])
        counts = {**batch.counts, "replaced": batch.tokens}
        return Batch({**batch.inputs, "noise": noise}, counts, batch.tokens, batch.padding, batch.bytes)

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over the generator's hidden tokens and over all tokens that are judged."""
        output = model(**inputs)
        return {"token": output.loss, "replaced": output.replaced_loss}
