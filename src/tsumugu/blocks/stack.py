"""Layers one upon another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from tsumugu.blocks.dropout import Dropout
from tsumugu.blocks.kv_cache import Cache, CrossCache
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.mask import EVERYTHING, Mask
from tsumugu.blocks.positions import Rotation


class Stack(nn.Module):
    """States `[batch, time, dim]` through all layers and the last norm, if there is one; `dropout` on what it gives."""

    def __init__(self, layers: Iterable[Layer], *, norm: nn.Module | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask | Sequence[Mask] = EVERYTHING,
        rotation: Rotation | Sequence[Rotation] | None = None,
        cache: Cache | None = None,
        context: Tensor | CrossCache | None = None,
        context_mask: Mask = EVERYTHING,
        keep: list[Tensor] | None = None,
        first: bool = False,
    ) -> Tensor:
        """What the last layer gives.

        Args:
            x: what enters the first layer.
            mask: which keys each query sees, in all layers or, as a sequence, in each.
            rotation: turns queries and keys by their positions, in all layers or, as a sequence, in each.
            cache: keys and values of earlier steps.
            context: what cross-attention asks, `[batch, keys, dim]`, or what `read` made of it.
            context_mask: which of its keys each query sees.
            keep: collects what enters each layer, and the result.
            first: the last layer computes the first token's state alone, `[batch, 1, dim]`; others only need what it
                asks them. For encoders without rotation.
        """
        time = x.shape[1]
        for index, layer in enumerate(self.layers):
            if keep is not None:
                keep.append(x)
            seen = mask if isinstance(mask, Mask) else mask[index]
            among = None
            if first and index == len(self.layers) - 1:
                x, among, seen = x[:, :1].contiguous(), x, seen.first()
            x = layer(
                x,
                mask=seen,
                rotation=rotation if rotation is None or isinstance(rotation, Rotation) else rotation[index],
                cache=None if cache is None else cache.layer(index),
                context=context.layer(index) if isinstance(context, CrossCache) else context,
                context_mask=context_mask,
                among=among,
            )
        if cache is not None:
            cache.advance(time)
        if self.norm is not None:
            x = self.norm(x)
        x = self.dropout(x)
        if keep is not None:
            keep.append(x)
        return x

    def read(self, context: Tensor) -> CrossCache:
        """The keys and values that every layer's cross-attention asks of `context` `[batch, keys, dim]`."""
        layers = [each.cross_attention for each in self.layers if isinstance(each, Layer)]
        return CrossCache([each.keys_values(context) for each in layers if each is not None])
