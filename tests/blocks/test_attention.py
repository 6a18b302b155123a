"""Attention against loops: every way its heads may be shared, its scores scaled, masked, biased, turned and cached."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.blocks import loops
from torch.utils._python_dispatch import TorchDispatchMode

from tsumugu.blocks.attention import SHORT, Attention
from tsumugu.blocks.kv_cache import KVCache
from tsumugu.blocks.mask import EVERYTHING, Mask, causal_mask, document_mask, padding_mask, window_mask
from tsumugu.blocks.positions import RelativePositions, RotaryPositions

SHAPES: dict[str, dict[str, Any]] = {
    "multi-head": {"num_heads": 4},
    "one head": {"num_heads": 1},
    "grouped-query": {"num_heads": 4, "num_kv_heads": 2},
    "grouped-query, 6 heads on 3": {"num_heads": 6, "num_kv_heads": 3, "head_dim": 4},
    "multi-query": {"num_heads": 4, "num_kv_heads": 1},
    "narrow heads": {"num_heads": 4, "head_dim": 2},
    "wide heads": {"num_heads": 2, "head_dim": 12, "num_kv_heads": 1},
    "no bias": {"num_heads": 4, "bias": False},
    "no bias but on the output": {"num_heads": 4, "bias": False, "output_bias": True},
    "bias but on the output": {"num_heads": 4, "bias": True, "output_bias": False},
    "scale": {"num_heads": 4, "scale": 0.7},
    "scale, grouped": {"num_heads": 4, "num_kv_heads": 2, "scale": 1.3},
}
WIDTH, BATCH, TIME = 16, 2, 6
REAL = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 2], [3, 3, 3, 3, 4, 4]])

MASKS: dict[str, tuple[Mask, Any]] = {
    "everything": (EVERYTHING, lambda row, query, key: True),
    "causal": (causal_mask(TIME), lambda row, query, key: key <= query),
    "padding": (padding_mask(REAL), lambda row, query, key: bool(REAL[row, key])),
    "documents": (document_mask(DOCUMENTS), lambda row, query, key: bool(DOCUMENTS[row, query] == DOCUMENTS[row, key])),
    "band": (window_mask(TIME, 1), lambda row, query, key: abs(query - key) <= 1),
    "causal window": (causal_mask(TIME, window=3), lambda row, query, key: query - 3 < key <= query),
    "causal window of one": (causal_mask(TIME, window=1), lambda row, query, key: key == query),
    "causal window as long as the text": (causal_mask(TIME, window=TIME), lambda row, query, key: key <= query),
}
SAMPLE = ("multi-head", "grouped-query", "multi-query")


def built(options: dict[str, Any], **more: Any) -> tuple[Attention, dict[str, Any]]:
    """A random attention, and what a loop must know of it."""
    block = loops.randomised(Attention(WIDTH, **options, **more))
    facts = {"heads": block.num_heads, "kv_heads": block.num_kv_heads, "head_dim": block.head_dim, "scale": block.scale}
    return block, {"p": loops.parameters(block), **facts}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["everything", "causal"])
def test_shapes(shape: str, name: str) -> None:
    block, facts = built(SHAPES[shape])
    x = loops.states(BATCH, TIME, WIDTH)
    mask, sees = MASKS[name]
    assert loops.difference(block(x, mask=mask), loops.attention(x.numpy(), sees=sees, **facts)) <= loops.TOLERANCE


@pytest.mark.parametrize("shape", SAMPLE)
@pytest.mark.parametrize("name", MASKS)
def test_each_mask(shape: str, name: str) -> None:
    block, facts = built(SHAPES[shape])
    x = loops.states(BATCH, TIME, WIDTH)
    mask, sees = MASKS[name]
    assert loops.difference(block(x, mask=mask), loops.attention(x.numpy(), sees=sees, **facts)) <= loops.TOLERANCE


@pytest.mark.parametrize("shape", SAMPLE)
@pytest.mark.parametrize(
    "names",
    [
        ("causal", "padding"),
        ("padding", "causal"),
        ("causal", "documents"),
        ("documents", "causal", "padding"),
        ("causal window", "padding"),
        ("band", "padding"),
        ("causal", "band", "documents"),
        ("everything", "causal"),
    ],
    ids=" and ".join,
)
def test_joined_masks(shape: str, names: tuple[str, ...]) -> None:
    block, facts = built(SHAPES[shape])
    x = loops.states(BATCH, TIME, WIDTH)
    mask = EVERYTHING
    for name in names:
        mask = mask & MASKS[name][0]

    def sees(row: int, query: int, key: int) -> bool:
        return all(MASKS[name][1](row, query, key) for name in names)

    assert loops.difference(block(x, mask=mask), loops.attention(x.numpy(), sees=sees, **facts)) <= loops.TOLERANCE


@pytest.mark.parametrize("shape", SAMPLE)
@pytest.mark.parametrize("name", ["everything", "causal", "padding", "causal window"])
def test_relative_bias(shape: str, name: str) -> None:
    block, facts = built(SHAPES[shape])
    table = loops.randomised(RelativePositions(block.num_heads, buckets=8, max_distance=16), seed=3)(
        TIME, TIME
    ).detach()
    x = loops.states(BATCH, TIME, WIDTH)
    mask, sees = MASKS[name]
    wanted = loops.attention(x.numpy(), sees=sees, bias=lambda row, head, q, k: float(table[0, head, q, k]), **facts)
    assert loops.difference(block(x, mask=mask.with_bias(table)), wanted) <= loops.TOLERANCE


@pytest.mark.parametrize("shape", SAMPLE)
def test_bias_that_depends_on_the_key_only(shape: str) -> None:
    """ALiBi-like biases broadcast over the queries, also under a causal mask, and in a step of one query."""
    block, facts = built(SHAPES[shape])
    bias = loops.states(1, block.num_heads, 1, TIME, seed=4)
    x = loops.states(BATCH, TIME, WIDTH)
    wanted = loops.attention(
        x.numpy(),
        sees=lambda row, query, key: key <= query,
        bias=lambda row, head, q, k: float(bias[0, head, 0, k]),
        **facts,
    )
    assert loops.difference(block(x, mask=causal_mask(TIME).with_bias(bias)), wanted) <= loops.TOLERANCE
    assert loops.difference(block(x, mask=Mask(bias=bias) & causal_mask(TIME)), wanted) <= loops.TOLERANCE
    alone = block(x[:, -1:], mask=Mask(bias=bias), context=x)
    assert loops.difference(alone, wanted[:, -1:]) <= loops.TOLERANCE


@pytest.mark.parametrize("shape", SAMPLE)
def test_masks_without_all_four_axes(shape: str) -> None:
    """What broadcasts to `[batch, heads, queries, keys]` is enough, for many queries and for one."""
    block, facts = built(SHAPES[shape])
    x = loops.states(BATCH, TIME, WIDTH)
    table = torch.ones(TIME, TIME, dtype=torch.bool).tril()
    wanted = loops.attention(x.numpy(), sees=MASKS["causal"][1], **facts)
    assert loops.difference(block(x, mask=Mask(allowed=table)), wanted) <= loops.TOLERANCE
    first = block(x[:, 3:4], mask=Mask(allowed=table[3:4]), context=x)
    assert loops.difference(first, wanted[:, 3:4]) <= loops.TOLERANCE


@pytest.mark.parametrize("shape", ["multi-head", "grouped-query", "multi-query", "wide heads", "scale"])
@pytest.mark.parametrize("keys", [1, 3, 9])
def test_cross_attention(shape: str, keys: int) -> None:
    block, facts = built(SHAPES[shape], context_size=10)
    x, context = loops.states(BATCH, TIME, WIDTH), loops.states(BATCH, keys, 10, seed=5)
    real = torch.ones(BATCH, keys, dtype=torch.long)
    real[0, keys // 2 + 1 :] = 0
    wanted = loops.attention(
        x.numpy(), context=context.numpy(), sees=lambda row, query, key: bool(real[row, key]), **facts
    )
    assert loops.difference(block(x, context=context, mask=padding_mask(real)), wanted) <= loops.TOLERANCE
    kept = block.keys_values(context)
    assert kept[0].shape == (BATCH, block.num_kv_heads, keys, block.head_dim)
    for step in range(TIME):
        found = block(x[:, step : step + 1], context=kept, mask=padding_mask(real))
        assert loops.difference(found, wanted[:, step : step + 1]) <= loops.TOLERANCE


@pytest.mark.parametrize("shape", ["multi-head", "grouped-query", "wide heads"])
def test_rotation(shape: str) -> None:
    block, facts = built(SHAPES[shape])
    x = loops.states(BATCH, TIME, WIDTH)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [7, 9, 2, 0, 30, 31]])
    rotation = RotaryPositions(block.head_dim, theta=100.0)(positions, torch.float64)
    frequencies = [100.0 ** (-2 * i / block.head_dim) for i in range(block.head_dim // 2)]
    wanted = loops.attention(
        x.numpy(), sees=MASKS["causal"][1], frequencies=frequencies, positions=positions.numpy(), **facts
    )
    assert loops.difference(block(x, mask=MASKS["causal"][0], rotation=rotation), wanted) <= loops.TOLERANCE


@pytest.mark.parametrize("shape", ["multi-head", "grouped-query", "multi-query", "wide heads"])
@pytest.mark.parametrize("pieces", [(6,), (1,) * 6, (3, 1, 1, 1), (2, 4), (1, 5), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("window", [None, 2])
def test_cache_in_pieces(shape: str, pieces: tuple[int, ...], window: int | None) -> None:
    block, facts = built(SHAPES[shape])
    x = loops.states(BATCH, TIME, WIDTH)
    wanted = loops.attention(
        x.numpy(),
        sees=lambda row, query, key: key <= query and (window is None or key > query - window),
        frequencies=[50.0 ** (-2 * i / block.head_dim) for i in range(block.head_dim // 2)],
        **facts,
    )
    rotary = RotaryPositions(block.head_dim, theta=50.0)
    cache = KVCache(1, BATCH, block.num_kv_heads, TIME, block.head_dim, dtype=torch.float64)
    parts, start = [], 0
    for piece in pieces:
        end = start + piece
        mask = causal_mask(piece, end, offset=cache.offset, window=window)
        rotation = rotary(torch.arange(start, end)[None], torch.float64)
        parts.append(block(x[:, start:end], mask=mask, rotation=rotation, cache=cache.layer(0)))
        cache.advance(piece)
        start = end
    assert loops.difference(torch.cat(parts, 1), wanted) <= loops.TOLERANCE


@pytest.mark.parametrize("shape", ["multi-head", "grouped-query", "multi-query"])
@pytest.mark.parametrize("piece", [1, 2])
@pytest.mark.parametrize("window", [None, 3])
def test_cache_with_rows_of_different_lengths(shape: str, piece: int, window: int | None) -> None:
    """Prompts padded on the right, then pieces that each go to their own row's end: as if every row were alone."""
    block, facts = built(SHAPES[shape])
    lengths = torch.tensor([2, 4, 3])
    x = loops.states(3, 4 + 2 * piece, WIDTH)
    cache = KVCache(1, 3, block.num_kv_heads, x.shape[1], block.head_dim, dtype=torch.float64)
    prompts = block(x[:, :4], mask=causal_mask(4, window=window), cache=cache.layer(0))
    cache.advance(4)
    cache.set_lengths(lengths)
    steps = []
    for step in range(2):
        new = torch.stack([x[row, length + step * piece :][:piece] for row, length in enumerate(lengths)])
        mask = causal_mask(piece, cache.filled + piece, offset=cache.offset, window=window)
        steps.append(block(new, mask=mask, cache=cache.layer(0)))
        cache.advance(piece)
    for row, length in enumerate(lengths.tolist()):
        wanted = loops.attention(
            x[row : row + 1, : length + 2 * piece].numpy(),
            sees=lambda row, query, key: key <= query and (window is None or key > query - window),
            **facts,
        )
        ours = torch.cat([prompts[row, :length], *(each[row] for each in steps)])
        assert loops.difference(ours[None], wanted) <= loops.TOLERANCE


