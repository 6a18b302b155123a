"""The loss over a vocabulary straight from hidden states: logits are made a few rows at a time and never kept.

A training step that holds all logits holds them four times: logits, their logarithmic softmax, and both gradients. Here
each chunk's gradients are made while its logits are there, so that one chunk is all that is ever held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK = 1 << 21
"""How many logits are held at once."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    chunk: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The sum of cross-entropies between `hidden @ weight.T + bias` and `targets`: a scalar with its gradient.

    The softmax is computed in float32 (float64 for float64 states), as is the sum. Products are taken in the type of
    `hidden`, or in autocast's.

    Args:
        hidden: `[n, dim]`.
        weight: `[vocab, dim]`.
        bias: `[vocab]`.
        targets: `[n]`, the index of the right class for each row; negative where nothing is asked for.
        chunk: how many rows are computed at once; what makes `CHUNK` logits when left out.
        softcap: bounds the logits: `softcap * tanh(logits / softcap)`.

    Source: Wijmans et al. 2024, Cut Your Losses in Large-Vocabulary Language Models, section 3 (the memory of logits);
    the gradient of softmax and logarithm together is Bridle 1990, equation 3.
    """
    rows = max(1, CHUNK // len(weight)) if chunk is None else chunk
    if not torch.is_grad_enabled():
        return _compute(hidden, weight, bias, targets, rows, softcap, (False, False, False)).loss
    apply: Any = _LinearCrossEntropy.apply
    return apply(hidden, weight, bias, targets, rows, softcap)


class _Result(NamedTuple):
    loss: Tensor
    gradients: list[Tensor | None]


class _LinearCrossEntropy(Function):
    """Gradients are made in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: int,
        softcap: float | None,
    ) -> Tensor:
        loss, gradients = _compute(hidden, weight, bias, targets, rows, softcap, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if each is None else each * scale.to(each.dtype) for each in ctx.saved_tensors]
        return (*scaled, None, None, None)


@torch.no_grad()
def _compute(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: int,
    softcap: float | None,
    wanted: Sequence[bool],
) -> _Result:
    """The loss, and the gradients of `hidden`, `weight` and `bias` as far as they are wanted."""
    count, device = len(hidden), hidden.device
    narrow = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden.dtype
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    by_class = weight.to(narrow)
    void = targets < 0
    asked = None if not bool(void.any()) else (~void).to(wide)
    targets = targets.clamp(min=0)
    losses = torch.empty(count, dtype=wide, device=device)
    of_hidden = torch.empty_like(hidden) if wanted[0] else None
    of_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
    of_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None
    with torch.autocast(device.type, enabled=False):
        made = torch.empty(min(rows, count), len(weight), dtype=narrow, device=device)
        for at in range(0, count, rows):
            some = slice(at, min(at + rows, count))
            states, right = hidden[some].to(narrow), targets[some, None]
            logits = torch.mm(states, by_class.T, out=made[: len(states)]).to(wide)
            if bias is not None:
                logits += bias
            slope = None
            if softcap is not None:
                bent = logits.div_(softcap).tanh_()
                slope = 1 - bent.square() if any(wanted) else None
                logits = bent.mul_(softcap)
            highest = logits.amax(1, keepdim=True)
            logits -= highest
            own = logits.gather(1, right)
            shares = logits.exp_()
            total = shares.sum(1, keepdim=True)
            losses[some] = (total.log() - own).squeeze(1)
            if not any(wanted):
                continue
            shares.scatter_add_(1, right, -total)  # softmax minus one at the target, both times the total
            if slope is not None:
                shares *= slope
            if asked is not None:
                shares *= asked[some, None]
            if of_bias is not None or narrow != wide:
                shares /= total
                total = torch.ones_like(total)
            if of_bias is not None:
                of_bias += shares.sum(0)
            error = shares.to(narrow)
            if of_hidden is not None:
                of_hidden[some] = torch.mm(error, by_class) / total
            if of_weight is not None:
                scaled = (states / total).to(narrow)
                if narrow == of_weight.dtype:
                    of_weight.addmm_(error.T, scaled)
                else:
                    of_weight += torch.mm(error.T, scaled)
    if asked is not None:
        losses *= asked
    gradients = [
        of_hidden,
        None if of_weight is None else of_weight.to(weight.dtype),
        None if of_bias is None or bias is None else of_bias.to(bias.dtype),
    ]
    return _Result(losses.sum(), gradients)
