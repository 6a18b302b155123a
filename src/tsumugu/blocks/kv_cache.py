"""The keys and values of tokens already read, in buffers that are allocated once.

Rows of a batch may have different lengths: a row's next key goes to that row's own end, so no row is ever padded on the
left, and a batch computes what its rows would compute alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tsumugu.core.errors import InputError

KeysValues = tuple[Tensor, Tensor]
"""Keys and values that are there already, `[batch, kv_heads, keys, head_dim]` each."""


class CacheLayer(Protocol):
    """One layer's part of a cache."""

    def update(self, keys: Tensor, values: Tensor) -> KeysValues:
        """New keys and values `[batch, kv_heads, time, head_dim]` -> all that queries may look at."""
        ...


class Cache(Protocol):
    """What layers keep of tokens that stand before those that are read."""

    def layer(self, index: int) -> CacheLayer: ...

    def advance(self, tokens: int) -> None: ...


class KVCache:
    """Preallocated keys and values, `[layers, batch, kv_heads, capacity, head_dim]` each.

    Attributes:
        lengths: `[batch]`, int64: how many positions of each row are filled.
        length: the same as one int while all rows are equally long, else None.
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_layers, batch, num_kv_heads, capacity, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.length: int | None = 0
        self._rows = torch.arange(batch, device=device)

    @property
    def offset(self) -> int | Tensor:
        """Where the next token goes: one int, or `[batch]` when rows differ."""
        return self.lengths if self.length is None else self.length

    @property
    def filled(self) -> int:
        """The length of the longest row."""
        return int(self.lengths.max()) if self.length is None else self.length

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self, index)

    def advance(self, tokens: int) -> None:
        """Count `tokens` more positions as filled in every row; called once all layers have written."""
        self.lengths += tokens
        if self.length is not None:
            self.length += tokens

    def set_lengths(self, lengths: Tensor) -> None:
        """Forget what lies past `lengths` `[batch]`, for example the padding of a batch of prompts."""
        self.lengths.copy_(lengths)
        shortest, longest = int(lengths.min()), int(lengths.max())
        self.length = shortest if shortest == longest else None

    def branched(self, rows: int, capacity: int) -> KVCache:
        """A cache of `rows` rows with room for `capacity` tokens, each of which begins with what this one row holds."""
        layers, batch, kv_heads, _, head_dim = self.keys.shape
        if batch != 1:
            raise InputError(f"a cache of {batch} rows has no one beginning", where="branched")
        filled = self.filled
        made = KVCache(
            layers,
            rows,
            kv_heads,
            max(capacity, filled),
            head_dim,
            dtype=self.keys.dtype,
            device=self.keys.device,
        )
        made.keys[:, :, :, :filled] = self.keys[:, :, :, :filled]
        made.values[:, :, :, :filled] = self.values[:, :, :, :filled]
        made.set_lengths(torch.full_like(made.lengths, filled))
        return made

    def widened(self, capacity: int) -> KVCache:
        """The same with room for `capacity` tokens in each row."""
        layers, batch, kv_heads, old, head_dim = self.keys.shape
        made = KVCache(layers, batch, kv_heads, capacity, head_dim, dtype=self.keys.dtype, device=self.keys.device)
        made.keys[:, :, :, :old], made.values[:, :, :, :old] = self.keys, self.values
        made.set_lengths(self.lengths)
        return made

    def select(self, rows: Tensor) -> None:
        """Keep `rows` `[new_batch]` in that order; rows may repeat (beams) or be left out (finished texts)."""
        if len(rows) == len(self._rows) and bool((rows == self._rows).all()):
            return
        lengths, filled = self.lengths[rows], self.filled
        if len(rows) == len(self._rows):
            # As many rows as before: copy the filled part of those that change, into the buffers that are there.
            changed = (rows != self._rows).nonzero()[:, 0]
            self.keys[:, changed, :, :filled] = self.keys[:, rows[changed], :, :filled]
            self.values[:, changed, :, :filled] = self.values[:, rows[changed], :, :filled]
        else:
            self.keys, self.values = self.keys[:, rows], self.values[:, rows]
            self.lengths = torch.zeros_like(lengths)
            self._rows = torch.arange(len(rows), device=rows.device)
        self.set_lengths(lengths)


class Beginning:
    """Keys and values that stand before every text of a batch, with their gradients: they are read, and none is added.

    Args:
        layers: for each layer a pair, `[1, kv_heads, keys, head_dim]` each.
    """

    def __init__(self, layers: Sequence[KeysValues]) -> None:
        self.layers = layers
        self.offset = self.filled = layers[0][0].shape[2] if layers else 0

    def layer(self, index: int) -> BeginningLayer:
        return BeginningLayer(*self.layers[index])

    def advance(self, tokens: int) -> None:
        """Nothing is counted."""


class BeginningLayer:
    """One layer's part of a `Beginning`."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor) -> KeysValues:
        """All keys and values, the beginning's first."""
        rows = keys.shape[0]
        before = self.keys.expand(rows, -1, -1, -1), self.values.expand(rows, -1, -1, -1)
        return torch.cat((before[0], keys), dim=2), torch.cat((before[1], values), dim=2)


class Recorder:
    """Keeps the keys and values of the tokens that are read, with their gradients, for a `Beginning`."""

    def __init__(self) -> None:
        self.layers: dict[int, KeysValues] = {}

    def layer(self, index: int) -> RecorderLayer:
        return RecorderLayer(self, index)

    def advance(self, tokens: int) -> None:
        """Nothing is counted."""


class RecorderLayer:
    """One layer's part of a `Recorder`."""

    def __init__(self, recorder: Recorder, index: int) -> None:
        self.recorder, self.index = recorder, index

    def update(self, keys: Tensor, values: Tensor) -> KeysValues:
        """The same keys and values."""
        self.recorder.layers[self.index] = keys, values
        return keys, values


class CrossCache:
    """Keys and values of a context that every step asks: computed once, then only read.

    Args:
        layers: for each layer a pair, `[batch, kv_heads, keys, head_dim]` each.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.layers = [(keys.contiguous(), values.contiguous()) for keys, values in layers]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        return self.layers[index]

    def select(self, rows: Tensor) -> None:
        """Keep `rows` `[new_batch]` in that order; rows may repeat or be left out."""
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]


class LayerCache:
    """One layer's part of a `KVCache`."""

    def __init__(self, cache: KVCache, index: int) -> None:
        self.cache, self.keys, self.values = cache, cache.keys[index], cache.values[index]

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values `[batch, kv_heads, time, head_dim]`; give all, `[..., filled + time, head_dim]`.

        Raises:
            InputError: there is no room left.
        """
        cache, time = self.cache, keys.shape[2]
        end = cache.filled + time
        if end > cache.capacity:
            raise InputError(f"{end} tokens do not fit a cache of {cache.capacity}", mend="make the cache larger")
        if cache.length is not None:
            self.keys[:, :, cache.length : end] = keys
            self.values[:, :, cache.length : end] = values
        else:
            where = cache.lengths[:, None] + torch.arange(time, device=keys.device)
            self.keys[cache._rows[:, None], :, where] = keys.transpose(1, 2)
            self.values[cache._rows[:, None], :, where] = values.transpose(1, 2)
        return self.keys[:, :, :end], self.values[:, :, :end]
