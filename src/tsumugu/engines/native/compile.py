"""A decoder's weights written for the kernels: its network, built without weights, is walked block by block.

As in the graph (`onnx_emit`) there is no second definition of a model: what is walked is the module that torch would
run. A block that the kernels do not know is refused by name, and the model goes to ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.embeddings import Embedding, Embeddings
from tsumugu.blocks.feedforward import ACTIVATIONS, FeedForward, GatedFeedForward
from tsumugu.blocks.heads import LanguageModelHead
from tsumugu.blocks.layer import Layer
from tsumugu.blocks.normalization import LayerNorm, RMSNorm
from tsumugu.blocks.positions import LearnedPositions, RotaryPositions
from tsumugu.core.errors import ConfigError
from tsumugu.engines.native import pack
from tsumugu.engines.onnx_linear import Heads, Part
from tsumugu.engines.onnx_weights import Scheme
from tsumugu.engines.planned_weights import PlannedWeights
from tsumugu.models.base import Model
from tsumugu.models.decoder import Decoder

ALIGNMENT = 64
ACTIVATED = ("silu", "gelu_new", "gelu", "quick_gelu", "relu", "relu2", "tanh")
"""In the order of network.h."""
ALIASES = {"swish": "silu", "gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new"}

Array = NDArray[Any]
Place = dict[str, Any]


class Writer:
    """Writes matrices and vectors behind one another and says where they lie; a name is written once.

    Args:
        path: the file.
        weights: where parameters come from.
        scheme: how matrices are kept.
        progress: called with the bytes of each array that was written.
    """

    def __init__(self, path: Path, weights: PlannedWeights, scheme: Scheme, progress: Callable[[int], None]) -> None:
        self.weights, self.scheme, self.progress = weights, scheme, progress
        self.file = path.open("wb")
        self.known: dict[str, Any] = {}

    def close(self) -> None:
        self.file.close()

    def array(self, array: Array) -> int:
        """Where the array lies."""
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))
        place = self.file.tell()
        self.file.write(np.ascontiguousarray(array).data.cast("B"))
        self.progress(array.nbytes)
        return place

    def vector(self, name: str, make: Callable[[], Array]) -> int:
        if name not in self.known:
            self.known[name] = self.array(make())
        place: int = self.known[name]
        return place

    def norm(self, module: nn.Module | None, name: str, heads: Heads | None = None) -> Place | None:
        """A norm of states, or of each head by itself: zeros in a filled head count in its mean."""
        if module is None:
            return None
        weight = self.weights.read(f"{name}.weight")
        if type(module) is RMSNorm:
            weight, bias, epsilon = weight + np.float32(module.offset), None, module.eps
        elif type(module) is LayerNorm and heads is None:
            bias, epsilon = self.array(self.weights.read(f"{name}.bias")), module.eps
        else:
            raise unknown(module)
        if heads is not None:
            share = heads.padded / heads.width
            weight = Heads(1, heads.width, heads.halves).fill((weight / share**0.5).astype(np.float32))
            epsilon /= share
        return {"weight": self.array(weight), "bias": bias, "epsilon": epsilon, "width": len(weight)}

    def matrix(self, *parts: Part, bits: int) -> Place:
        """Several matrices, one part's rows below the other's, and their biases."""
        key = "+".join(part.name for part in parts)
        if key in self.known:
            found: Place = self.known[key]
            return found
        bias = None
        if parts[0].module.bias is not None:
            whole = np.concatenate([part.bias(self.weights) for part in parts])
            bias = self.array(np.pad(whole, (0, -len(whole) % pack.LANES)))
        place = self._whole(parts) if bits == 32 else self._rounded(parts, bits)
        self.known[key] = place | {"bias": bias}
        return place | {"bias": bias}

    def _whole(self, parts: Sequence[Part]) -> Place:
        matrix = pack.wide(np.concatenate([part.matrix(self.weights) for part in parts]))
        panels = pack.paneled(matrix)
        rows, width = len(panels) * pack.LANES, matrix.shape[1]
        return {"bits": 32, "rows": rows, "width": width, "numbers": self.array(panels), "scales": None, "mins": None}

    def _rounded(self, parts: Sequence[Part], bits: int) -> Place:
        own = [self.weights.rows(f"{part.name}.weight", pack.KINDS) if part.plain else None for part in parts]
        read = [pack.from_gguf(*rows) for rows in own if rows is not None]
        group = self.scheme.group
        found = [each for each in read if self.scheme.as_found or (each.bits == bits and group in (0, pack.GROUP))]
        if len(found) == len(parts) and len({(each.bits, each.mins is None) for each in found}) == 1:
            groups = pack.stacked(found)
        else:
            matrix = np.concatenate([part.matrix(self.weights) for part in parts])
            group = self.scheme.group_for(matrix.shape[1], bits) if group else pack.GROUP
            groups = pack.round_rows(matrix, bits, group)
        group = groups.numbers.shape[2]
        numbers, scales, mins = groups.panels()
        return {
            "bits": groups.bits,
            "rows": len(numbers) * pack.LANES,
            "width": groups.numbers.shape[1] * group,
            "shift": (group // pack.GROUP).bit_length() - 1,
            "numbers": self.array(numbers),
            "scales": self.array(scales),
            "mins": None if mins is None else self.array(mins),
        }


def write_network(writer: Writer, model: Model) -> dict[str, Any]:
    """Write the weights of `model`, built without weights; what is to be known of it, with the places of its weights.

    Raises:
        ConfigError: it is of a kind, or has a block, that the kernels do not know.
    """
    if (
        not isinstance(model, Decoder)
        or type(model).forward is not Decoder.forward
        or not isinstance(model.head, LanguageModelHead)
        or not len(model.decoder.layers)
        or model.decoder.norm is None
    ):
        raise refused(f"a {model.family.name} model with head {model.head_name!r}")
    config, head = model.config, model.head
    bits = writer.scheme.head_bits
    token = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device="meta")
    tied = model.tied.get("head.weight", "").removesuffix(".weight") or "head"
    table = writer.matrix(Part("embeddings.token", token), bits=bits)
    last = writer.matrix(Part(tied, head), bits=bits)
    layers: list[Any] = list(model.decoder.layers)
    rotary: Any = model.rotary if isinstance(model.rotary, nn.ModuleList) else [model.rotary] * len(layers)
    windows = getattr(config, "windows", None) or [getattr(config, "window", None)] * len(layers)
    first = layers[0]
    return {
        "hidden": config.hidden_size,
        "heads": first.attention.num_heads,
        "kv_heads": first.attention.num_kv_heads,
        "head_dim": _heads(first.attention.num_heads, first.attention, turned=False).padded,
        "inner": first.feed_forward.down.in_features,
        "gated": int(isinstance(first.feed_forward, GatedFeedForward)),
        "activation": activation_of(first.feed_forward),
        "softcap": head.softcap or 0.0,
        "table": table,
        "head": last,
        "norm": writer.norm(model.decoder.norm, "decoder.norm"),
        "layer": [
            _layer(writer, layer, f"decoder.layers.{index}", turn, window, config.max_positions)
            for index, (layer, turn, window) in enumerate(zip(layers, rotary, windows, strict=True))
        ],
        **_embeddings(writer, model.embeddings),
    }


def _embeddings(writer: Writer, module: Embeddings) -> dict[str, Any]:
    if module.norm is not None or module.segment is not None:
        raise refused("an embedding with a norm or segments")
    positions = None
    if module.position is not None:
        if type(module.position) not in (nn.Embedding, Embedding, LearnedPositions):
            raise unknown(module.position)
        positions = writer.array(writer.weights.read("embeddings.position.weight"))
    return {"embedding_scale": module.scale, "positions": positions}


def _layer(writer: Writer, layer: Any, name: str, rotary: Any, window: int | None, longest: int) -> dict[str, Any]:
    if type(layer) is not Layer or not layer.norm_first or layer.cross_attention is not None:
        raise refused("a layer whose norms come last or that reads an encoder")
    attention: Any = layer.attention
    forward: Any = layer.feed_forward
    if type(attention) is not Attention or (rotary is not None and type(rotary) is not RotaryPositions):
        raise unknown(attention if type(attention) is not Attention else rotary)
    turned, bits = rotary is not None, writer.scheme.bits
    of_query = _heads(attention.num_heads, attention, turned)
    of_key, of_value = (_heads(attention.num_kv_heads, attention, each) for each in (turned, False))
    if type(forward) not in (FeedForward, GatedFeedForward):
        raise unknown(forward)
    up = [Part(f"{name}.feed_forward.up", forward.up)]
    if type(forward) is GatedFeedForward:
        up.insert(0, Part(f"{name}.feed_forward.gate", forward.gate))
    columns = _heads(attention.num_heads, attention, turned=False)
    tables = None if rotary is None else _turning(writer, rotary, of_query.padded, longest)
    return {
        "attention_norm": writer.norm(layer.attention_norm, f"{name}.attention_norm"),
        "query_norm": writer.norm(attention.query_norm, f"{name}.attention.query_norm", of_query),
        "key_norm": writer.norm(attention.key_norm, f"{name}.attention.key_norm", of_key),
        "attention_output_norm": writer.norm(layer.attention_output_norm, f"{name}.attention_output_norm"),
        "feed_forward_norm": writer.norm(layer.feed_forward_norm, f"{name}.feed_forward_norm"),
        "feed_forward_output_norm": writer.norm(layer.feed_forward_output_norm, f"{name}.feed_forward_output_norm"),
        "packed": writer.matrix(
            Part(f"{name}.attention.query", attention.query, rows=of_query),
            Part(f"{name}.attention.key", attention.key, rows=of_key),
            Part(f"{name}.attention.value", attention.value, rows=of_value),
            bits=bits,
        ),
        "output": writer.matrix(Part(f"{name}.attention.output", attention.output, columns=columns), bits=bits),
        "up": writer.matrix(*up, bits=bits),
        "down": writer.matrix(Part(f"{name}.feed_forward.down", forward.down), bits=bits),
        "cosines": None if tables is None else tables[0],
        "sines": None if tables is None else tables[1],
        "scale": float(attention.head_dim**-0.5 if attention.scale is None else attention.scale),
        "window": window or 0,
    }


def _heads(count: int, module: Attention, turned: bool) -> Heads:
    return Heads(count, module.head_dim, halves=turned)


def _turning(writer: Writer, rotary: RotaryPositions, padded: int, longest: int) -> tuple[int, int]:
    """Where cosines and sines `[positions, padded / 2]` lie."""
    frequencies = rotary.frequencies(dtype=torch.float32, device=torch.device("cpu"))
    angles = torch.outer(torch.arange(longest).float(), frequencies)
    full = torch.zeros(longest, padded // 2)
    full[:, : angles.shape[1]] = angles
    name = f"rotary({rotary.extra_repr()})"
    return (
        writer.vector(f"{name}.cosines", lambda: full.cos().numpy()),
        writer.vector(f"{name}.sines", lambda: full.sin().numpy()),
    )


def activation_of(module: Any) -> int:
    """The number of a block's activation in network.h.

    Raises:
        ConfigError: the kernels have none such.
    """
    function = module.activation
    name = next((name for name, known in ACTIVATIONS.items() if known is function), "")
    name = ALIASES.get(name, name)
    if name not in ACTIVATED:
        raise refused(f"the activation {name or function!r}")
    return ACTIVATED.index(name)


def refused(what: str) -> ConfigError:
    """What the kernels do not know, as an error that names the way out."""
    return ConfigError(f"{what} is nothing the native kernels know", where="engine", mend="choose engine='onnx'")


def unknown(part: Any) -> ConfigError:
    """The same for a block."""
    return refused(type(part).__name__)