@pytest.mark.parametrize("shape", SAMPLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_query_that_sees_nothing_spoils_no_other(shape: str, dtype: torch.dtype) -> None:
    block, facts = built(SHAPES[shape])
    x = loops.states(BATCH, TIME, WIDTH)
    allowed = torch.ones(BATCH, 1, TIME, TIME, dtype=torch.bool).tril()
    allowed[0, :, 2] = False  # one query
    allowed[1] = False  # a whole text
    bias = loops.states(1, block.num_heads, TIME, TIME, seed=6)
    wanted = loops.attention(x.numpy(), sees=lambda row, query, key: row == 0 and query != 2 and key <= query, **facts)
    block = block.to(dtype)
    for mask in (Mask(allowed=allowed), Mask(allowed=allowed, bias=0.0 * bias)):
        found = block(x.to(dtype), mask=mask)
        visible = np.array([0, 1, 3, 4, 5])
        limit = loops.TOLERANCE if dtype == torch.float64 else 1e-5
        assert loops.difference(found[0, visible].double(), wanted[0, visible]) <= limit
        assert not found.isnan().any()


def test_gradients_stay_finite_beside_a_text_of_padding() -> None:
    block, _ = built(SHAPES["grouped-query"])
    x = loops.states(2, 4, WIDTH).requires_grad_()
    real = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]])
    block(x, mask=padding_mask(real))[0].square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in block.parameters())


