"""Positions against loops: learned, sinusoidal, rotary with its scalings, and T5's relative buckets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.blocks import loops

from tsumugu.blocks.embeddings import Embeddings
from tsumugu.blocks.normalization import LayerNorm
from tsumugu.blocks.positions import (
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    RelativePositions,
    RotaryPositions,
    SinusoidalPositions,
)
from tsumugu.core.errors import ConfigError

POSITIONS = torch.tensor([[0, 1, 2, 3], [5, 2, 900, 63]])


def test_learned() -> None:
    block = loops.randomised(LearnedPositions(1000, 6))
    wanted = [[block.weight[position].tolist() for position in row] for row in POSITIONS.tolist()]
    assert loops.difference(block(POSITIONS), wanted) == 0


@pytest.mark.parametrize("width", [1, 2, 7, 8])
@pytest.mark.parametrize("base", [10000.0, 50.0])
def test_sinusoidal(width: int, base: float) -> None:
    wanted = np.zeros((*POSITIONS.shape, width))
    for row, line in enumerate(POSITIONS.tolist()):
        for time, position in enumerate(line):
            for i in range(width):
                angle = position / base ** ((i - i % 2) / width)
                wanted[row, time, i] = math.cos(angle) if i % 2 else math.sin(angle)
    found = SinusoidalPositions(width, base=base)(POSITIONS, torch.float64)
    assert loops.difference(found, wanted) <= loops.TOLERANCE


def stretched(frequency: float, scaling: LinearScaling | Llama3Scaling | None) -> float:
    """One rotary frequency after scaling, as the papers say it."""
    if scaling is None:
        return frequency
    if isinstance(scaling, LinearScaling):
        return frequency / scaling.factor
    turns = scaling.original_max_positions * frequency / (2 * math.pi)
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    if turns > scaling.high_freq_factor:
        return frequency
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - share) * frequency / scaling.factor + share * frequency


SCALINGS = [
    None,
    LinearScaling(factor=4.0),
    LinearScaling(factor=1.0),
    Llama3Scaling(),
    Llama3Scaling(factor=32.0, original_max_positions=64),
    Llama3Scaling(factor=2.0, low_freq_factor=0.5, high_freq_factor=8.0, original_max_positions=300),
    Llama3Scaling(low_freq_factor=0.0, original_max_positions=64),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize(("head_dim", "theta"), [(2, 10000.0), (8, 10000.0), (64, 500000.0), (6, 10.0)])
def test_rotary(scaling: LinearScaling | Llama3Scaling | None, head_dim: int, theta: float) -> None:
    block = RotaryPositions(head_dim, theta=theta, scaling=scaling)
    x = loops.states(2, 3, 4, head_dim)
    frequencies = [stretched(theta ** (-2 * i / head_dim), scaling) for i in range(head_dim // 2)]
    wanted = np.zeros(x.shape)
    for row in range(2):
        for head in range(3):
            for time in range(4):
                position = int(POSITIONS[row, time])
                wanted[row, head, time] = loops.rotated(x[row, head, time].numpy(), position, frequencies)
    assert loops.difference(block(POSITIONS, torch.float64)(x), wanted) <= loops.TOLERANCE


def test_llama3_scaling_touches_short_middle_and_long_waves_differently() -> None:
    """The cases above would prove little if all frequencies fell into one of the three ranges."""
    scaling = Llama3Scaling()
    plain = [500000.0 ** (-2 * i / 64) for i in range(32)]
    ratios = {round(stretched(each, scaling) / each, 6) for each in plain}
    assert 1.0 in ratios
    assert 0.125 in ratios
    assert any(0.125 < each < 1.0 for each in ratios)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 4000), st.integers(0, 4000), st.integers(0, 500))
def test_rotated_products_depend_on_distance_only(a: int, b: int, shift: int) -> None:
    block = RotaryPositions(8)
    q, k = loops.states(1, 1, 1, 8, seed=1), loops.states(1, 1, 1, 8, seed=2)

    def product(i: int, j: int) -> float:
        turn = [block(torch.tensor([[each]]), torch.float64) for each in (i, j)]
        return float((turn[0](q) * turn[1](k)).sum())

    assert abs(product(a, b) - product(a + shift, b + shift)) <= 1e-9


def test_rotary_tables_grow_and_are_shared() -> None:
    block = RotaryPositions(8)
    far = block(torch.tensor([[5000]]), torch.float64)
    assert loops.difference(far.cos[0, 0, 0, :4], [math.cos(5000 * 10000 ** (-i / 4)) for i in range(4)]) <= 1e-10
    near = block(torch.tensor([[1]]), torch.float64)
    assert loops.difference(near.sin[0, 0, 0, :4], [math.sin(10000 ** (-i / 4)) for i in range(4)]) <= 1e-10
    assert (
        block._table(10, torch.float64, torch.device("cpu"))[0]
        is block._table(4000, torch.float64, torch.device("cpu"))[0]
    )
    assert not list(block.parameters())
    assert not block.state_dict()


def test_tables_made_in_inference_mode_can_be_trained_with() -> None:
    block = RotaryPositions(8)
    with torch.inference_mode():
        block(torch.tensor([[0, 1]]), torch.float32)
    x = torch.randn(1, 1, 2, 8, requires_grad=True)
    block(torch.tensor([[0, 1]]), torch.float32)(x).sum().backward()
    assert x.grad is not None


def test_scaling_refuses_nonsense() -> None:
    with pytest.raises(ConfigError, match="high_freq_factor"):
        Llama3Scaling(low_freq_factor=4.0, high_freq_factor=4.0)
    with pytest.raises(ConfigError, match="too small"):
        LinearScaling(factor=0.5)


def bucket(distance: int, buckets: int, most: int, bidirectional: bool) -> int:
    """The bucket of key position minus query position, as section 2.1 of T5 and its released code count them."""
    base = 0
    if bidirectional:
        buckets //= 2
        base = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(0, -distance)
    exact = buckets // 2
    if distance < exact:
        return base + distance
    grown = exact + int(math.log(distance / exact) / math.log(most / exact) * (buckets - exact))
    return base + min(grown, buckets - 1)


@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 20), (4, 7), (32, 100)])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("offset", [0, 37])
def test_relative(buckets: int, most: int, bidirectional: bool, offset: int) -> None:
    block = loops.randomised(RelativePositions(3, buckets=buckets, max_distance=most, bidirectional=bidirectional))
    found = block(40, 90, offset=offset)
    wanted = np.zeros((1, 3, 40, 90))
    for query in range(40):
        for key in range(90):
            index = bucket(key - query - offset, buckets, most, bidirectional)
            wanted[0, :, query, key] = block.embedding.weight[index].detach().numpy()
    assert loops.difference(found, wanted) == 0


@pytest.mark.parametrize("parts", ["token", "token position", "token segment norm", "token position segment norm"])
@pytest.mark.parametrize("given_segments", [True, False])
def test_embeddings(parts: str, given_segments: bool) -> None:
    block = loops.randomised(
        Embeddings(
            torch.nn.Embedding(9, 6),
            position=LearnedPositions(1000, 6) if "position" in parts else None,
            segment=torch.nn.Embedding(3, 6) if "segment" in parts else None,
            norm=LayerNorm(6, eps=1e-12) if "norm" in parts else None,
            dropout=0.3,
        )
    )
    ids, segments = torch.tensor([[1, 8, 0, 3], [2, 2, 7, 5]]), torch.tensor([[0, 2, 1, 0], [1, 1, 0, 2]])
    p = loops.parameters(block)
    wanted = np.zeros((2, 4, 6))
    for row in range(2):
        for time in range(4):
            wanted[row, time] = p["token.weight"][ids[row, time]]
            if "position" in parts:
                wanted[row, time] += p["position.weight"][POSITIONS[row, time]]
            if "segment" in parts:
                wanted[row, time] += p["segment.weight"][segments[row, time] if given_segments else 0]
    if "norm" in parts:
        wanted = loops.layer_norm(wanted, p, "norm", 1e-12)
    found = block(ids, positions=POSITIONS, segments=segments if given_segments else None)
    assert loops.difference(found, wanted) <= loops.TOLERANCE
