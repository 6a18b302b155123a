"""Update rules that torch lacks, and several rules as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """The sign of a blend of gradient and momentum, with decoupled weight decay; one state tensor a parameter.

    With gradient g and momentum m: `p -= lr * (sign(b1 m + (1 - b1) g) + decay p)`, then `m = b2 m + (1 - b2) g`.

    Source: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, program 1.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = evaluated(closure)
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
        loss = evaluated(closure)
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
        loss = evaluated(closure)
        for index, part in enumerate(self.parts):
            # Loading a state replaces both, so they are handed over anew each time.
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["part"] == index]
            part.step()
        return loss


def evaluated(closure: Callable[[], float] | None) -> float | None:
    """What a step's closure, if there is one, gives: it computes the gradients."""
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
