"""The position-wise half of a layer, plain and gated, and the activations by the names that checkpoints use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from tsumugu.blocks.dropout import Dropout
from tsumugu.core.errors import ConfigError, did_you_mean

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_fast": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation called `name`, or a ConfigError that names the nearest."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {name!r}", mend=did_you_mean(name, ACTIVATIONS))
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """Widen, bend, narrow: `[..., dim]` -> `[..., dim]`. `inner_dropout` acts on the widened states.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.3.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: str,
        bias: bool = True,
        dropout: float = 0.0,
        inner_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = _activation(activation)
        self.dropout, self.inner_dropout = Dropout(dropout), Dropout(inner_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.inner_dropout(self.activation(self.up(x)))))


class GatedFeedForward(nn.Module):
    """The widened states multiplied by an activated gate: `[..., dim]` -> `[..., dim]`. With silu this is SwiGLU.

    `inner_dropout` acts on the widened states.

    Source: Shazeer 2020, GLU Variants Improve Transformer, equation 6.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: str,
        bias: bool = False,
        dropout: float = 0.0,
        inner_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = _activation(activation)
        self.dropout, self.inner_dropout = Dropout(dropout), Dropout(inner_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.inner_dropout(self.activation(self.gate(x)) * self.up(x))))


_activation = activation
