"""Update rules that torch lacks, gradients of few rows, and several rules as one optimiser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

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
        loss = _evaluate(closure)
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


class Lion(Optimizer):
    """The sign of a blend of gradient and momentum, with decoupled weight decay; one state tensor a parameter.

    With gradient g and momentum m: `p -= lr * (sign(b1 m + (1 - b1) g) + decay p)`, then `m = b2 m + (1 - b2) g`.

    Source: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, program 1.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _evaluate(closure)
        for group in self.param_groups:
            params, grads, momenta = _with_momenta(self, group, "exp_avg")
            if not params:
                continue
            first, second = group["betas"]
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            updates = torch._foreach_mul(momenta, first)
            torch._foreach_add_(updates, grads, alpha=1 - first)
            torch._foreach_add_(params, [each.sign_() for each in updates], alpha=-group["lr"])
            torch._foreach_mul_(momenta, second)
            torch._foreach_add_(momenta, grads, alpha=1 - second)
        return loss


class Muon(Optimizer):
    """Momentum whose matrix is made nearly orthogonal: every direction of a hidden layer moves equally far.

    With gradient g and momentum m: `m = b m + (1 - b) g`, then `p = (1 - lr decay) p - 0.2 lr sqrt(max(rows, columns))
    orthogonal(b m + (1 - b) g)`. The factor gives the step the root mean square of one of AdamW, so that both share a
    learning rate and a decay. Only for matrices. A sharded matrix is put together for the product on every rank.

    torch.optim.Muon computes the same, in bfloat16 always; see `orthogonal`.

    Source: Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks; the factor: Liu et al. 2025,
    Muon is Scalable for LLM Training, section 2.2.
    """

    def __init__(self, params: Any, *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _evaluate(closure)
        for group in self.param_groups:
            params, grads, momenta = _with_momenta(self, group, "momentum_buffer")
            if not params:
                continue
            lr, keep = group["lr"], group["momentum"]
            torch._foreach_mul_(momenta, keep)
            torch._foreach_add_(momenta, grads, alpha=1 - keep)
            updates = torch._foreach_mul(momenta, keep)
            torch._foreach_add_(updates, grads, alpha=1 - keep)
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            for param, update in zip(params, updates, strict=True):
                param.add_(_orthogonal(update), alpha=-0.2 * lr * max(param.shape) ** 0.5)
        return loss


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the closest matrix of orthonormal rows or columns: its singular values end between 0.68 and 1.14.

    Five Newton-Schulz steps. In float32 where products of bfloat16 may be slower than those (CPU), in float64 for
    float64, else in bfloat16.

    Source: Jordan et al. 2024, Muon, section "Newton-Schulz" (the coefficients too).
    """
    wide = matrix.dtype if matrix.dtype == torch.float64 else torch.float32 if matrix.is_cpu else torch.bfloat16
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(wide)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.T if tall else x).to(matrix.dtype)


class Combined(Optimizer):
    """Several optimisers as one: `step` lets each update its own groups; groups and state are those of this one.

    Args:
        parts: optimisers of different parameters that did not step yet.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = tuple(parts)
        groups = [{**group, "part": index} for index, part in enumerate(parts) for group in part.param_groups]
        super().__init__(groups, {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _evaluate(closure)
        for index, part in enumerate(self.parts):
            # Loading a state replaces both, so they are handed over anew each time.
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["part"] == index]
            part.step()
        return loss


def _evaluate(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _with_momenta(
    optimizer: Optimizer, group: dict[str, Any], name: str
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The parameters of `group` that have gradients, these, and the state called `name`, zero at first."""
    params = [each for each in group["params"] if each.grad is not None]
    for each in params:
        if not optimizer.state[each]:
            optimizer.state[each][name] = torch.zeros_like(each)
    return params, [each.grad for each in params], [optimizer.state[each][name] for each in params]


def _orthogonal(matrix: Tensor) -> Tensor:
    if type(matrix) is Tensor:
        return orthogonal(matrix)
    from torch.distributed.tensor import DTensor, distribute_tensor  # half a second, needed on several ranks only

    from tsumugu.training.parallel import whole

    assert isinstance(matrix, DTensor)
    return distribute_tensor(orthogonal(whole(matrix)), matrix.device_mesh, matrix.placements, src_data_rank=None)
