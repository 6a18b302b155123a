"""Dropout: how often, how much, and what comes back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tsumugu.blocks.attention import Attention
from tsumugu.blocks.dropout import Dropout, dropout
from tsumugu.blocks.mask import EVERYTHING, causal_mask, padding_mask


@pytest.mark.parametrize("p", [0.0001, 0.1, 0.5, 0.9])
def test_as_often_as_asked_and_with_the_same_mean(p):
    torch.manual_seed(0)
    x = torch.ones(2_000_001)
    found = dropout(x, p)
    gone = float((found == 0).float().mean())
    assert gone == pytest.approx(p, abs=4 * (p * (1 - p) / len(x)) ** 0.5 + 1e-5)
    assert set(found.unique().tolist()) == {0.0, found.max().item()}
    assert found.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)
    assert float(found.mean()) == pytest.approx(1, abs=5 * (p / (1 - p) / len(x)) ** 0.5)


def test_neighbours_and_rows_are_independent():
    torch.manual_seed(1)
    kept = (dropout(torch.ones(4_000_000), 0.3) != 0).float() - 0.7
    for lag in (1, 2, 3, 4, 5, 8, 64):
        assert abs(float((kept[lag:] * kept[:-lag]).mean())) < 5 * 0.21 / len(kept) ** 0.5


@given(st.lists(st.integers(0, 5), max_size=3), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_any_shape_and_type(shape, dtype):
    x = torch.ones(shape, dtype=dtype)
    found = dropout(x, 0.5)
    assert (found.shape, found.dtype) == (x.shape, dtype)
    assert set(found.flatten().tolist()) <= {0.0, 2.0}


def test_what_was_dropped_gets_no_gradient_and_the_rest_its_share():
    torch.manual_seed(0)
    x = torch.randn(50, 7, requires_grad=True)
    found = dropout(x, 0.25)
    found.square().sum().backward()
    share = torch.where(found == 0, 0.0, 4 / 3)
    assert torch.allclose(found, x * share, rtol=1e-4)
    assert torch.allclose(x.grad, 2 * x * share**2, rtol=1e-4)


def test_the_same_seed_drops_the_same():
    def drawn() -> torch.Tensor:
        torch.manual_seed(5)
        return dropout(torch.ones(999), 0.5)

    assert torch.equal(drawn(), drawn())
    assert not torch.equal(drawn(), dropout(torch.ones(999), 0.5))


def test_only_while_training_and_all_of_it_with_chance_one():
    x = torch.randn(30)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(30))


@pytest.mark.parametrize("name", ["all", "causal", "padded"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_without_what_is_dropped_is_torchs(name, kv_heads):
    """A chance so small that nothing is dropped: the way by steps gives what torch's own kernel gives."""
    torch.manual_seed(0)
    real = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    mask = {"all": EVERYTHING, "causal": causal_mask(9), "padded": padding_mask(real)}[name]
    attention = Attention(32, 4, num_kv_heads=kv_heads, dropout=1e-12)
    x = torch.randn(2, 9, 32, requires_grad=True)
    slow, quick = attention.eval()(x, mask=mask), attention.train()(x, mask=mask)
    assert torch.allclose(slow, quick / (65536 / 65535), atol=2e-5)
    first, second = (torch.autograd.grad(each.square().sum(), x)[0] for each in (slow, quick))
    assert functional.cosine_similarity(first.flatten(), second.flatten(), dim=0) > 0.9999
