"""Feed-forward networks, plain and gated, and norms against loops."""

from __future__ import annotations

import pytest
import torch
from tests.blocks import loops

from tsumugu.blocks.feedforward import ACTIVATIONS, FeedForward, GatedFeedForward, activation
from tsumugu.blocks.normalization import LayerNorm, RMSNorm
from tsumugu.core.errors import ConfigError


def test_every_activation_has_a_loop() -> None:
    assert set(ACTIVATIONS) == set(loops.ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    x = torch.linspace(-6, 6, 97, dtype=torch.float64)
    assert loops.difference(activation(name)(x), loops.activated(x.numpy(), name)) <= loops.TOLERANCE


def test_unknown_activation_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gelu'"):
        activation("gellu")


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward(name: str, bias: bool) -> None:
    block = loops.randomised(FeedForward(6, 11, activation=name, bias=bias))
    x = loops.states(2, 3, 6)
    assert loops.difference(block(x), loops.feed_forward(x.numpy(), loops.parameters(block), name)) <= loops.TOLERANCE


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_gated_feed_forward(name: str, bias: bool) -> None:
    block = loops.randomised(GatedFeedForward(6, 11, activation=name, bias=bias))
    x = loops.states(2, 3, 6)
    wanted = loops.gated_feed_forward(x.numpy(), loops.parameters(block), name)
    assert loops.difference(block(x), wanted) <= loops.TOLERANCE


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 0.3])
@pytest.mark.parametrize("shape", [(2, 3, 5), (5,), (1, 1)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_norms(eps: float, shape: tuple[int, ...], size: float) -> None:
    x = loops.states(*shape) * size
    rms = loops.randomised(RMSNorm(shape[-1], eps=eps))
    wanted = loops.rms_norm(x.numpy(), loops.parameters(rms), "", eps)
    assert loops.difference(rms(x), wanted) <= loops.TOLERANCE
    layer = loops.randomised(LayerNorm(shape[-1], eps=eps))
    wanted = loops.layer_norm(x.numpy(), loops.parameters(layer), "", eps)
    assert loops.difference(layer(x), wanted) <= loops.TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rms_norm_takes_its_statistics_in_float32(dtype: torch.dtype) -> None:
    """Squares of 300 overflow float16, and sums of squares lose all precision in bfloat16."""
    block = RMSNorm(512, eps=1e-6).to(dtype)
    x = (300 * loops.states(4, 512)).to(dtype)
    wanted = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    found = block(x)
    assert found.dtype == dtype
    assert ((found.double() - wanted).abs() <= torch.finfo(dtype).eps * wanted.abs()).all()
