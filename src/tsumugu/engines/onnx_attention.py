"""Attention written into a graph: over the same text, over another that was read before, and what positions add."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.normalization import RMSNorm
from tsumugu.blocks.positions import RelativePositions, RotaryPositions
from tsumugu.engines.onnx_emitter import Emitter, unknown
from tsumugu.engines.onnx_graph import Value
from tsumugu.engines.onnx_linear import Heads, Part


def attention(e: Emitter, module: Attention, name: str, index: int, x: Value) -> tuple[Value, Value | None]:
    """One fused projection, attention over what was read before, and the output projection."""
    if type(module) is not Attention:
        raise unknown(module)
    rotary = e.rotary[index]
    turned = rotary is not None
    of_query = Heads(module.num_heads, module.head_dim, halves=turned)
    of_key = Heads(module.num_kv_heads, module.head_dim, halves=turned)
    of_value = Heads(module.num_kv_heads, module.head_dim)
    parts = (
        Part(f"{name}.query", module.query, rows=of_query),
        Part(f"{name}.key", module.key, rows=of_key),
        Part(f"{name}.value", module.value, rows=of_value),
    )
    packed = e.biased(*e.linear(x, *parts))
    inputs: tuple[Value | None, ...] = (packed, None, None)
    if module.query_norm is not None and module.key_norm is not None:
        sizes = np.array([each.count * each.padded for each in (of_query, of_key, of_value)])
        query, key, value = e.graph.split(
            "Split", packed, e.graph.constant(f"sizes{sizes.tolist()}", sizes), outputs=3, axis=-1
        )
        query = _head_norm(e, module.query_norm, f"{name}.query_norm", of_query, query)
        key = _head_norm(e, module.key_norm, f"{name}.key_norm", of_key, key)
        inputs = (query, key, value)
    past: tuple[Value | None, Value | None] = e.past[index] if e.past else (None, None)
    tables: tuple[Value | None, ...] = _turning(e, rotary, of_query) if rotary is not None else (None, None)
    window = e.windows[index]
    outputs = e.graph.split(
        "GroupQueryAttention",
        *inputs,
        *past,
        e.lengths,
        e.total,
        *tables,
        *((None, e.biases[index]) if e.biases else ()),
        outputs=3,
        domain="com.microsoft",
        num_heads=module.num_heads,
        kv_num_heads=module.num_kv_heads,
        scale=float(module.head_dim**-0.5 if module.scale is None else module.scale),
        causal=int(e.causal),
        do_rotary=int(turned),
        local_window_size=-1 if window is None else window,
    )
    if e.past:
        shape = ("batch", module.num_kv_heads, "capacity", of_value.padded)
        e.graph.output(f"present_key_{index}", outputs[1], np.float32, shape)
        e.graph.output(f"present_value_{index}", outputs[2], np.float32, shape)
    columns = Heads(module.num_heads, module.head_dim)
    return e.linear(outputs[0], Part(f"{name}.output", module.output, columns=columns))


def keys_values(e: Emitter, module: Attention, name: str, x: Value) -> tuple[Value, Value]:
    """What cross-attention asks of a text `[batch, time, dim]`, `[batch, heads, time, head_dim]` each."""
    if type(module) is not Attention or module.key_norm is not None:
        raise unknown(module)
    heads, dim = module.num_heads, module.head_dim
    apart = e.graph.constant(f"apart{heads}x{dim}", np.array([0, 0, heads, dim]))
    found = [
        e.graph.node(
            "Transpose",
            e.graph.node("Reshape", e.biased(*e.linear(x, Part(f"{name}.{part}", linear))), apart),
            perm=[0, 2, 1, 3],
        )
        for part, linear in (("key", module.key), ("value", module.value))
    ]
    return found[0], found[1]


def cross_attention(e: Emitter, module: Attention, name: str, index: int, x: Value) -> tuple[Value, Value | None]:
    """Attention over a context: rows that ask the same text stand side by side, so that it is there once."""
    context = e.context
    if context is None or type(module) is not Attention or module.query_norm is not None:
        raise unknown(module)
    width = module.num_heads * module.head_dim
    query = e.biased(*e.linear(x, Part(f"{name}.query", module.query)))
    rows = e.graph.node("Reshape", query, e.graph.constant(f"rows{width}", np.array([-1, width])))
    attended = e.graph.fused(
        "MultiHeadAttention",
        e.graph.node("Gather", rows, context.slots, axis=0),
        *context.keys_values[index],
        None,
        context.lengths,
        num_heads=module.num_heads,
        scale=float(module.head_dim**-0.5 if module.scale is None else module.scale),
        mask_filter_value=float(np.finfo(np.float32).min),
    )
    flat = e.graph.node("Reshape", attended, e.graph.constant(f"steps{width}", np.array([-1, 1, width])))
    back = e.graph.node("Gather", flat, context.places, axis=0)
    return e.linear(back, Part(f"{name}.output", module.output))


def relative_bias(e: Emitter, module: RelativePositions, name: str, distances: Value, reach: int) -> Value:
    """What is added to scores, `[1, heads, queries, keys]`.

    `distances` `[queries, keys]` are from query to key, cut off at `reach` on either side and counted from there, so
    that they begin at 0: as far as `max_distance`, where a bias does not change any more.
    """
    if type(module) is not RelativePositions:
        raise unknown(module)
    buckets = module.bucket(torch.arange(-reach, reach + 1)).numpy()
    table = e.linear.weights.read(f"{name}.embedding.weight").T[:, buckets]
    found = e.graph.node("Gather", e.graph.constant(f"{name}.by_distance", table), distances, axis=1)
    return e.graph.node("Unsqueeze", found, e.graph.constant("axis0", np.array([0])))


def _head_norm(e: Emitter, module: nn.Module, name: str, heads: Heads, x: Value) -> Value:
    """RMSNorm of each head by itself, `[batch, time, heads * width]`. Zeros in a filled head count in its mean."""
    if type(module) is not RMSNorm:
        raise unknown(module)
    share = heads.padded / heads.width
    weight = (e.linear.weights.read(f"{name}.weight") + np.float32(module.offset)) / share**0.5
    weight = Heads(1, heads.width, heads.halves).fill(weight.astype(np.float32))
    apart = e.graph.constant(f"apart{heads.padded}", np.array([0, 0, -1, heads.padded]))
    joined = e.graph.constant(f"joined{heads.count * heads.padded}", np.array([0, 0, heads.count * heads.padded]))
    normed = e.graph.node(
        "SimplifiedLayerNormalization",
        e.graph.node("Reshape", x, apart),
        e.graph.constant(f"{name}.weight", weight),
        epsilon=module.eps / share,
    )
    return e.graph.node("Reshape", normed, joined)


def _turning(e: Emitter, rotary: RotaryPositions, heads: Heads) -> tuple[Value, Value]:
    """Cosines and sines `[positions, padded / 2]` of a rotary embedding."""
    frequencies = rotary.frequencies(dtype=torch.float32, device=torch.device("cpu"))
    angles = torch.outer(torch.arange(e.longest).float(), frequencies)
    filled = torch.zeros(e.longest, heads.padded // 2)
    filled[:, : angles.shape[1]] = angles
    name = f"rotary({rotary.extra_repr()})"
    return (
        e.graph.constant(f"{name}.cos", filled.cos().numpy()),
        e.graph.constant(f"{name}.sin", filled.sin().numpy()),
    )
