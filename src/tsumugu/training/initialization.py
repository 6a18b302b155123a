"""First weights that depend on the seed and on each parameter's name, and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from tsumugu.blocks.normalization import LayerNorm, RMSNorm
from tsumugu.models.base import Model


@torch.no_grad()
def initialize(model: Model, *, seed: int) -> None:
    """Fresh weights as the family's authors drew them: matrices and embeddings normal, biases 0, norms scale by 1.

    How widely each matrix is spread is the family's rule, `Model.spread`. The numbers behind a name come from a
    generator of its own, keyed by the seed and the name: they are the same whatever else the model holds, on any
    machine, device, type of numbers, and number of threads and ranks. Of a sharded parameter each rank keeps its part.
    """
    norms = {
        id(each.weight): 1.0 - getattr(each, "offset", 0.0)
        for each in model.modules()
        if isinstance(each, LayerNorm | RMSNorm)
    }
    for name, param in model.named_parameters():
        if param.dim() < 2:
            nn.init.constant_(param, norms.get(id(param), 0.0))
        else:
            _put(param, normal(seed, name, tuple(param.shape)).mul_(model.spread(name)))


def normal(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers from N(0, 1) in float32: a function of all arguments.

    NumPy draws them: torch's own differ with the instructions that a processor has.
    """
    key = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return torch.from_numpy(generator.standard_normal(shape, np.float32))


def _put(param: Tensor, values: Tensor) -> None:
    mesh = getattr(param, "device_mesh", None)
    if mesh is not None:
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(param, DTensor)
        values = distribute_tensor(values.to(param.device, param.dtype), mesh, param.placements, src_data_rank=None)
    param.copy_(values)
