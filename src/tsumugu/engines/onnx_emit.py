"""Each block of the house written into a graph: one function a block, found by its class.

There is no second definition of a model here: what is walked is the very module that torch would run, built without
weights. A family of the same blocks therefore compiles without new code; a block that has no function here is refused
by name.

Residual paths are kept as sums that are not computed yet (`Stream`), so that an addition, a bias and the norm behind
them become one operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from tsumugu.blocks.embeddings import Embedding, Embeddings
from tsumugu.blocks.feedforward import ACTIVATIONS, FeedForward, GatedFeedForward
from tsumugu.blocks.heads import (
    ClassificationHead,
    FirstTokenHead,
    LanguageModelHead,
    MaskedLanguageModelHead,
    Pooler,
    SpanHead,
)
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.normalization import LayerNorm, RMSNorm
from tsumugu.blocks.positions import LearnedPositions
from tsumugu.blocks.stack import Stack
from tsumugu.engines.onnx_attention import attention, cross_attention
from tsumugu.engines.onnx_emitter import Emitter, unknown
from tsumugu.engines.onnx_graph import Value
from tsumugu.engines.onnx_linear import Part

TABLES = (nn.Embedding, Embedding, LearnedPositions)
"""Modules that are looked up by whole numbers and do nothing else."""


@dataclass(frozen=True)
class Stream:
    """A residual path: `base`, plus `delta` and `bias` that have not been added yet."""

    base: Value
    delta: Value | None = None
    bias: Value | None = None


def embed(
    e: Emitter, module: Embeddings, name: str, ids: Value, positions: Value | None, segments: Value | None, shared: bool
) -> Stream:
    """Token ids `[batch, time]` -> states; `shared` where the head has the same matrix."""
    x = e.linear.look_up(ids, f"{name}.token", module.token, shared=shared)
    if module.scale != 1.0:
        x = e.graph.node("Mul", x, e.graph.constant(f"{name}.scale", np.array(module.scale, np.float32)))
    for part, given in ((module.segment, segments), (module.position, positions)):
        if part is not None:
            table = "segment" if part is module.segment else "position"
            if type(part) not in TABLES:
                raise unknown(part)
            x = e.graph.node("Add", x, e.graph.node("Gather", e.vector(f"{name}.{table}.weight"), given, axis=0))
    return Stream(x if module.norm is None else norm(e, module.norm, f"{name}.norm", Stream(x))[0])


def stack(e: Emitter, module: Stack, name: str, stream: Stream) -> Value:
    """States through all layers and the last norm."""
    for index, layer in enumerate(module.layers):
        if type(layer) is not Layer:
            raise unknown(layer)
        stream = _layer(e, layer, f"{name}.layers.{index}", index, stream)
    if module.norm is None:
        return _settled(e, stream)
    return norm(e, module.norm, f"{name}.norm", stream)[0]


def _layer(e: Emitter, layer: Layer, name: str, index: int, stream: Stream) -> Stream:
    parts: list[tuple[str, Callable[[Value], tuple[Value, Value | None]]]] = [
        ("attention", lambda x: attention(e, layer.attention, f"{name}.attention", index, x)),
        ("feed_forward", lambda x: _feed_forward(e, layer.feed_forward, f"{name}.feed_forward", x)),
    ]
    if (cross := layer.cross_attention) is not None:
        parts.insert(1, ("cross", lambda x: cross_attention(e, cross, f"{name}.cross_attention", index, x)))
    for part, work in parts:
        before, place = getattr(layer, f"{part}_norm"), f"{name}.{part}_norm"
        after = getattr(layer, f"{part}_output_norm", None)
        if layer.norm_first:
            normed, base = norm(e, before, place, stream)
        else:
            normed = base = _settled(e, stream)
        delta, bias = work(normed)
        if after is not None:
            delta, bias = norm(e, after, f"{name}.{part}_output_norm", Stream(e.biased(delta, bias)))[0], None
        stream = Stream(base, delta, bias)
        if not layer.norm_first:
            stream = Stream(norm(e, before, place, stream)[0])
    return stream


def norm(e: Emitter, module: nn.Module, name: str, stream: Stream) -> tuple[Value, Value]:
    """What a stream comes to, normalised, and as it is."""
    if type(module) is RMSNorm:
        weight = e.linear.weights.read(f"{name}.weight") + np.float32(module.offset)
        scale = e.graph.constant(f"{name}.weight", weight)
        if stream.delta is None:
            return e.graph.node("SimplifiedLayerNormalization", stream.base, scale, epsilon=module.eps), stream.base
        return _skipping(e, "SkipSimplifiedLayerNormalization", module.eps, stream, scale)
    if type(module) is LayerNorm:
        scale, shift = e.vector(f"{name}.weight"), e.vector(f"{name}.bias")
        if stream.delta is None:
            normed = e.graph.node("LayerNormalization", stream.base, scale, shift, epsilon=module.eps)
            return normed, stream.base
        return _skipping(e, "SkipLayerNormalization", module.eps, stream, scale, shift)
    raise unknown(module)


def _skipping(e: Emitter, kind: str, eps: float, stream: Stream, *weights: Value) -> tuple[Value, Value]:
    """A norm that adds up its stream first."""
    inputs = (stream.base, stream.delta, *weights, stream.bias)
    normed, *_, base = e.graph.split(kind, *inputs, outputs=4, domain="com.microsoft", epsilon=eps)
    return normed, base


def _settled(e: Emitter, stream: Stream) -> Value:
    if stream.delta is None:
        return stream.base
    return e.graph.node("Add", stream.base, e.biased(stream.delta, stream.bias))


def _feed_forward(e: Emitter, module: nn.Module, name: str, x: Value) -> tuple[Value, Value | None]:
    if type(module) is FeedForward:
        up, bias = e.linear(x, Part(f"{name}.up", module.up))
        inner = activated(e, module.activation, up, bias)
    elif type(module) is GatedFeedForward:
        gate, bias = e.linear(x, Part(f"{name}.gate", module.gate))
        gate = activated(e, module.activation, gate, bias)
        inner = e.graph.node("Mul", gate, e.biased(*e.linear(x, Part(f"{name}.up", module.up))))
    else:
        raise unknown(module)
    return e.linear(inner, Part(f"{name}.down", module.down), grouped=True)


def activated(e: Emitter, function: Any, x: Value, bias: Value | None) -> Value:
    """An activation, of what a linear map gave and its bias."""
    name = next((name for name, known in ACTIVATIONS.items() if known is function), None)
    if name == "gelu" and bias is not None:
        return e.graph.fused("BiasGelu", x, bias)
    if name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        return e.graph.fused("FastGelu", x, bias)
    x = e.biased(x, bias)
    match name:
        case "gelu":
            return e.graph.fused("Gelu", x)
        case "silu" | "swish":
            return e.graph.fused("QuickGelu", x, alpha=1.0)
        case "quick_gelu":
            return e.graph.fused("QuickGelu", x, alpha=1.702)
        case "relu2":
            x = e.graph.node("Relu", x)
            return e.graph.node("Mul", x, x)
        case "relu" | "sigmoid" | "tanh":
            return e.graph.node(name.capitalize(), x)
    raise unknown(function)


def head(e: Emitter, module: nn.Module, name: str, x: Value, *, tied: str | None) -> Value:
    """What a head makes of states `[batch, time, dim]`; `tied` names the embedding whose matrix it shares."""

    def first() -> Value:
        return e.graph.node("Gather", x, e.graph.constant("first", np.array(0)), axis=1)

    def over(part: str, linear: nn.Linear, given: Value, **options: Any) -> Value:
        return e.biased(*e.linear(given, Part(f"{name}.{part}", linear), **options))

    match module:
        case LanguageModelHead():
            logits = e.biased(*e.linear(x, Part(tied or name, module), head=True))
            if module.softcap is None:
                return logits
            limit = e.graph.constant("softcap", np.array(module.softcap, np.float32))
            return e.graph.node("Mul", e.graph.node("Tanh", e.graph.node("Div", logits, limit)), limit)
        case MaskedLanguageModelHead():
            inner = activated(e, module.activation, *e.linear(x, Part(f"{name}.dense", module.dense)))
            inner = norm(e, module.norm, f"{name}.norm", Stream(inner))[0]
            logits, _ = e.linear(inner, Part(tied or f"{name}.decoder", _without_bias(module.decoder)), head=True)
            return e.biased(logits, e.vector(f"{name}.decoder.bias"))
        case Pooler():
            return e.graph.node("Tanh", over("dense", module.dense, first()))
        case FirstTokenHead():
            return over("classifier", module.classifier, e.graph.node("Tanh", over("dense", module.dense, first())))
        case ClassificationHead():
            return over("classifier", module.classifier, x)
        case SpanHead():
            return over("spans", module.spans, x)
    raise unknown(module)


def _without_bias(module: nn.Linear) -> nn.Linear:
    return nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
