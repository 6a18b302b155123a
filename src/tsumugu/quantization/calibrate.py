"""Rounding a decoder layer by layer with the inputs that its layers get on calibration texts.

Texts go through the layers once: a layer's inputs come from layers that are rounded already, so that each makes up for
what those before it lost. In memory are the states of all texts between two layers, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tsumugu.models.decoder import Decoder
from tsumugu.quantization.gptq import gptq
from tsumugu.quantization.grids import BLOCK, Grid, Rounded

ROWS = 8
"""Windows that go through a layer at once."""


class Moments:
    """Sums of `x x^T` over what enters the linear maps of a module; maps that get the same inputs share them."""

    def __init__(self, module: nn.Module) -> None:
        self.of: dict[str, Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None
        self._hooks = [each.register_forward_pre_hook(self._watcher(name)) for name, each in matrices(module)]

    def close(self) -> None:
        """Look no more."""
        for each in self._hooks:
            each.remove()

    def groups(self) -> Iterator[tuple[list[str], Tensor]]:
        """Names of the maps that share inputs, and the sums."""
        for sums in {id(each): each for each in self.of.values()}.values():
            yield [name for name, each in self.of.items() if each is sums], sums

    def _watcher(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def watch(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x: Tensor = inputs[0]
            if self._last is not None and self._last[0] is x:
                self.of.setdefault(name, self._last[1])
                return
            sums = self.of.setdefault(name, x.new_zeros(x.shape[-1], x.shape[-1]))
            flat = x.flatten(0, -2)
            sums.addmm_(flat.t(), flat)
            self._last = (x, sums)

        return watch


def matrices(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear maps in a module whose rows fill blocks."""
    for name, each in module.named_modules():
        if isinstance(each, nn.Linear) and each.in_features % BLOCK == 0:
            yield name, each


@torch.no_grad()
def calibrated(
    model: Decoder, windows: Tensor, grid: Grid, *, progress: Callable[[int], None] | None = None
) -> dict[str, Rounded]:
    """The matrices of all layers on a grid, by the names of their modules; the model has their values afterwards.

    Args:
        model: in float32.
        windows: token ids of the calibration texts, `[windows, time]`.
        progress: called with the number of layers that are done.
    """
    calls = _layer_calls(model, windows[:1])
    steps = torch.arange(windows.shape[1])[None]
    states = torch.cat([model.embeddings(part, positions=steps) for part in torch.split(windows, ROWS)])
    found: dict[str, Rounded] = {}
    for index, (layer, call) in enumerate(zip(model.decoder.layers, calls, strict=True)):
        moments = Moments(layer)
        for part in torch.split(states, ROWS):
            layer(part, **call)
        moments.close()
        modules = dict(matrices(layer))
        for names, sums in moments.groups():
            weights = [modules[name].weight for name in names]
            rounded = gptq(torch.cat(weights), sums, grid)
            for name, weight, each in zip(names, weights, rounded.rows([len(each) for each in weights]), strict=True):
                found[f"decoder.layers.{index}.{name}"] = each
                weight.copy_(each.values())
        for part in torch.split(states, ROWS):
            part.copy_(layer(part, **call))
        if progress is not None:
            progress(index + 1)
    return found


def _layer_calls(model: Decoder, ids: Tensor) -> list[dict[str, Any]]:
    """What the model hands to each of its layers beside the states: mask and rotation."""
    calls: list[dict[str, Any]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(named)

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in model.decoder.layers]
    model(ids, logits_to_keep=1)
    for each in hooks:
        each.remove()
    return calls
