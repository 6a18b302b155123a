"""An encoder's weights written for the kernels: whole, or in 8 bits with one scale for each output.

The module that torch would run is walked, as in `compile`; a block that the kernels do not know is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.embeddings import Embedding, Embeddings
from tsumugu.blocks.feedforward import FeedForward
from tsumugu.blocks.heads import ClassificationHead, FirstTokenHead, MaskedLanguageModelHead, SpanHead
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.normalization import LayerNorm
from tsumugu.blocks.positions import LearnedPositions
from tsumugu.engines.native.compile import ACTIVATED, Place, Writer, activation_of, refused, unknown
from tsumugu.engines.onnx_linear import Heads, Part
from tsumugu.engines.onnx_network import interface_of
from tsumugu.models.base import Model
from tsumugu.models.electra import FactorisedEmbeddings, TextHead, TokenScoreHead
from tsumugu.models.encoder import Encoder

PANEL = 32
"""Rows that lie side by side, as in gemm.h; widths are filled up to it too."""
PLAIN = len(ACTIVATED)
"""What changes nothing, behind the activations."""
TANH = ACTIVATED.index("tanh")

Floats = NDArray[np.float32]


def write_encoder(writer: Writer, model: Model) -> dict[str, Any]:
    """Write the weights of `model`, built without weights; what is to be known of it, with the places of its weights.

    Raises:
        ConfigError: it is of a kind, or has a block, that the kernels do not know.
    """
    if not isinstance(model, Encoder) or type(model).forward is not Encoder.forward or model.head_name == "pretraining":
        raise refused(f"a {model.family.name} model with head {model.head_name!r}")
    if writer.scheme.bits not in (32, 8) or writer.scheme.group or model.encoder.norm is not None:
        raise refused("an encoder in groups, in 4 bits or with a norm behind its layers")
    config = model.config
    layers: list[Any] = list(model.encoder.layers)
    heads = Heads(config.num_heads, config.hidden_size // config.num_heads)
    network = {
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "head_dim": heads.padded,
        "layer": [_layer(writer, layer, f"encoder.layers.{index}") for index, layer in enumerate(layers)],
        **_embeddings(writer, model.embeddings),
    }
    called = interface_of(model)
    return {
        "positions": called.positions,
        "segments": called.segments,
        "network": network,
        "steps": list(_steps(writer, model)),
    }


def _layer(writer: Writer, layer: Any, name: str) -> Place:
    if type(layer) is not Layer or layer.norm_first or layer.cross_attention is not None:
        raise refused("an encoder's layer whose norms come first")
    attention, forward = layer.attention, layer.feed_forward
    if type(attention) is not Attention or attention.query_norm is not None or attention.key_norm is not None:
        raise unknown(attention)
    if type(forward) is not FeedForward:
        raise unknown(forward)
    heads = Heads(attention.num_heads, attention.head_dim)
    packed = [
        Part(f"{name}.attention.{each}", getattr(attention, each), rows=heads) for each in ("query", "key", "value")
    ]
    output = Part(f"{name}.attention.output", attention.output, columns=heads)
    up, down = (Part(f"{name}.feed_forward.{each}", getattr(forward, each)) for each in ("up", "down"))
    bits = writer.scheme.bits
    return {
        "packed": _dense(writer, packed, bits=bits),
        "output": _dense(writer, [output], bits=bits),
        "up": _dense(writer, [up], bits=bits, activation=activation_of(forward)),
        "down": _dense(writer, [down], bits=bits),
        "attention_norm": _norm(writer, layer.attention_norm, f"{name}.attention_norm"),
        "feed_forward_norm": _norm(writer, layer.feed_forward_norm, f"{name}.feed_forward_norm"),
        "scale": float(attention.head_dim**-0.5 if attention.scale is None else attention.scale),
    }


def _embeddings(writer: Writer, module: Embeddings) -> Place:
    if type(module) not in (Embeddings, FactorisedEmbeddings) or module.scale != 1.0:
        raise unknown(module)
    projection = getattr(module, "projection", None)
    found: Place = {
        "embedded": module.token.embedding_dim,
        "norm": None if module.norm is None else _norm(writer, module.norm, "embeddings.norm"),
        "projection": projection and _dense(writer, [Part("embeddings.projection", projection)], bits=32),
    }
    for name in ("token", "position", "segment"):
        table = getattr(module, name)
        if table is not None and type(table) not in (nn.Embedding, Embedding, LearnedPositions):
            raise unknown(table)
        rows = None if table is None else _filled(writer.weights.read(f"embeddings.{name}.weight"))
        found[f"{name}s"] = None if rows is None else writer.array(rows)
    return found


def _steps(writer: Writer, model: Encoder) -> Iterator[Place]:
    """What the head does one after another; of a pooler too."""
    head: Any = model.head
    of_text = model.head_name == "sequence-classification"
    if model.pooler is not None and (head is None or of_text):
        yield _step(writer, "pooler.dense", model.pooler.dense, TANH, first=True)
    match head:
        case None:
            pass
        case ClassificationHead():
            yield _step(writer, "head.classifier", head.classifier)
        case FirstTokenHead():
            yield _step(writer, "head.dense", head.dense, TANH, first=True)
            yield _step(writer, "head.classifier", head.classifier)
        case TextHead():
            yield _step(writer, "head.dense", head.dense, activation_of(head), first=True)
            yield _step(writer, "head.classifier", head.classifier)
        case SpanHead():
            yield _step(writer, "head.spans", head.spans)
        case TokenScoreHead():
            yield _step(writer, "head.dense", head.dense, activation_of(head))
            yield _step(writer, "head.score", head.score)
        case MaskedLanguageModelHead():
            yield _step(writer, "head.dense", head.dense, activation_of(head), norm=head.norm)
            name = model.tied.get("head.decoder.weight", "head.decoder.weight").removesuffix(".weight")
            yield _step(writer, "head.decoder", head.decoder, stored_as=name)
        case _:
            raise unknown(head)


def _step(
    writer: Writer,
    name: str,
    module: nn.Linear,
    activation: int = PLAIN,
    *,
    norm: nn.Module | None = None,
    first: bool = False,
    stored_as: str | None = None,
) -> Place:
    """One map of a head, of the first token of each text or of every token; heads are never rounded."""
    weight = writer.weights.read(f"{stored_as or name}.weight")
    bias = None if module.bias is None else writer.weights.read(f"{name}.bias")
    return {
        "dense": _written(writer, weight, bias, bits=32, activation=activation),
        "norm": norm and _norm(writer, norm, f"{name.rsplit('.', 1)[0]}.norm"),
        "outputs": len(weight),
        "first": first,
    }


def _norm(writer: Writer, module: nn.Module, name: str) -> Place:
    if type(module) is not LayerNorm or module.bias is None:
        raise unknown(module)
    weight, bias = (_filled(writer.weights.read(f"{name}.{each}")[None])[0] for each in ("weight", "bias"))
    width = module.normalized_shape[0]
    return {"weight": writer.array(weight), "bias": writer.array(bias), "epsilon": module.eps, "width": width}


def _dense(writer: Writer, parts: Sequence[Part], *, bits: int, activation: int = PLAIN) -> Place:
    """Several matrices, one part's rows below the other's, and their biases."""
    biases = [part.bias(writer.weights) for part in parts if part.module.bias is not None]
    matrix = np.concatenate([part.matrix(writer.weights) for part in parts])
    return _written(writer, matrix, np.concatenate(biases) if biases else None, bits=bits, activation=activation)


def _written(writer: Writer, matrix: Floats, bias: Floats | None, *, bits: int, activation: int) -> Place:
    matrix = _filled(matrix, rows=True)
    rows, width = matrix.shape
    found: Place = {"bits": bits, "rows": rows, "width": width, "activation": activation}
    found["bias"] = None if bias is None else writer.array(np.pad(bias, (0, rows - len(bias))))
    if bits == 32:
        panels = matrix.reshape(-1, PANEL, width).transpose(0, 2, 1)
        return found | {"numbers": writer.array(panels), "scales": None, "sums": None}
    numbers, scales = by_rows(matrix)
    fours = numbers.reshape(-1, PANEL, width // 4, 4).transpose(0, 2, 1, 3)
    sums = numbers.sum(1, dtype=np.int32)
    return found | {"numbers": writer.array(fours), "scales": writer.array(scales), "sums": writer.array(sums)}


def by_rows(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """`matrix` `[rows, width]` in 8 bits, -127 to 127, and the scale of each row.

    To look for the scale that loses least, as groups of 4 bits do, gains nothing at 8 bits.
    """
    scales = np.abs(matrix).max(1) / np.float32(127)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    return np.rint(matrix * inverse[:, None]).astype(np.int8), scales


def _filled(matrix: Floats, *, rows: bool = False) -> Floats:
    """Zeros behind, up to whole panels."""
    short = -len(matrix) % PANEL if rows else 0
    return np.pad(matrix, ((0, short), (0, -matrix.shape[1] % PANEL)))
