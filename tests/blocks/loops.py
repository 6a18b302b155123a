"""The blocks once more, as plain loops over Python floats: slow, and too simple to share a bug with a tensor library.

Everything is float64. Parameters come from the block under test, as NumPy arrays under their own names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]

TOLERANCE = 1e-10
"""The greatest difference from a loop that any block may show in float64."""


def randomised(module: Any, seed: int = 0, *, std: float = 0.5) -> Any:
    """The module in float64 and eval mode with every parameter, norms and biases too, drawn from N(0, std)."""
    generator = torch.Generator().manual_seed(seed)
    module = module.to(torch.float64).eval()
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(torch.randn(each.shape, generator=generator, dtype=torch.float64) * std)
    return module


def states(*shape: int, seed: int = 1) -> torch.Tensor:
    """Random float64 states."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(module: nn.Module) -> dict[str, Array]:
    return {name: each.detach().numpy() for name, each in module.named_parameters()}


def difference(ours: torch.Tensor, loop: Any) -> float:
    """The greatest absolute difference; the shapes must agree and nothing may be NaN."""
    loop = np.asarray(loop, dtype=np.float64)
    assert tuple(ours.shape) == loop.shape, f"{tuple(ours.shape)} and {loop.shape}"
    assert ours.isfinite().all(), "not finite"
    return float(np.abs(ours.detach().numpy() - loop).max(initial=0.0))


def linear(x: Array, p: dict[str, Array], name: str) -> Array:
    """`x @ weight.T + bias` over the last axis."""
    weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
    flat = x.reshape(-1, x.shape[-1])
    out = np.zeros((len(flat), len(weight)))
    for row in range(len(flat)):
        for column in range(len(weight)):
            total = 0.0 if bias is None else float(bias[column])
            for k in range(weight.shape[1]):
                total += float(flat[row, k]) * float(weight[column, k])
            out[row, column] = total
    return out.reshape(*x.shape[:-1], len(weight))


def softmax(values: list[float]) -> list[float]:
    """Exponentials over their sum; what is -inf gets nothing."""
    top = max(values)
    weights = [math.exp(each - top) for each in values]
    total = math.fsum(weights)
    return [each / total for each in weights]


def rotated(vector: Array, position: int, frequencies: list[float]) -> Array:
    """Dimension i turned together with i + half by position * frequency i."""
    half = len(frequencies)
    out = np.zeros(2 * half)
    for i, frequency in enumerate(frequencies):
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        out[i] = vector[i] * cos - vector[i + half] * sin
        out[i + half] = vector[i + half] * cos + vector[i] * sin
    return out


def attention(
    x: Array,
    p: dict[str, Array],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float | None = None,
    sees: Callable[[int, int, int], bool] = lambda row, query, key: True,
    bias: Callable[[int, int, int, int], float] = lambda row, head, query, key: 0.0,
    context: Array | None = None,
    frequencies: list[float] | None = None,
    positions: Array | None = None,
    prefix: str = "",
) -> Array:
    """Attention one query, one head and one key at a time. A query that sees nothing gets zeros for its heads."""
    asked = x if context is None else context
    queries, keys, values = (linear(a, p, prefix + n) for a, n in ((x, "query"), (asked, "key"), (asked, "value")))
    scale = head_dim**-0.5 if scale is None else scale
    mixed = np.zeros((*x.shape[:2], heads * head_dim))
    for row in range(x.shape[0]):
        for head in range(heads):
            own = slice(head * head_dim, (head + 1) * head_dim)
            shared = head // (heads // kv_heads)
            theirs = slice(shared * head_dim, (shared + 1) * head_dim)
            for query in range(x.shape[1]):
                seen = [key for key in range(asked.shape[1]) if sees(row, query, key)]
                if not seen:
                    continue
                scores = []
                for key in seen:
                    q, k = queries[row, query, own], keys[row, key, theirs]
                    if frequencies is not None:
                        where = positions if positions is not None else np.tile(np.arange(x.shape[1]), (len(x), 1))
                        q = rotated(q, int(where[row, query]), frequencies)
                        k = rotated(k, int(where[row, key]), frequencies)
                    dot = math.fsum(float(a) * float(b) for a, b in zip(q, k, strict=True))
                    scores.append(dot * scale + bias(row, head, query, key))
                for weight, key in zip(softmax(scores), seen, strict=True):
                    mixed[row, query, own] += weight * values[row, key, theirs]
    return linear(mixed, p, f"{prefix}output")


def layer_norm(x: Array, p: dict[str, Array], name: str, eps: float) -> Array:
    prefix = f"{name}." if name else ""
    return _norm(x, p[f"{prefix}weight"], p[f"{prefix}bias"], eps, centred=True)


def rms_norm(x: Array, p: dict[str, Array], name: str, eps: float) -> Array:
    prefix = f"{name}." if name else ""
    return _norm(x, p[f"{prefix}weight"], np.zeros(x.shape[-1]), eps, centred=False)


def _norm(x: Array, weight: Array, bias: Array, eps: float, *, centred: bool) -> Array:
    flat = x.reshape(-1, x.shape[-1])
    out = np.zeros_like(flat)
    for row, vector in enumerate(flat):
        mean = math.fsum(vector) / len(vector) if centred else 0.0
        spread = math.fsum((each - mean) ** 2 for each in vector) / len(vector)
        for i, each in enumerate(vector):
            out[row, i] = (each - mean) / math.sqrt(spread + eps) * weight[i] + bias[i]
    return out.reshape(x.shape)


def tanh_gelu(x: float) -> float:
    return 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * 0.5 * (1.0 + math.erf(x / math.sqrt(2.0))),
    "gelu_new": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "tanh": math.tanh,
}


def activated(x: Array, name: str) -> Array:
    return np.array([ACTIVATIONS[name](float(each)) for each in x.flat]).reshape(x.shape)


def feed_forward(x: Array, p: dict[str, Array], activation: str, prefix: str = "") -> Array:
    return linear(activated(linear(x, p, f"{prefix}up"), activation), p, f"{prefix}down")


def gated_feed_forward(x: Array, p: dict[str, Array], activation: str, prefix: str = "") -> Array:
    gate = activated(linear(x, p, f"{prefix}gate"), activation)
    return linear(gate * linear(x, p, f"{prefix}up"), p, f"{prefix}down")


def cross_entropy(logits: Array, labels: Array, ignore: int = -100) -> float:
    """Mean of minus the log probability of the label, over labels that are not `ignore`."""
    losses = []
    for vector, label in zip(logits.reshape(-1, logits.shape[-1]), labels.flat, strict=True):
        if label != ignore:
            losses.append(-math.log(softmax([float(each) for each in vector])[int(label)]))
    return math.fsum(losses) / len(losses)
