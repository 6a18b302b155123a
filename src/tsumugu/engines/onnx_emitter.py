"""What the functions that write blocks into a graph share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tsumugu.blocks.positions import RotaryPositions
from tsumugu.core.errors import ConfigError
from tsumugu.engines.onnx_graph import Graph, Value
from tsumugu.engines.onnx_linear import Linears


@dataclass(frozen=True)
class Context:
    """What layers ask of another text, that was read before.

    Attributes:
        keys_values: for each layer, `[texts, heads, time, head_dim]` each.
        lengths: `[texts]`, int32: how many of them are no padding.
        slots: `[texts, most]`, int64: the rows that ask each text, 0 where there are fewer.
        places: `[rows]`, int64: where each row stands in `slots`, counted through.
    """

    keys_values: tuple[tuple[Value, Value], ...]
    lengths: Value
    slots: Value
    places: Value


@dataclass(frozen=True)
class Emitter:
    """What they all have at hand.

    Attributes:
        linear: writes linear maps.
        lengths: `[batch]`, int32: one less than how many tokens each row has, with those already read.
        total: int32: how many the longest row has.
        causal: whether a token sees only those before it.
        past: for each layer keys and values; none where whole texts are read at once.
        rotary: for each layer what turns queries and keys, if something does.
        windows: for each layer how many tokens a token sees; None for all.
        longest: positions that may occur.
        biases: for each layer what is added to the scores of attention, `[1, heads, queries, keys]`, if something is.
        context: what cross-attention asks; each row reads one token then.
    """

    linear: Linears
    lengths: Value
    total: Value
    causal: bool
    past: tuple[tuple[Value, Value], ...]
    rotary: tuple[RotaryPositions | None, ...]
    windows: tuple[int | None, ...]
    longest: int
    biases: tuple[Value, ...] = ()
    context: Context | None = None

    @property
    def graph(self) -> Graph:
        return self.linear.graph

    def vector(self, name: str) -> Value:
        """A parameter as it is."""
        return self.graph.constant(name, self.linear.weights.read(name))

    def biased(self, x: Value, bias: Value | None) -> Value:
        return x if bias is None else self.graph.node("Add", x, bias)


def unknown(part: Any) -> ConfigError:
    """A block that has no function here, as an error that names the way out."""
    kind = getattr(part, "__name__", type(part).__name__)
    return ConfigError(f"{kind} has no form in an ONNX graph yet", where="engine", mend="choose engine='torch'")
