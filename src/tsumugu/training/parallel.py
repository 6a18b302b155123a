"""One training step spread over several ranks: the data dealt out, the weights whole, sharded, or cut into columns.

Gradients are summed over the ranks, not averaged: the training loop has divided every loss by the count of the whole
step before. And they are summed in the same order in every run, so that one that was resumed ends bit by bit where the
undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.feedforward import FeedForward, GatedFeedForward
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.positions import RelativePositions
from tsumugu.core.config import Config, limits
from tsumugu.core.errors import ConfigError
from tsumugu.training.distributed import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    Style: TypeAlias = Any


@dataclass(frozen=True, kw_only=True)
class Parallel(Config):
    """How several ranks share the work; with one rank nothing is shared.

    Attributes:
        kind: ddp: every rank has all weights, and gradients are summed. fsdp: every rank keeps a part of the weights,
            the gradients and the optimiser's state, and gathers each layer's weights as it is computed.
        tensor: how many ranks share one reading of the data and cut the matrices of every layer among themselves
            (tensor parallel); it divides the number of ranks, the heads and the width of the feed-forward networks.
    """

    kind: Literal["ddp", "fsdp"] = "ddp"
    tensor: int = limits(1, low=1)

    @property
    def sharded(self) -> bool:
        """Whether a rank holds parts of the weights only."""
        return self.kind == "fsdp" or self.tensor > 1


def parallelize(step: nn.Module, model: nn.Module, layout: Parallel, world: World) -> nn.Module:
    """`step` made to run on all ranks of `world`; call what this gives, inside `gradients_of`.

    Build optimisers and averages afterwards: sharding replaces the parameters. Where weights are sharded, all ranks
    must use the same parameters in the micro-batches of one number.

    Args:
        step: its forward pass takes tensors and gives tensors to be summed.
        model: the part of `step` whose layers are sharded.
        layout: what is shared how.
        world: opened with `layout.tensor`.

    Raises:
        ConfigError: there are fewer ranks than `layout.tensor`, or heads or widths do not divide by it.
    """
    if layout.tensor != world.tensor:
        raise ConfigError(
            f"{layout.tensor} ranks cannot share matrices in a world of {world.size}",
            where="Parallel.tensor",
            mend="start with torchrun --nproc-per-node, or leave it at 1",
        )
    if world.size == 1:
        return step
    if not layout.sharded:
        return _replicate(step)
    mesh = _mesh(layout, world)
    if layout.tensor > 1:
        if getattr(model, "adapters", None):
            what = "matrices with adapters beside them are not cut among ranks"
            raise ConfigError(what, where="Parallel.tensor", mend="use fsdp")
        cut_matrices(model, mesh["tensor"])
    _shard(step, model, mesh["replicate", "shard"] if layout.kind == "ddp" else mesh["shard"])
    return step


def _replicate(step: nn.Module) -> nn.Module:
    """torch's own data parallel, with gradients summed in an order that does not change.

    It groups gradients by the order in which parameters were made, and regroups them after the first backward pass by
    the order in which they came, unless it looks for unused ones. The groups decide in which order more than two ranks
    are summed, so a resumed run would differ in its first step by a rounding.
    """
    replicated = DistributedDataParallel(_WithSpare(step), find_unused_parameters=True, gradient_as_bucket_view=True)
    replicated.register_comm_hook(None, lambda state, bucket: _summed(bucket))
    return replicated


class _WithSpare(nn.Module):
    """`step` and a parameter that nothing uses: torch prints a warning on every rank when it looks for one in vain."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.module = step
        self.spare = nn.Parameter(torch.zeros(1, device=next(step.parameters()).device))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)


def _summed(bucket: Any) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


def _mesh(layout: Parallel, world: World) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    data = (world.data_size, 1) if layout.kind == "ddp" else (1, world.data_size)
    names = ("replicate", "shard", "tensor")
    return init_device_mesh(world.device.type, (*data, layout.tensor), mesh_dim_names=names)


