"""A whole network written into a graph: what goes in, the blocks in the order of their wiring, what comes out.

Decoders read tokens behind those they have read, with keys and values in buffers that are written in place; encoders
read whole texts, padded on the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tsumugu.core.errors import ConfigError
from tsumugu.engines.onnx_emit import Emitter, embed, head, stack
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
    """

    kind: str
    layers: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    positions: int | None = None
    segments: bool = False


def interface_of(model: Model) -> Interface:
    """How the graph of `model` is called."""
    assert isinstance(model, Decoder | Encoder)
    config, embeddings = model.config, model.embeddings
    positions = None if embeddings.position is None else 0
    if isinstance(model, Decoder):
        width = -(-config.head_dim // HEAD_UNIT) * HEAD_UNIT
        return Interface("decoder", config.num_layers, config.num_kv_heads, width, positions, False)
    if positions is not None:
        other = next(token for token in range(config.vocab_size) if token != config.pad_token_id)
        positions = int(model.positions(torch.tensor([[other]]))[0, 0])
    return Interface("encoder", positions=positions, segments=embeddings.segment is not None)


def write_network(graph: Graph, model: Model, weights: Weights, scheme: Scheme) -> None:
    """Write `model`, built without weights, to `graph`.

    Raises:
        ConfigError: the model is of a kind, or has a block, that no graph is written for.
    """
    linear = Linears(graph, weights, scheme)
    if isinstance(model, Decoder) and type(model).forward is Decoder.forward and model.head_name == "causal-lm":
        _decoder(linear, model)
    elif isinstance(model, Encoder) and type(model).forward is Encoder.forward and model.head_name != "pretraining":
        _encoder(Linears(graph, weights, scheme.for_encoder()), model)
    else:
        raise ConfigError(
            f"a {model.family.name} model with head {model.head_name!r} has no form in an ONNX graph yet",
            where="engine",
            mend="choose engine='torch'",
        )


def _decoder(linear: Linears, model: Decoder) -> None:
    graph, config, interface = linear.graph, model.config, interface_of(model)
    ids = graph.input("input_ids", np.int64, ("batch", "time"))
    positions = _positions(graph, interface)
    wanted = graph.input("wanted", np.int64, ("batch", "kept", 1))
    lengths, total = _lengths(graph)
    shape = ("batch", interface.kv_heads, "capacity", interface.head_dim)
    names = [(f"past_key_{index}", f"past_value_{index}") for index in range(interface.layers)]
    past = tuple((graph.input(key, np.float32, shape), graph.input(value, np.float32, shape)) for key, value in names)
    rotary: Any = tuple(model.rotary) if isinstance(model.rotary, nn.ModuleList) else (model.rotary,) * len(past)
    windows = getattr(config, "windows", None) or (getattr(config, "window", None),) * len(past)
    e = Emitter(linear, lengths, total, True, past, rotary, tuple(windows), config.max_positions)
    tied = model.tied.get("head.weight", "").removesuffix(".weight") or None
    stream = embed(e, model.embeddings, "embeddings", ids, positions, None, tied == "embeddings.token")
    states = stack(e, model.decoder, "decoder", stream)
    assert model.head is not None
    logits = head(e, model.head, "head", graph.node("GatherND", states, wanted, batch_dims=1), tied=tied)
    graph.output("logits", logits, np.float32, ("batch", "kept", config.vocab_size))


def _encoder(linear: Linears, model: Encoder) -> None:
    graph, config, interface = linear.graph, model.config, interface_of(model)
    ids = graph.input("input_ids", np.int64, ("batch", "time"))
    positions = _positions(graph, interface)
    segments = graph.input("token_type_ids", np.int64, ("batch", "time")) if interface.segments else None
    lengths, total = _lengths(graph)
    none = (None,) * config.num_layers
    e = Emitter(linear, lengths, total, False, (), none, none, config.max_positions)
    tied = model.tied.get("head.decoder.weight", "").removesuffix(".weight") or None
    stream = embed(e, model.embeddings, "embeddings", ids, positions, segments, tied == "embeddings.token")
    states = stack(e, model.encoder, "encoder", stream)
    for name, (value, shape) in _answers(e, model, states, tied).items():
        graph.output(name, value, np.float32, shape)


def _positions(graph: Graph, interface: Interface) -> Value | None:
    return None if interface.positions is None else graph.input("position_ids", np.int64, ("batch", "time"))


def _lengths(graph: Graph) -> tuple[Value, Value]:
    return graph.input("lengths", np.int32, ("batch",)), graph.input("total", np.int32, ())


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
