"""A running average of the weights, which often predicts better than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tsumugu.core.errors import CheckpointError


class Ema:
    """The exponential moving average of a model's trained parameters, in float32 (float64 for float64).

    `average = d average + (1 - d) weights`, with d = min(decay, (1 + step) / (10 + step)), so that the first weights,
    which are random, are soon forgotten.

    Args:
        model: averaged from its weights of now.
        decay: how much of the average a step keeps; 0.999 looks back a thousand steps.

    Source: Polyak & Juditsky 1992; the warm-up: TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self._params = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self._averages = {name: _wide(each.detach()).clone() for name, each in self._params.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the step numbered `step` from 0."""
        keep = min(self.decay, (1 + step) / (10 + step))
        weights = [_wide(each.detach()) for each in self._params.values()]
        averages = list(self._averages.values())
        torch._foreach_mul_(averages, keep)
        torch._foreach_add_(averages, weights, alpha=1 - keep)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the averages as its weights meanwhile, and afterwards its own again, bit by bit."""
        own = {name: each.detach().clone() for name, each in self._params.items()}
        try:
            self._put(self._averages)
            yield
        finally:
            self._put(own)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by the parameters' names; not copies."""
        return dict(self._averages)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from averages that `tensors` gave.

        Raises:
            CheckpointError: the names or shapes are not those of the model's trained parameters.
        """
        for name in sorted(self._averages.keys() ^ tensors.keys()):
            raise CheckpointError(
                f"the average {'lacks' if name in self._averages else 'has, and the model lacks,'} {name}"
            )
        for name, each in self._averages.items():
            if tensors[name].shape != each.shape:
                shapes = f"{list(tensors[name].shape)} is not {list(each.shape)}"
                raise CheckpointError(f"the average of {name} has another shape: {shapes}")
        for name, each in self._averages.items():
            each.copy_(tensors[name])

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, each in self._params.items():
            each.copy_(tensors[name])


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
