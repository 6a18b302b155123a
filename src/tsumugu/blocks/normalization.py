"""Normalisation of hidden states. LayerNorm is torch's own; RMSNorm computes in float32, as its checkpoints expect."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LayerNorm = nn.LayerNorm


class RMSNorm(nn.Module):
    """Divide by the root mean square and scale; no mean, no bias. `[..., dim]` -> `[..., dim]`.

    The statistics are computed in float32 (float64 for float64 input) and rounded to the input's type before scaling.

    Args:
        hidden_size: the last dimension.
        eps: added to the mean square.
        offset: scale by `offset + weight`, rounded only after that. With 1 the weight is learnt as a distance from 1.

    Source: Zhang & Sennrich 2019, Root Mean Square Layer Normalization, equation 4; the offset is Gemma's (released
    code).
    """

    def __init__(self, hidden_size: int, *, eps: float = 1e-6, offset: float = 0.0) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((hidden_size,), 1.0 - offset))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.offset:
            return (wide * scale * (self.offset + self.weight.to(wide.dtype))).to(x.dtype)
        return self.weight * (wide * scale).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps:g}" + (f", offset={self.offset:g}" if self.offset else "")
