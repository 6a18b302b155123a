"""From token ids to vectors: the sum of token, position and segment embeddings, normalised where a family does so."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsumugu.blocks.dropout import Dropout


class Embedding(nn.Embedding):
    """A table of vectors: ids `[...]` -> `[..., dim]`.

    On the meta device it stays unset: torch's own initialisation there would import its compiler, which takes seconds.
    """

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Embeddings(nn.Module):
    """Token ids `[batch, time]` -> hidden states `[batch, time, dim]`.

    Args:
        token: the token embedding.
        position: one trained vector for each position; None where positions come in elsewhere (rotary, relative).
        segment: which of two texts a token is from (BERT).
        norm: applied to the sum.
        dropout: applied last.
        scale: the token embedding is multiplied by it, rounded to the embedding's type.
    """

    def __init__(
        self,
        token: nn.Embedding,
        *,
        position: Embedding | None = None,
        segment: nn.Embedding | None = None,
        norm: nn.Module | None = None,
        dropout: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.token, self.position, self.segment, self.norm = token, position, segment, norm
        self.dropout = Dropout(dropout)

    def forward(self, input_ids: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """`positions` and `segments`: `[batch|1, time]`; segments default to the first."""
        x: Tensor = self.token(input_ids)
        if self.scale != 1.0:
            x = x * torch.tensor(self.scale, dtype=x.dtype, device=x.device)
        return self.placed(x, positions=positions, segments=segments)

    def placed(self, x: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """The same for vectors `[batch, time, dim]` that are there already in place of the token embedding."""
        if self.segment is not None:
            x = x + (self.segment.weight[0] if segments is None else self.segment(segments))
        if self.position is not None:
            x = x + self.position(positions)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x)
