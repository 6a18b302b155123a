"""Masks: which keys each query may see. Variation is data here, so that there is one `Attention` and no second one.

A `Mask` is built once for a forward pass and handed to every layer. Where a kernel can do the work itself (square
causal attention) no tensor is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """What attention may look at.

    Attributes:
        allowed: bool, broadcastable to `[batch, heads, queries, keys]`; True where a query sees a key. None: all.
        causal: the square lower triangle, left to the kernel; only together with `allowed` None and `bias` None.
        bias: added to the scores before the softmax, broadcastable to `[batch, heads, queries, keys]`.
    """

    allowed: Tensor | None = None
    causal: bool = False
    bias: Tensor | None = None

    @property
    def hides_nothing(self) -> bool:
        return self.allowed is None and not self.causal and self.bias is None

    def __and__(self, other: Mask) -> Mask:
        """What both allow; biases add up."""
        if other.hides_nothing:
            return self
        if self.hides_nothing:
            return other
        if self.causal and other.causal:
            return self
        tables = [table for table in (self._table(other), other._table(self)) if table is not None]
        biases = [each.bias for each in (self, other) if each.bias is not None]
        return Mask(
            allowed=tables[0] & tables[1] if len(tables) == 2 else tables[0] if tables else None,
            bias=biases[0] + biases[1] if len(biases) == 2 else biases[0] if biases else None,
        )

    def with_bias(self, bias: Tensor) -> Mask:
        """The same mask with `bias` added to the scores."""
        if self.causal:
            return Mask(allowed=_square(bias), bias=bias)
        return replace(self, bias=bias if self.bias is None else self.bias + bias)

    def scores(self, dtype: torch.dtype) -> Tensor | None:
        """One tensor for `scaled_dot_product_attention`: the bool table, or the bias with -inf where hidden."""
        if self.bias is None:
            return self.allowed
        bias = self.bias.to(dtype)
        return bias if self.allowed is None else bias.masked_fill(~self.allowed, float("-inf"))

    def first(self) -> Mask:
        """What the first query sees. Not of a causal mask: that one sees itself alone."""
        allowed, bias = (None if each is None else each[..., :1, :] for each in (self.allowed, self.bias))
        return Mask(allowed=allowed, bias=bias)

    def _table(self, peer: Mask) -> Tensor | None:
        """`allowed`, with the square triangle written out where it must be joined with `peer`."""
        if not self.causal:
            return self.allowed
        shape = peer.allowed if peer.allowed is not None else peer.bias
        assert shape is not None, "a causal mask is joined with one that holds a tensor"
        return _square(shape)


EVERYTHING = Mask()


def causal_mask(
    queries: int,
    keys: int | None = None,
    *,
    offset: int | Tensor = 0,
    window: int | None = None,
    prefix: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Mask:
    """Each query sees itself and what came before it.

    Args:
        queries: number of queries.
        keys: number of keys; as many as queries when left out.
        offset: position of the first query among the keys; an int, or one for each row, `[batch]`.
        window: when given, a query sees only the last `window` keys, itself included.
        prefix: `[batch, time]`, non-zero where a token is of a prefix: these see one another in both directions, as far
            as a window reaches. Only where queries are the keys.
        device: where the table is made.
    """
    keys = queries if keys is None else keys
    if window is not None and window >= keys:
        window = None
    if isinstance(offset, int) and window is None and prefix is None:
        if offset == 0 and queries == keys:
            return Mask(causal=True) if queries > 1 else EVERYTHING
        if queries == 1 and offset == keys - 1:
            return EVERYTHING
    allowed = _lower_triangle(queries, keys, offset, device)
    if prefix is not None:
        of_prefix = prefix.bool()
        both = of_prefix[:, None, :, None] & of_prefix[:, None, None, :]
        if window is not None:
            both = both & _lower_triangle(queries, keys, offset + window - 1, device)
        allowed = allowed | both
    if window is not None:
        allowed = allowed & ~_lower_triangle(queries, keys, offset - window, device)
    return Mask(allowed=allowed)


def padding_mask(real: Tensor) -> Mask:
    """Hide padding. `real`: `[batch, keys]`, non-zero where a token is real. Costs nothing when all are.

    While a graph is traced nobody knows, and the mask is there.
    """
    real = real.bool()
    return (
        EVERYTHING if not torch.compiler.is_compiling() and bool(real.all()) else Mask(allowed=real[:, None, None, :])
    )


def document_mask(documents: Tensor) -> Mask:
    """Keep packed documents apart. `documents`: `[batch, time]`, the number of the document each token is from."""
    return Mask(allowed=(documents[:, :, None] == documents[:, None, :])[:, None])


def window_mask(queries: int, window: int, *, device: torch.device | str | None = None) -> Mask:
    """A band: each query sees the keys at most `window` away on either side."""
    where = torch.arange(queries, device=device)
    return Mask(allowed=((where[:, None] - where[None, :]).abs() <= window)[None, None])


def _square(like: Tensor) -> Tensor:
    """The causal triangle for scores that `like` broadcasts to; one of its last two axes may be 1."""
    side = max(like.shape[-2:])
    return _lower_triangle(side, side, 0, like.device)


def _lower_triangle(queries: int, keys: int, offset: int | Tensor, device: torch.device | str | None) -> Tensor:
    """bool `[batch|1, 1, queries, keys]`: key position <= query position + offset."""
    if isinstance(offset, Tensor):
        device = offset.device
        offset = offset[:, None, None, None]
    query = torch.arange(queries, device=device)[None, None, :, None] + offset
    return torch.arange(keys, device=device)[None, None, None, :] <= query
