"""Gradients of the rows of an embedding that a step has read, in place of some as large as the table.

Of a table of 250,000 words a step reads a few hundred. A whole gradient is filled, measured, clipped and applied all
the same, and a step of a small encoder takes half as long again (`python -m benchmarks vocabulary`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tsumugu.training.updates import Combined, evaluated

LARGE = 1 << 20
"""Numbers in a table from which it is worth while to look at the rows alone that a step has read."""
MOST = 0.1
"""The share of a table's rows that move up to which they are moved apart from the rest: to gather and to scatter them
takes several times as long as to move them."""


class RowAdamW(AdamW):
    """torch's fused AdamW, which also takes gradients of few rows (`nn.Embedding.sparse`).

    A row that no step has read yet has no moments and stays where it is, so that only those are moved which some step
    has read, unless they are many or decay. Numbers are AdamW's own to the bit where rows are a multiple of 16 wide, as
    many as a processor takes at once, else to rounding. (torch.optim.SparseAdam moves the rows of the one step only and
    lets the moments of all others stand, which is another rule.)
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options, fused=True)
        self._read: dict[Tensor, _Read] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = evaluated(closure)
        few = [
            (each, group, each.grad.coalesce())
            for group in self.param_groups
            for each in group["params"]
            if each.grad is not None and each.grad.is_sparse
        ]
        for each, _, _ in few:
            each.grad = None
        super().step()
        for each, group, grad in few:
            self._move(each, grad, group)
            each.grad = grad
        return loss

    def _move(self, table: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=table.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] += 1
        whole = (table, state["exp_avg"], state["exp_avg_sq"])
        rows, values = grad.indices()[0], grad.values()
        read = self._read.get(table)
        if read is None or not read.is_of(whole[1]):
            read = self._read[table] = _Read(*whole[1:])
        read.rows[rows[(values != 0).any(1)]] = True  # padding may be read and have no gradient
        moving = read.rows.nonzero()[:, 0]
        if group["weight_decay"] or len(moving) > MOST * len(table):
            # Memory that is kept is ready; of a new table as large, each page would have to be found and cleared.
            spread = read.spread = torch.zeros_like(table) if read.spread is None else read.spread
            spread[rows] = values
            _fused_step(*whole, spread, state["step"], group)
            spread[rows] = 0
        else:
            param, first, second = parts = [each.index_select(0, moving) for each in whole]
            spread = torch.zeros_like(param)
            kept = read.rows[rows]
            spread[torch.searchsorted(moving, rows[kept])] = values[kept]
            _fused_step(param, first, second, spread, state["step"], group)
            for each, part in zip(whole, parts, strict=True):
                each.index_copy_(0, moving, part)
        read.version = whole[1]._version


class _Read:
    """Which rows of a table have moments, as long as nobody else writes these; and room for its gradient."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.version = first, first._version
        self.rows = (first != 0).any(1) | (second != 0).any(1)
        self.spread: Tensor | None = None

    def is_of(self, first: Tensor) -> bool:
        return self.first is first and self.version == first._version


def _fused_step(
    param: Tensor, first: Tensor, second: Tensor, grad: Tensor, step: Tensor, group: dict[str, Any]
) -> None:
    one, two = group["betas"]
    torch._fused_adamw_(
        [param],
        [grad],
        [first],
        [second],
        [],
        [step],
        lr=float(group["lr"]),
        beta1=one,
        beta2=two,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


@contextmanager
def sparse_tables(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """While this lasts, large tables that are read and have no other use get gradients of the rows that were read.

    Without it each step fills, measures, scales and applies a gradient as large as the table. On a CPU only, and for
    `RowAdamW` without decay.
    """
    parts = optimizer.parts if isinstance(optimizer, Combined) else (optimizer,)
    taken = {
        id(each)
        for part in parts
        if isinstance(part, RowAdamW)
        for group in part.param_groups
        if not group["weight_decay"]
        for each in group["params"]
        if each.is_cpu and type(each) is nn.Parameter and each.numel() >= LARGE
    }
    uses = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    tables = [
        each
        for each in model.modules()
        if isinstance(each, nn.Embedding)
        and id(each.weight) in taken
        and uses[id(each.weight)] == 1
        and not each.sparse
    ]
    for each in tables:
        each.sparse = True
    try:
        yield
    finally:
        for each in tables:
            each.sparse = False
