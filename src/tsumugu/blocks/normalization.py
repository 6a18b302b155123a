"""Normalisation of hidden states. LayerNorm is torch's own; RMSNorm computes in float32, as its checkpoints expect."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LayerNorm = nn.LayerNorm


class RMSNorm(nn.Module):
    """Divide by the root mean square and scale; no mean, no bias. `[..., dim]` -> `[..., dim]`.

    The statistics are computed in float32 (float64 for float64 input) and rounded to the input's type before scaling.

    Source: Zhang & Sennrich 2019, Root Mean Square Layer Normalization, equation 4.
    """

    def __init__(self, hidden_size: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps:g}"