def _shard(step: nn.Module, model: nn.Module, mesh: DeviceMesh) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for layer in [each for each in model.modules() if isinstance(each, Layer)]:
        fully_shard(layer, mesh=mesh)
    fully_shard(step, mesh=mesh)
    for each in step.modules():
        if isinstance(each, FSDPModule):
            each.set_gradient_divide_factor(1.0)
            each.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def cut_matrices(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut every layer's matrices among the ranks of `mesh`: by heads in attention, by width in feed-forward networks.

    A rank computes its heads and its part of the widened states; what attention's output and the narrowing give is
    summed. Embeddings, norms and the head stay whole. Every rank must be in the same state of its random generator
    when it computes, as dropout acts on whole states too.

    Raises:
        ConfigError: heads or widths do not divide by the number of ranks.

    Source: Shoeybi et al. 2019, Megatron-LM, section 3.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan: dict[str, Style] = {}
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    for name, module in model.named_modules():
        match module:
            case Attention():
                _divides(module.num_heads, mesh, "heads")
                _divides(module.num_kv_heads, mesh, "key and value heads")
                columns, rows = ("query", "key", "value"), ("output",)
            case FeedForward():
                _divides(module.up.out_features, mesh, "dimensions between up and down")
                columns, rows = ("up",), ("down",)
            case GatedFeedForward():
                _divides(module.up.out_features, mesh, "dimensions between up and down")
                columns, rows = ("gate", "up"), ("down",)
            case RelativePositions():
                columns, rows = ("embedding",), ()
            case _:
                continue
        plan |= {f"{name}.{part}": ColwiseParallel() for part in columns}
        plan |= {f"{name}.{part}": RowwiseParallel() for part in rows}
    parallelize_module(model, mesh, plan)


def _divides(number: int, mesh: DeviceMesh, what: str) -> None:
    if number % mesh.size():
        raise ConfigError(f"{mesh.size()} ranks do not divide {number} {what}", where="Parallel.tensor")


@contextmanager
def gradients_of(step: nn.Module, *, last: bool) -> Iterator[None]:
    """Run one micro-batch forward and backward in here; the ranks' gradients are summed with the `last` of a step.

    Sharded gradients are summed with every micro-batch: keeping them whole until the last would undo the saving.
    """
    if isinstance(step, DistributedDataParallel) and not last:
        with step.no_sync():
            yield
        return
    if _is_fully_sharded(step):
        step.set_requires_all_reduce(last)  # type: ignore[operator]
    yield


def gather_anew(step: nn.Module) -> None:
    """Have the next forward pass gather sharded weights: call it when they changed by another way than a step.

    After a forward pass without a backward pass the outermost weights stay gathered, as they were then.
    """
    for each in step.modules():
        if _is_fully_sharded(each):
            each.reshard()  # type: ignore[operator]


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter], world: World) -> Tensor:
    """The Euclidean norm of all gradients together, a float64 scalar, the same on all ranks and in all layouts."""
    gradients = [_numbers(each) for each in parameters if each.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=world.device)
    squares = torch.stack(torch._foreach_norm([local(each) for each in gradients])).double().square()
    if any(_is_sharded(each) for each in gradients):
        # Each rank counts its share of what several ranks hold, so that one sum over all of them is the whole.
        copies = [_copies(each, world.size) for each in gradients]
        squares /= torch.tensor(copies, dtype=torch.float64, device=squares.device)
        total = squares.sum()
        dist.all_reduce(total)
        return total.sqrt()
    return squares.sum().sqrt()


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, world: World) -> Tensor:
    """Scale all gradients so that their common norm is at most `limit`; gives the norm that they had.

    Gradients that are not finite stay so: look at the norm.
    """
    kept = [each for each in parameters if each.grad is not None]
    norm = gradient_norm(kept, world)
    gradients = [local(_numbers(each)) for each in kept]
    if gradients:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0).to(gradients[0].dtype))
    return norm


def _numbers(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient; where it is of few rows, these, each once."""
    assert parameter.grad is not None
    if parameter.grad.is_sparse:
        parameter.grad = parameter.grad.coalesce()
        return parameter.grad.values()
    return parameter.grad


def whole(tensor: Tensor) -> Tensor:
    """The tensor that the ranks hold parts of; all of them must ask. Anything else as it is."""
    if not _is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import Replicate

    sharded: DTensor = tensor  # type: ignore[assignment]
    for dim in range(sharded.device_mesh.ndim):
        # What was cut last is put together first: layers are cut among tensor ranks, then each part among data ranks.
        placements = [Replicate() if at <= dim else each for at, each in enumerate(sharded.placements)]
        sharded = sharded.redistribute(placements=placements)
    return sharded.to_local()


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this rank holds; anything else as it is."""
    part: Tensor = tensor.to_local() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def _is_fully_sharded(module: nn.Module) -> bool:
    return hasattr(module, "set_requires_all_reduce")


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")


def _copies(tensor: Tensor, ranks: int) -> float:
    """How many of the ranks hold the same part of `tensor`."""
    if not _is_sharded(tensor):
        return float(ranks)
    sharded: DTensor = tensor  # type: ignore[assignment]
    mesh = sharded.device_mesh
    return ranks / prod(mesh.size(dim) for dim, each in enumerate(sharded.placements) if not each.is_replicate())