def test_dropout_acts_while_training_only() -> None:
    block, _ = built({"num_heads": 4, "dropout": 0.5})
    x = loops.states(1, 4, WIDTH)
    assert torch.equal(block(x), block(x))
    block.train()
    assert not torch.equal(block(x), block(x))


class Attended(TorchDispatchMode):
    """Notes what type of numbers attention is computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(func):
            self.types.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 weights"])
@pytest.mark.parametrize("name", ["everything", "causal", "padding", "biased"])
def test_short_texts_are_learnt_in_float32_on_a_cpu(name: str, autocast: bool) -> None:
    block, _ = built(SHAPES["multi-head"])
    block = block.float()
    x = loops.states(BATCH, TIME, WIDTH).float()
    mask = EVERYTHING.with_bias(loops.states(1, 4, TIME, TIME).float()) if name == "biased" else MASKS[name][0]
    (wanted,) = torch.autograd.grad(block(x.requires_grad_(), mask=mask).square().sum(), x)
    if not autocast:
        block, x = block.bfloat16(), x.detach().bfloat16().requires_grad_()
    with Attended() as attended, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = block(x, mask=mask)
    (gradient,) = torch.autograd.grad(found.float().square().sum(), x)
    assert found.dtype == torch.bfloat16
    assert attended.types == [torch.float32]
    assert float((gradient.float() - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize(("keys", "learns"), [(SHORT + 1, True), (TIME, False)])
def test_long_texts_and_those_that_are_read_stay_in_bfloat16(keys: int, learns: bool) -> None:
    block, _ = built(SHAPES["multi-head"])
    x = loops.states(1, keys, WIDTH).float()
    block = block.float()
    with Attended() as attended, torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(learns):
        assert block(x).dtype == torch.bfloat16
    assert attended.types == [torch.bfloat16]
