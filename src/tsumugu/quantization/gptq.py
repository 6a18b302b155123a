"""Rounding a matrix so that what it gives for real inputs changes least: GPTQ.

Columns are rounded one after another, those that matter most first. What a column loses is made up for by those that
are not rounded yet, as far as inputs go together: that is what the inverse of their second moments says.

Source: Frantar et al. 2022, GPTQ, section 3 and algorithm 1; columns by falling importance with grids that are chosen
beforehand: the authors' `act-order` and `static-groups`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tsumugu.core.errors import InputError
from tsumugu.quantization.grids import BLOCK, Grid, Rounded, fitted

DAMPING = 0.01
"""Of the mean second moment, added to each, so that the inverse is stable."""
TOGETHER = 64
"""Columns after which what was lost is passed on to all the rest in one product."""


def gptq(matrix: Tensor, moments: Tensor, grid: Grid) -> Rounded:
    """`matrix` `[out, in]` on a grid.

    Args:
        moments: sums of `x x^T` over the inputs, `[in, in]`.

    Raises:
        InputError: the second moments are not finite; or as `fitted` does.
    """
    moments = moments.double()
    importance = moments.diagonal().clone()
    if not bool(importance.isfinite().all()):
        raise InputError("inputs of a layer are not finite on the calibration texts", where="calibrate")
    silent = importance == 0
    moments.diagonal()[silent] = 1.0
    moments = moments + DAMPING * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    order = importance.argsort(descending=True, stable=True)
    lower = torch.linalg.cholesky(moments[order][:, order])
    factor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()
    scales, mins = fitted(matrix, grid, moments.diagonal())
    place = order // BLOCK
    scale, least = scales.float()[:, place].t().contiguous(), mins.float()[:, place].t().contiguous()
    inverse = torch.where(scale == 0, 0, 1 / scale)
    rest = matrix.float().t()[order].contiguous()  # a column of the matrix is a row here
    numbers = torch.empty(rest.shape)
    for start in range(0, len(rest), TOGETHER):
        end = min(start + TOGETHER, len(rest))
        lost = torch.empty(end - start, rest.shape[1])
        for at in range(start, end):
            number = ((rest[at] - least[at]) * inverse[at]).round_().clamp_(grid.low, grid.high)
            numbers[at] = number
            torch.div(rest[at] - (number * scale[at] + least[at]), factor[at, at], out=lost[at - start])
            rest[at + 1 : end] -= factor[at, at + 1 : end, None] * lost[at - start]
        rest[end:] -= factor[start:end, end:].t() @ lost
    back = torch.empty_like(numbers)
    back[order] = numbers
    return Rounded(grid, back.t().contiguous().to(torch.int8), scales, mins)
