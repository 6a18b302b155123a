"""A whole network written into a graph: what goes in, the blocks in the order of their wiring, what comes out.

Decoders that write read tokens behind those they have read, with keys and values in buffers that are written in place;
encoders, and decoders that classify, read whole texts, padded on the right. An encoder-decoder is two graphs: what is
read gives the keys and values that every step asks, and a step is a decoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from tsumugu.core.errors import ConfigError
from tsumugu.engines.onnx_attention import keys_values, relative_bias
from tsumugu.engines.onnx_emit import embed, head, stack
from tsumugu.engines.onnx_emitter import Context, Emitter
from tsumugu.engines.onnx_graph import Graph, Value
from tsumugu.engines.onnx_linear import HEAD_UNIT, Linears, Weights
from tsumugu.engines.onnx_store import ENCODER
from tsumugu.engines.onnx_weights import Scheme
from tsumugu.models.base import Model
from tsumugu.models.decoder import Decoder
from tsumugu.models.encoder import Encoder
from tsumugu.models.encoder_decoder import EncoderDecoder


@dataclass(frozen=True)
class Interface:
    """How a compiled graph is called; kept beside it.

    Attributes:
        kind: "decoder", "encoder" or "encoder-decoder".
        layers, kv_heads, head_dim: of the buffers of keys and values.
        positions: whether position ids are asked for, and where these begin.
        segments: whether segment ids are asked for.
        causal: whether a token sees only those before it, where whole texts are read.
        last: whether the last token of each text is asked for, because it speaks for all.
        reach: where distances between tokens are cut off, where those are asked for.
    """

    kind: str
    layers: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    positions: int | None = None
    segments: bool = False
    causal: bool = False
    last: bool = False
    reach: int = 0


def interface_of(model: Model) -> Interface:
    """How the graph of `model` is called."""
    assert isinstance(model, Decoder | Encoder | EncoderDecoder)
    config, embeddings = model.config, model.embeddings
    positions = None if embeddings.position is None else 0
    if not isinstance(model, Encoder):
        width = -(-config.head_dim // HEAD_UNIT) * HEAD_UNIT
    if isinstance(model, EncoderDecoder):
        reach = max(int(each.max_distance) for each in (*model.encoder_positions, *model.decoder_positions))
        return Interface("encoder-decoder", config.num_decoder_layers, config.num_heads, width, reach=reach)
    if isinstance(model, Decoder) and model.head_name != "causal-lm":
        last = model.head_name == "sequence-classification"
        return Interface("encoder", positions=positions, causal=True, last=last)
    if isinstance(model, Decoder):
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
    if isinstance(model, Decoder) and type(model).forward is Decoder.forward:
        (_decoder if model.head_name == "causal-lm" else _classifier)(linear, model)
    elif isinstance(model, Encoder) and type(model).forward is Encoder.forward and model.head_name != "pretraining":
        _encoder(Linears(graph, weights, scheme.for_encoder()), model)
    elif isinstance(model, EncoderDecoder) and model.head_name == "seq2seq-lm":
        aside = graph.beside(ENCODER)
        _reading(Linears(aside, weights, scheme), model)
        aside.finish()
        _writing(linear, model)
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
    past = _pairs(graph, "past", interface.layers, ("batch", interface.kv_heads, "capacity", interface.head_dim))
    e = Emitter(linear, lengths, total, True, past, *_layers(model), config.max_positions)
    tied = model.tied.get("head.weight", "").removesuffix(".weight") or None
    stream = embed(e, model.embeddings, "embeddings", ids, positions, None, tied == "embeddings.token")
    states = stack(e, model.decoder, "decoder", stream)
    assert model.head is not None
    logits = head(e, model.head, "head", graph.node("GatherND", states, wanted, batch_dims=1), tied=tied)
    graph.output("logits", logits, np.float32, ("batch", "kept", config.vocab_size))


def _layers(model: Decoder) -> tuple[tuple[Any, ...], tuple[int | None, ...]]:
    """What turns queries and keys, and how many tokens a token sees, for each layer."""
    config, count = model.config, model.config.num_layers
    rotary = tuple(model.rotary) if isinstance(model.rotary, nn.ModuleList) else (model.rotary,) * count
    return rotary, tuple(getattr(config, "windows", None) or (getattr(config, "window", None),) * count)


def _classifier(linear: Linears, model: Decoder) -> None:
    """A decoder that reads whole texts: labels of each, or of its tokens, or states."""
    graph, config, interface = linear.graph, model.config, interface_of(model)
    ids = graph.input("input_ids", np.int64, ("batch", "time"))
    positions = _positions(graph, interface)
    lengths, total = _lengths(graph)
    e = Emitter(linear, lengths, total, True, (), *_layers(model), config.max_positions)
    states = stack(e, model.decoder, "decoder", embed(e, model.embeddings, "embeddings", ids, positions, None, False))
    if model.head is None:
        graph.output("last_hidden_state", states, np.float32, ("batch", "time", config.hidden_size))
        return
    if interface.last:
        states = graph.node("GatherND", states, graph.input("last", np.int64, ("batch", 1)), batch_dims=1)
    shape = ("batch", len(config.labels)) if interface.last else ("batch", "time", len(config.labels))
    graph.output("logits", head(e, model.head, "head", states, tied=None), np.float32, shape)


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


def _reading(linear: Linears, model: EncoderDecoder) -> None:
    """What is read -> keys and values for each layer of the decoder."""
    assert model.decoder is not None
    graph, config = linear.graph, model.config
    ids = graph.input("input_ids", np.int64, ("batch", "time"))
    distances = graph.input("distances", np.int32, ("time", "time"))
    lengths, total = _lengths(graph)
    none = (None,) * config.num_layers
    e = Emitter(linear, lengths, total, False, (), none, none, config.max_positions)
    e = _biased(
        e, model.encoder_positions, "encoder_positions", config.num_layers, distances, interface_of(model).reach
    )
    stream = embed(e, model.embeddings, "embeddings", ids, None, None, bool(model.tied))
    states = stack(e, model.encoder, "encoder", stream)
    layers: Any = model.decoder.layers
    for index, layer in enumerate(layers):
        cross = layer.cross_attention
        found = keys_values(e, cross, f"decoder.layers.{index}.cross_attention", states)
        for part, value in zip(("key", "value"), found, strict=True):
            graph.output(f"{part}_{index}", value, np.float32, ("batch", cross.num_heads, "time", cross.head_dim))


def _writing(linear: Linears, model: EncoderDecoder) -> None:
    """One more token for each row -> logits of the next."""
    assert model.decoder is not None
    assert model.head is not None
    graph, config, interface = linear.graph, model.config, interface_of(model)
    ids = graph.input("input_ids", np.int64, ("batch", 1))
    distances = graph.input("distances", np.int32, (1, "total"))
    lengths, total = _lengths(graph)
    past = _pairs(graph, "past", interface.layers, ("batch", interface.kv_heads, "capacity", interface.head_dim))
    context = Context(
        _pairs(graph, "context", interface.layers, ("texts", config.num_heads, "read", config.head_dim)),
        graph.input("context_lengths", np.int32, ("texts",)),
        graph.input("slots", np.int64, ("texts", "most")),
        graph.input("places", np.int64, ("batch",)),
    )
    none = (None,) * interface.layers
    e = Emitter(linear, lengths, total, True, past, none, none, config.max_positions, context=context)
    e = _biased(e, model.decoder_positions, "decoder_positions", interface.layers, distances, interface.reach)
    tied = model.tied.get("head.weight", "").removesuffix(".weight") or None
    stream = embed(e, model.embeddings, "embeddings", ids, None, None, tied == "embeddings.token")
    states = stack(e, model.decoder, "decoder", stream)
    if model.output_scale != 1.0:
        scale = graph.constant("output_scale", np.array(model.output_scale, np.float32))
        states = graph.node("Mul", states, scale)
    graph.output("logits", head(e, model.head, "head", states, tied=tied), np.float32, ("batch", 1, config.vocab_size))


def _biased(e: Emitter, positions: Any, name: str, layers: int, distances: Value, reach: int) -> Emitter:
    """The same with the relative bias of all layers, or of each."""
    biases = [relative_bias(e, module, f"{name}.{index}", distances, reach) for index, module in enumerate(positions)]
    return replace(e, biases=tuple(biases * layers if len(biases) == 1 else biases))


def _pairs(graph: Graph, name: str, layers: int, shape: Sequence[int | str]) -> tuple[tuple[Value, Value], ...]:
    """Keys and values that are handed in for each layer."""
    names = [(f"{name}_key_{index}", f"{name}_value_{index}") for index in range(layers)]
    return tuple((graph.input(key, np.float32, shape), graph.input(value, np.float32, shape)) for key, value in names)


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
