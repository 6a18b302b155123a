"""The key-value cache: rows of one or of many lengths, chosen and repeated, never allocated anew for a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsumugu.blocks.kv_cache import KVCache
from tsumugu.core.errors import InputError

LAYERS, HEADS, WIDTH = 2, 3, 4


def made(batch: int, capacity: int) -> KVCache:
    return KVCache(LAYERS, batch, HEADS, capacity, WIDTH, dtype=torch.float64)


def written(cache: KVCache, batch: int, time: int, seed: int) -> torch.Tensor:
    """Write random keys (and their negatives as values) to every layer; `[layers, batch, heads, time, width]`."""
    new = torch.randn(LAYERS, batch, HEADS, time, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
    for layer in range(LAYERS):
        cache.layer(layer).update(new[layer], -new[layer])
    cache.advance(time)
    return new


def test_advance_and_what_update_gives() -> None:
    cache = made(2, 7)
    parts = [written(cache, 2, time, seed) for seed, time in enumerate((3, 1))]
    assert (cache.length, cache.offset, cache.filled) == (4, 4, 4)
    new = torch.ones(2, HEADS, 2, WIDTH, dtype=torch.float64)
    keys, values = cache.layer(1).update(new, -new)
    assert torch.equal(keys, torch.cat((parts[0][1], parts[1][1], new), 2))
    assert torch.equal(values, -keys)
    assert cache.filled == 4, "nothing counts as filled before advance"


def test_a_step_allocates_nothing() -> None:
    cache = made(2, 7)
    before = cache.keys.data_ptr(), cache.values.data_ptr()
    written(cache, 2, 3, 0)
    cache.set_lengths(torch.tensor([1, 3]))
    written(cache, 2, 1, 1)
    cache.select(torch.tensor([1, 0]))
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == before


def test_no_room_left() -> None:
    cache = made(2, 4)
    written(cache, 2, 3, 0)
    with pytest.raises(InputError, match="5 tokens do not fit a cache of 4"):
        written(cache, 2, 2, 1)
    cache.set_lengths(torch.tensor([1, 3]))
    with pytest.raises(InputError, match="5 tokens do not fit a cache of 4"):
        written(cache, 2, 2, 1)
    written(cache, 2, 1, 2)
    assert cache.lengths.tolist() == [2, 4]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_behaves_like_lists(data: st.DataObject) -> None:
    """Any sequence of steps, cuts and choices of rows leaves what the same on plain lists of tensors leaves."""
    batch = data.draw(st.integers(1, 3))
    cache, capacity = made(batch, 12), 12
    rows: list[list[torch.Tensor]] = [[] for _ in range(batch)]
    for seed in range(data.draw(st.integers(1, 6))):
        action = data.draw(st.sampled_from(["write", "write", "select", "cut"]))
        room = capacity - max(map(len, rows))
        if action == "write" and room:
            new = written(cache, len(rows), data.draw(st.integers(1, min(3, room))), seed)
            for row, kept in enumerate(rows):
                kept.extend(new[:, row].unbind(2))
        elif action == "select":
            chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
            cache.select(torch.tensor(chosen))
            rows = [list(rows[each]) for each in chosen]
        else:
            lengths = [data.draw(st.integers(0, len(kept))) for kept in rows]
            cache.set_lengths(torch.tensor(lengths))
            rows = [kept[:length] for kept, length in zip(rows, lengths, strict=True)]
    lengths = [len(kept) for kept in rows]
    assert cache.lengths.tolist() == lengths
    assert cache.length == (lengths[0] if len(set(lengths)) == 1 else None)
    assert cache.filled == max(lengths)
    for row, kept in enumerate(rows):
        for position, each in enumerate(kept):
            assert torch.equal(cache.keys[:, row, :, position], each)
            assert torch.equal(cache.values[:, row, :, position], -each)
