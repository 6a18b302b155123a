"""Layers one upon another."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from tsumugu.blocks.kv_cache import KVCache
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.mask import EVERYTHING, Mask
from tsumugu.blocks.positions import Rotation


class Stack(nn.Module):
    """States `[batch, time, dim]` through all layers and the last norm, if there is one."""

    def __init__(self, layers: Iterable[Layer], *, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = EVERYTHING,
        rotation: Rotation | None = None,
        cache: KVCache | None = None,
        context: Tensor | None = None,
        context_mask: Mask = EVERYTHING,
        keep: list[Tensor] | None = None,
    ) -> Tensor:
        """What the last layer gives. `keep` collects what enters each layer, and the result."""
        time = x.shape[1]
        for index, layer in enumerate(self.layers):
            if keep is not None:
                keep.append(x)
            x = layer(
                x,
                mask=mask,
                rotation=rotation,
                cache=None if cache is None else cache.layer(index),
                context=context,
                context_mask=context_mask,
            )
        if cache is not None:
            cache.advance(time)
        if self.norm is not None:
            x = self.norm(x)
        if keep is not None:
            keep.append(x)
        return x
