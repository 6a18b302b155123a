"""What the training loop runs in a step: model and objective as one module, and the ways to run it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from tsumugu.blocks.layer import Layer
from tsumugu.models.base import Model
from tsumugu.objectives.base import Batch, Losses


class Step(nn.Module):
    """Model and objective as one, as data parallelism wants them."""

    def __init__(self, model: Model, objective: Losses) -> None:
        super().__init__()
        self.model, self._objective = model, objective

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._objective.losses(self.model, inputs)


def tensors_of(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """A batch's arrays as tensors, which share memory with them on a CPU."""
    found = {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in batch.inputs.items()}
    return found if device.type == "cpu" else {name: each.to(device, non_blocking=True) for name, each in found.items()}


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """What the forward pass runs in: autocast to bfloat16 where it is `narrow`."""
    return (lambda: torch.autocast(device.type, torch.bfloat16)) if narrow(precision, device) else nullcontext


def narrow(precision: str, device: torch.device) -> bool:
    """Whether the forward pass is in bfloat16: where it is asked for, or for "auto" where a GPU has it."""
    return precision == "bf16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )


def recompute_layers(model: Model) -> None:
    """Have every layer keep nothing but what enters it."""
    for layer in (each for each in model.modules() if isinstance(each, Layer)):
        forward = layer.forward

        def kept(*inputs: Any, forward: Callable[..., Tensor] = forward, **named: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*inputs, **named)
            return recomputed(forward, *inputs, use_reentrant=False, **named)

        layer.forward = kept  # type: ignore[method-assign]


def compile_step(step: nn.Module) -> str | None:
    """Have `step` compiled when it first runs; where no compiler works it stays as it is, and the reason is given."""
    try:
        torch.compile(lambda x: (x * 2).sum())(torch.ones(8))
    except Exception as error:  # noqa: BLE001  (whatever a compiler raises)
        return f"torch.compile does not work here ({type(error).__name__}); training goes on without it"
    step.compile()
    return None


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak, of the device or, on a CPU, of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
