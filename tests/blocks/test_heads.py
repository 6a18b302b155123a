"""Heads, pooling and losses against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.blocks import loops

from tsumugu.blocks.heads import (
    IGNORE,
    ClassificationHead,
    LanguageModelHead,
    MaskedLanguageModelHead,
    Pooler,
    SpanHead,
    cross_entropy,
    last_real,
    pool,
    shifted_cross_entropy,
)
from tsumugu.blocks.normalization import LayerNorm
from tsumugu.core.pooling import POOLING_MODES
from tsumugu.core.pooling import pool as pool_arrays

X = loops.states(3, 4, 6)
REAL = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])


def test_language_model_head() -> None:
    block = loops.randomised(LanguageModelHead(6, 9, bias=False))
    p = {"head.weight": block.weight.detach().numpy()}
    assert loops.difference(block(X), loops.linear(X.numpy(), p, "head")) <= loops.TOLERANCE


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new"])
def test_masked_language_model_head(activation: str) -> None:
    block = loops.randomised(MaskedLanguageModelHead(6, 9, activation=activation, norm=LayerNorm(6, eps=1e-12)))
    p = loops.parameters(block)
    bent = loops.activated(loops.linear(X.numpy(), p, "dense"), activation)
    wanted = loops.linear(loops.layer_norm(bent, p, "norm", 1e-12), p, "decoder")
    assert loops.difference(block(X), wanted) <= loops.TOLERANCE


def test_pooler() -> None:
    block = loops.randomised(Pooler(6))
    wanted = loops.activated(loops.linear(X[:, 0].numpy(), loops.parameters(block), "dense"), "tanh")
    assert loops.difference(block(X), wanted) <= loops.TOLERANCE


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("labels", [1, 2, 7])
def test_classification_head(bias: bool, labels: int) -> None:
    block = loops.randomised(ClassificationHead(6, labels, bias=bias, dropout=0.4))
    p = loops.parameters(block)
    for x in (X, X[:, 0]):
        assert loops.difference(block(x), loops.linear(x.numpy(), p, "classifier")) <= loops.TOLERANCE


def test_span_head() -> None:
    block = loops.randomised(SpanHead(6))
    wanted = loops.linear(X.numpy(), loops.parameters(block), "spans")
    for ours, which in zip(block(X), (0, 1), strict=True):
        assert loops.difference(ours, wanted[..., which]) <= loops.TOLERANCE


def pooled(states: np.ndarray, mode: str) -> list[float]:
    """One vector from the states of real tokens, `[tokens, dim]`."""
    columns = [[float(each) for each in column] for column in states.T]
    divisor = {"mean": len(states), "mean_sqrt_len": math.sqrt(len(states))}
    match mode:
        case "cls":
            return [column[0] for column in columns]
        case "last":
            return [column[-1] for column in columns]
        case "max":
            return [max(column) for column in columns]
        case _:
            return [math.fsum(column) / divisor[mode] for column in columns]


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.int32])
def test_pooling(mode: str, dtype: torch.dtype) -> None:
    wanted = [pooled(X[row][REAL[row].bool()].numpy(), mode) for row in range(3)]
    assert loops.difference(pool(X, REAL.to(dtype), mode), wanted) <= loops.TOLERANCE  # type: ignore[arg-type]
    arrays = pool_arrays(X.numpy(), REAL.numpy(), mode)  # type: ignore[arg-type]
    assert np.abs(arrays - np.stack(wanted)).max() <= 1e-6


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pooling_a_text_without_tokens_spoils_no_other(mode: str) -> None:
    real = REAL.clone()
    real[1] = 0
    found = pool(X, real, mode)  # type: ignore[arg-type]
    whole = pool(X, REAL, mode)  # type: ignore[arg-type]
    assert torch.equal(found[[0, 2]], whole[[0, 2]])
    assert not found.isnan().any()


def test_last_real() -> None:
    assert last_real(REAL).tolist() == [3, 1, 3]
    assert last_real(REAL.bool()).tolist() == [3, 1, 3]
    assert last_real(torch.tensor([[1, 0, 1, 0]])).tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_cross_entropy(dtype: torch.dtype) -> None:
    logits = loops.states(2, 4, 5)
    labels = torch.tensor([[1, IGNORE, 0, 4], [IGNORE, 3, 3, IGNORE]], dtype=dtype)
    wanted = loops.cross_entropy(logits.numpy(), labels.numpy())
    assert loops.difference(cross_entropy(logits, labels), wanted) <= loops.TOLERANCE
    shifted = loops.cross_entropy(logits[:, :-1].numpy(), labels[:, 1:].numpy())
    assert loops.difference(shifted_cross_entropy(logits, labels), shifted) <= loops.TOLERANCE
    of_texts = loops.cross_entropy(logits[:, 0].numpy(), labels[:, 2].numpy())
    assert loops.difference(cross_entropy(logits[:, 0], labels[:, 2]), of_texts) <= loops.TOLERANCE


def test_cross_entropy_is_computed_in_float32() -> None:
    logits = (20 * loops.states(64, 500)).to(torch.bfloat16)
    labels = torch.arange(64)
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    assert abs(float(loss) - loops.cross_entropy(logits.double().numpy(), labels.numpy())) <= 1e-4
