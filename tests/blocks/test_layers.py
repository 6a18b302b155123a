"""Layers and stacks against loops: norms first and last, cross-attention, what is kept, caches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.blocks import loops
from torch import nn

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.feedforward import FeedForward, GatedFeedForward
from tsumugu.blocks.kv_cache import KVCache
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.mask import EVERYTHING, causal_mask, document_mask, padding_mask, window_mask
from tsumugu.blocks.normalization import LayerNorm, RMSNorm
from tsumugu.blocks.positions import RotaryPositions
from tsumugu.blocks.stack import Stack

WIDTH, HEADS, KV, DIM, EPS = 8, 4, 2, 2, 1e-5
KEYS_REAL = torch.tensor([[1, 1, 0], [1, 1, 1]])


def layer(*, norm_first: bool, gated: bool, cross: bool, norm: Any = LayerNorm) -> Layer:
    return Layer(
        attention=Attention(WIDTH, HEADS, num_kv_heads=KV),
        feed_forward=(GatedFeedForward if gated else FeedForward)(WIDTH, 12, activation="gelu", dropout=0.2),
        attention_norm=norm(WIDTH, eps=EPS),
        feed_forward_norm=norm(WIDTH, eps=EPS),
        norm_first=norm_first,
        dropout=0.2,
        cross_attention=Attention(WIDTH, HEADS, context_size=6) if cross else None,
        cross_norm=norm(WIDTH, eps=EPS) if cross else None,
    )


def looped(
    x: Any,
    p: dict[str, Any],
    block: Layer,
    context: Any = None,
    *,
    prefix: str = "",
    frequencies: Any = None,
    sees: Any = lambda row, query, key: key <= query,
) -> Any:
    """One layer, causal, as section 3.1 of the transformer's paper has it (post-norm) or with norms inside."""
    norm = loops.rms_norm if isinstance(block.attention_norm, RMSNorm) else loops.layer_norm
    forward = loops.gated_feed_forward if isinstance(block.feed_forward, GatedFeedForward) else loops.feed_forward
    parts: list[tuple[str, Any]] = [
        (
            "attention_norm",
            lambda x: loops.attention(
                x,
                p,
                heads=HEADS,
                kv_heads=KV,
                head_dim=DIM,
                sees=sees,
                prefix=f"{prefix}attention.",
                frequencies=frequencies,
            ),
        ),
        ("feed_forward_norm", lambda x: forward(x, p, "gelu", prefix=f"{prefix}feed_forward.")),
    ]
    if block.cross_attention is not None:
        cross = ("cross_norm", lambda x: loops.attention(
            x, p, heads=HEADS, kv_heads=HEADS, head_dim=DIM, context=context, prefix=f"{prefix}cross_attention.",
            sees=lambda row, query, key: bool(KEYS_REAL[row, key]),
        ))  # fmt: skip
        parts.insert(1, cross)
    for name, part in parts:
        name = f"{prefix}{name}"
        x = x + part(norm(x, p, name, EPS)) if block.norm_first else norm(x + part(x), p, name, EPS)
    return x


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("cross", [True, False], ids=["cross", "self"])
@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_layer(norm_first: bool, gated: bool, cross: bool, norm: type[nn.Module]) -> None:
    block = loops.randomised(layer(norm_first=norm_first, gated=gated, cross=cross, norm=norm))
    x, context = loops.states(2, 5, WIDTH), loops.states(2, 3, 6, seed=2)
    found = block(
        x,
        mask=causal_mask(5),
        context=context if cross else None,
        context_mask=padding_mask(KEYS_REAL),
    )
    assert loops.difference(found, looped(x.numpy(), loops.parameters(block), block, context.numpy())) <= 1e-10


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("last", [True, False], ids=["last norm", "no last norm"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_stack(norm_first: bool, last: bool, depth: int) -> None:
    layers = [layer(norm_first=norm_first, gated=False, cross=False) for _ in range(depth)]
    block = loops.randomised(Stack(layers, norm=LayerNorm(WIDTH, eps=EPS) if last else None))
    p = loops.parameters(block)
    x = loops.states(2, 5, WIDTH)
    rotary = RotaryPositions(DIM)
    kept: list[torch.Tensor] = []
    found = block(x, mask=causal_mask(5), rotation=rotary(torch.arange(5)[None], torch.float64), keep=kept)
    wanted = [x.numpy()]
    for i, each in enumerate(layers):
        wanted.append(looped(wanted[-1], p, each, prefix=f"layers.{i}.", frequencies=[1.0]))
    if last:
        wanted[-1] = loops.layer_norm(wanted[-1], p, "norm", EPS)
    assert len(kept) == depth + 1
    for ours, loop in zip(kept, wanted, strict=True):
        assert loops.difference(ours, loop) <= loops.TOLERANCE
    assert torch.equal(found, kept[-1])


def test_stack_with_a_cache_is_the_stack_without() -> None:
    block = loops.randomised(Stack([layer(norm_first=True, gated=True, cross=False) for _ in range(2)]))
    x = loops.states(2, 5, WIDTH)
    whole = block(x, mask=causal_mask(5))
    cache = KVCache(2, 2, KV, 5, DIM, dtype=torch.float64)
    parts = [
        block(x[:, start:end], mask=causal_mask(end - start, end, offset=start), cache=cache)
        for start, end in ((0, 3), (3, 4), (4, 5))
    ]
    assert cache.length == 5
    assert loops.difference(torch.cat(parts, 1), whole.detach().numpy()) <= loops.TOLERANCE


def test_a_mask_for_each_layer() -> None:
    layers = [layer(norm_first=True, gated=False, cross=False) for _ in range(3)]
    block = loops.randomised(Stack(layers))
    p, x = loops.parameters(block), loops.states(2, 5, WIDTH)
    ways = (
        (causal_mask(5), lambda row, query, key: key <= query),
        (window_mask(5, 1), lambda row, query, key: abs(query - key) <= 1),
        (EVERYTHING, lambda row, query, key: True),
    )
    wanted = x.numpy()
    for i, (each, (_, sees)) in enumerate(zip(layers, ways, strict=True)):
        wanted = looped(wanted, p, each, prefix=f"layers.{i}.", sees=sees)
    assert loops.difference(block(x, mask=[mask for mask, _ in ways]), wanted) <= loops.TOLERANCE


def test_a_context_that_is_read_once() -> None:
    """Its keys and values serve every step, also after rows changed places, were copied, or left."""
    block = loops.randomised(Stack([layer(norm_first=True, gated=True, cross=True) for _ in range(2)]))
    x, context = loops.states(2, 5, WIDTH), loops.states(2, 3, 6, seed=2)
    mask = padding_mask(KEYS_REAL)
    whole = block(x, mask=causal_mask(5), context=context, context_mask=mask)
    read = block.read(context)
    again = block(x, mask=causal_mask(5), context=read, context_mask=mask)
    assert loops.difference(again, whole.detach().numpy()) <= loops.TOLERANCE
    rows = torch.tensor([1, 0, 1])
    read.select(rows)
    found = block(x[rows], mask=causal_mask(5), context=read, context_mask=padding_mask(KEYS_REAL[rows]))
    assert loops.difference(found, whole[rows].detach().numpy()) <= loops.TOLERANCE


@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
def test_inner_dropout_acts_on_the_widened_states(kind: Any) -> None:
    block = loops.randomised(kind(WIDTH, 12, activation="relu", inner_dropout=1.0)).train()
    x = loops.states(1, 4, WIDTH)
    lost = torch.zeros(1, 4, WIDTH, dtype=torch.float64)
    bias = block.down.bias
    assert torch.equal(block(x), lost if bias is None else lost + bias)
    assert not torch.equal(block.eval()(x), lost)


def test_dropout_on_what_a_stack_gives() -> None:
    block = loops.randomised(Stack([], norm=LayerNorm(WIDTH), dropout=1.0))
    x = loops.states(1, 4, WIDTH)
    assert float(block.train()(x).detach().abs().max()) == 0.0
    assert float(block.eval()(x).detach().abs().max()) > 0.0


def test_dropout_reaches_every_part_while_training() -> None:
    block = loops.randomised(layer(norm_first=True, gated=False, cross=False)).train()
    x = loops.states(1, 4, WIDTH)
    assert not torch.equal(block(x), block(x))
    assert np.array_equal(block.eval()(x).detach(), block(x).detach())


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_first_state_alone_is_as_among_all(norm_first):
    torch.manual_seed(0)
    stack = Stack([layer(norm_first=norm_first, gated=False, cross=False) for _ in range(2)]).eval()
    x = torch.randn(3, 7, WIDTH)
    real = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5])
    documents = torch.tensor([[1] * 7, [1] * 3 + [2] * 4, [1, 1, 2, 2, 3, 3, 3]])
    bias = torch.randn(1, HEADS, 7, 7)
    for mask in (EVERYTHING, padding_mask(real), document_mask(documents), document_mask(documents).with_bias(bias)):
        whole, first = stack(x, mask=mask), stack(x, mask=mask, first=True)
        assert first.shape == (3, 1, WIDTH)
        assert torch.allclose(first, whole[:, :1], atol=1e-6)
