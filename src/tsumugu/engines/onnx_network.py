"""A whole network written into a graph: what goes in, the blocks in the order in which its family wires them, what comes out.

Decoders read tokens behind those they have read, with keys and values in buffers that are written in place; encoders
read whole texts, padded on the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tsumugu.core.errors import ConfigError
from tsumugu.engines.onnx_emit import Emitter, Stream, embed, head, stack
from tsumugu.engines.onnx_graph import Graph, Value
from tsumugu.engines.onnx_linear import HEAD_UNIT, Linears, Weights
from tsumugu.engines.onnx_weights import Scheme
from tsumugu.models.base import Model
from tsumugu.models.decoder import Decoder
from tsumugu.models.encoder import Encoder


@dataclass(frozen=True)
class Interface:
    """How a compiled graph is called; kept beside it.

    Attributes:
        kind: "decoder" or "encoder".
        layers, kv_heads, head_dim: of the buffers of keys and values.
        positions: whether position ids are asked for, and where these begin.
        segments: whether segment ids are asked for.
        outputs: what a run gives, by name.
    """

    kind: str
    layers: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    positions: int | None = None
    segments: bool = False
    outputs: tuple[str, ...] = ()


def write_network(graph: Graph, model: Model, weights: Weights, scheme: Scheme) -> Interface:
    """Write `model`, built without weights, to `graph`.

    Raises:
        ConfigError: the model is of a kind, or has a block, that no graph is written for.
    """
    linear = Linears(graph, weights, scheme)
    if isinstance(model, Decoder) and type(model).forward is Decoder.forward and model.head_name == "causal-lm":
        return _decoder(linear, model)
    if isinstance(model, Encoder) and type(model).forward is Encoder.forward and model.head_name != "pretraining":
        return _encoder(linear, model)
    raise ConfigError(
        f"a {model.family.name} model with head {model.head_name!r} has no form in an ONNX graph yet",
        where="engine",
        mend="choose engine='torch'",
    )


def _decoder(linear: Linears, model: Decoder) -> Interface:
    graph, config = linear.graph, model.config
    layers, kv_heads = config.num_layers, config.num_kv_heads
    ids = graph.input("input_ids", np.int64, ("batch", "time"))
    positions = None
    if model.embeddings.position is not None:
        positions = graph.input("position_ids", np.int64, ("batch", "time"))
    wanted = graph.input("wanted", np.int64, ("batch", "kept", 1))
    lengths = graph.input("lengths", np.int32, ("batch",))
    total = graph.input("total", np.int32, ())
    width = -(-config.head_dim // HEAD_UNIT) * HEAD_UNIT
    shape = ("batch", kv_heads, "capacity", width)
    past = tuple(
        (
            graph.input(f"past_key_{index}", np.float32, shape),
            graph.input(f"past_value_{index}", np.float32, shape),
        )
        for index in range(layers)
    )
    e = Emitter(linear, lengths, total, True, past, _rotary(model, layers), _windows(config, layers), config.max_positions)
    tied = model.tied.get("head.weight", "").removesuffix(".weight") or None
    stream = embed(e, model.embeddings, "embeddings", ids, positions, None, tied == "embeddings.token")
    states = stack(e, model.decoder, "decoder", stream)
    states = graph.node("GatherND", states, wanted, batch_dims=1)
    assert model.head is not None
    logits = head(e, model.head, "head", states, tied=tied)
    graph.output("logits", logits, np.float32, ("batch", "kept", config.vocab_size))
    return Interface("decoder", layers, kv_heads, width, None if positions is None else 0, False, ("logits",))


def _encoder(linear: Linears, model: Encoder) -> Interface:
    graph, config = linear.graph, model.config
    ids = graph.input("input_ids", np.int64, ("batch", "time"))
    positions = segments = begin = None
    if model.embeddings.position is not None:
        positions = graph.input("position_ids", np.int64, ("batch", "time"))
        other = next(token for token in range(config.vocab_size) if token != config.pad_token_id)
        begin = int(model.positions(torch.tensor([[other]]))[0, 0])
    if model.embeddings.segment is not None:
        segments = graph.input("token_type_ids", np.int64, ("batch", "time"))
    lengths = graph.input("lengths", np.int32, ("batch",))
    total = graph.input("total", np.int32, ())
    none = (None,) * config.num_layers
    e = Emitter(linear, lengths, total, False, (), none, none, config.max_positions)
    tied = model.tied.get("head.decoder.weight", "").removesuffix(".weight") or None
    stream = embed(e, model.embeddings, "embeddings", ids, positions, segments, tied == "embeddings.token")
    states = stack(e, model.encoder, "encoder", stream)
    outputs = _answers(e, model, states, tied)
    for name, (value, shape) in outputs.items():
        graph.output(name, value, np.float32, shape)
    return Interface("encoder", config.num_layers, 0, 0, begin, segments is not None, tuple(outputs))


def _answers(
    e: Emitter, model: Encoder, states: Value, tied: str | None
) -> dict[str, tuple[Value, tuple[int | str, ...]]]:
    """What an encoder gives, by the names of its torch output."""
    config = model.config
    width, labels = config.hidden_size, len(config.labels)
    if model.head is None:
        found: dict[str, Any] = {"last_hidden_state": (states, ("batch", "time", width))}
        if model.pooler is not None:
            found["pooler_output"] = (head(e, model.pooler, "pooler", states, tied=None), ("batch", width))
        return found
    of_text = model.head_name == "sequence-classification"
    if of_text and model.pooler is not None:
        states = head(e, model.pooler, "pooler", states, tied=None)
    answer = head(e, model.head, "head", states, tied=tied)
    match model.head_name:
        case "masked-lm":
            return {"logits": (answer, ("batch", "time", config.vocab_size))}
        case "question-answering":
            return {"spans": (answer, ("batch", "time", 2))}
    return {"logits": (answer, ("batch", labels) if of_text else ("batch", "time", labels))}


def _rotary(model: Decoder, layers: int) -> Any:
    given: Any = model.rotary
    return tuple(given) if isinstance(given, list | tuple) else (given,) * layers


def _windows(config: Any, layers: int) -> tuple[int | None, ...]:
    windows = getattr(config, "windows", None)
    return (getattr(config, "window", None),) * layers if windows is None else tuple(windows)
