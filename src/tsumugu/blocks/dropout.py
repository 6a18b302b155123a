"""Dropout whose chance costs less: on a CPU a random word of 64 bits decides on four numbers.

torch draws a number for each; forward that is 7 to 9 ns a number on one core, this 2.4, and a step of fine-tuning BERT
draws tens of millions. Elsewhere, and in graphs that are traced, it is torch's own.

Source: Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", section 10 (what is
kept is scaled up while training).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 1 << 16
"""Chances are whole multiples of 1 / LEVELS, and what is kept is scaled by just that, so that the mean is exact."""


class Dropout(nn.Dropout):
    """As `torch.nn.Dropout`, by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x


def quick(x: Tensor) -> bool:
    """Whether chance is drawn here, not by torch: a plain tensor on a CPU, and nothing is traced."""
    return type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and not torch.compiler.is_compiling()


def dropout(x: Tensor, p: float) -> Tensor:
    """Each number of `x` is 0 with chance `p`, and 1 / (1 - p) of itself otherwise.

    Args:
        x: of any shape and float type.
        p: from 0 to 1.
    """
    if not quick(x) or p >= 1.0:
        return functional.dropout(x, p)
    kept = min(max(round((1.0 - p) * LEVELS), 1), LEVELS - 1)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) < kept - LEVELS // 2
    dropped: Tensor = _Dropped.apply(x, keep, LEVELS / kept)  # type: ignore[no-untyped-call]
    return dropped


class _Dropped(torch.autograd.Function):
    """`x * keep * scale`, of which the byte of each number is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return keep.to(x.dtype).mul_(scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return keep.to(gradient.dtype).mul_(ctx.scale).mul_(gradient), None, None
