"""The loss over a vocabulary in chunks: the same as with all logits at once, in value and gradients."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tsumugu.blocks.cross_entropy import linear_cross_entropy


def sample(rows, vocab, dim, *, dtype=torch.float64, bias=True, seed=0, spread=1.0):
    chance = torch.Generator().manual_seed(seed)
    hidden, weight = (
        torch.randn(size, dim, generator=chance, dtype=torch.float64).mul(spread).to(dtype) for size in (rows, vocab)
    )
    offset = torch.randn(vocab, generator=chance, dtype=torch.float64).to(dtype) if bias else None
    targets = torch.randint(vocab, (rows,), generator=chance)
    given = [each if each is None else each.requires_grad_() for each in (hidden, weight, offset)]
    return *given, targets


def plain(hidden, weight, bias, targets, softcap=None):
    logits = functional.linear(hidden, weight, bias).double()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return functional.cross_entropy(logits, targets, reduction="sum")


def gradients(loss, inputs):
    return torch.autograd.grad(loss, [each for each in inputs if each is not None])


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_finite_differences(chunk, bias, softcap):
    *inputs, targets = sample(7, 11, 5, bias=bias)
    inputs = tuple(each for each in inputs if each is not None)

    def loss(hidden, weight, offset=None):
        return linear_cross_entropy(hidden, weight, offset, targets, chunk=chunk, softcap=softcap)

    assert torch.autograd.gradcheck(loss, inputs)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    vocab=st.integers(1, 60),
    dim=st.integers(1, 20),
    chunk=st.integers(1, 50),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_chunk_is_as_with_all_logits(rows, vocab, dim, chunk, bias, seed):
    *inputs, targets = sample(rows, vocab, dim, bias=bias, seed=seed)
    ours, theirs = linear_cross_entropy(*inputs, targets, chunk=chunk), plain(*inputs, targets)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-10)
    for mine, expected in zip(gradients(3 * ours, inputs), gradients(3 * theirs, inputs), strict=True):
        assert torch.allclose(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_in_float32_it_is_within_a_millionth(bias):
    *inputs, targets = sample(300, 1000, 64, dtype=torch.float32, bias=bias, spread=0.4)
    ours, theirs = linear_cross_entropy(*inputs, targets, chunk=70), plain(*inputs, targets)
    assert ours.dtype == torch.float32
    assert abs(ours.item() / theirs.item() - 1) < 1e-6
    for mine, expected in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        assert (mine - expected).abs().max() < 1e-6 * expected.abs().max() * 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_in_16_bits_the_softmax_is_that_of_32(dtype, bias):
    *inputs, targets = sample(40, 3000, 16, dtype=dtype, bias=bias, spread=0.5)
    exact = [None if each is None else each.detach().double().requires_grad_() for each in inputs]
    ours, theirs = linear_cross_entropy(*inputs, targets, chunk=16), plain(*exact, targets)
    assert ours.dtype == torch.float32
    assert abs(ours.item() / theirs.item() - 1) < 2e-3
    for mine, expected in zip(gradients(ours, inputs), gradients(theirs, exact), strict=True):
        assert mine.dtype == dtype
        assert (mine - expected).abs().max() < 0.02 * expected.abs().max()


def test_under_autocast_products_are_narrow_and_gradients_keep_their_type():
    *inputs, targets = sample(40, 300, 16, dtype=torch.float32, spread=0.5)
    wide = linear_cross_entropy(*inputs, targets)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = linear_cross_entropy(*inputs, targets)
    assert narrow.item() != wide.item()
    assert abs(narrow.item() / wide.item() - 1) < 2e-3
    for mine, expected in zip(gradients(narrow, inputs), gradients(wide, inputs), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - expected).abs().max() < 0.02 * expected.abs().max()


def test_large_logits_neither_overflow_nor_vanish():
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, None, torch.tensor([2, 2]))
    loss.backward()
    assert loss.item() == 600.0
    assert hidden.grad.tolist() == [[2.0], [0.0]]
    assert weight.grad.tolist() == [[300.0], [0.0], [-300.0]]


def test_nothing_asked_costs_nothing_and_has_gradients_of_zero():
    *inputs, _ = sample(5, 7, 3)
    none = torch.zeros(0, dtype=torch.int64)
    loss = linear_cross_entropy(inputs[0][:0], *inputs[1:], none)
    assert loss.item() == 0.0
    assert all((each == 0).all() for each in gradients(loss, inputs))


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_where_nothing_is_asked_for_nothing_is_lost_or_taught(softcap):
    *inputs, targets = sample(20, 30, 8)
    asked = torch.arange(20) % 3 != 1
    some = torch.where(asked, targets, -100)
    ours = linear_cross_entropy(*inputs, some, chunk=7, softcap=softcap)
    theirs = linear_cross_entropy(inputs[0][asked], *inputs[1:], targets[asked], softcap=softcap)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    for mine, expected in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        assert torch.allclose(mine, expected, rtol=1e-10, atol=1e-12)


def test_only_what_is_trained_has_gradients():
    *inputs, targets = sample(5, 7, 3)
    hidden, weight, bias = (each.detach() for each in inputs)
    assert not linear_cross_entropy(hidden, weight, bias, targets).requires_grad
    weight.requires_grad_()
    linear_cross_entropy(hidden, weight, bias, targets).backward()
    assert torch.allclose(weight.grad, gradients(plain(*inputs, targets), inputs)[1])
    assert hidden.grad is None


def test_evaluation_gives_the_same_number_without_gradients():
    *inputs, targets = sample(50, 30, 8, dtype=torch.float32)
    trained = linear_cross_entropy(*inputs, targets, chunk=16)
    with torch.no_grad():
        measured = linear_cross_entropy(*inputs, targets, chunk=16)
    assert not measured.requires_grad
    assert measured.item() == trained.item()


def test_a_loss_can_be_read_backwards_twice():
    *inputs, targets = sample(5, 7, 3)
    loss = linear_cross_entropy(*inputs, targets)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(2 * loss, inputs)
    assert all(torch.equal(2 * one, two) for one, two in zip(first, second, strict=True))


MEMORY = """
import resource, sys, torch
from tsumugu.blocks.cross_entropy import linear_cross_entropy
torch.set_num_threads(1)
hidden, weight = torch.randn(4096, 64, requires_grad=True), torch.randn(32000, 64, requires_grad=True)
targets = torch.randint(32000, (4096,))
linear_cross_entropy(hidden[:8], weight, None, targets[:8]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear_cross_entropy(hidden, weight, None, targets).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_logits_are_never_there_at_once():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120, check=True)
    unit = 1024 if sys.platform != "darwin" else 1
    assert int(done.stdout) * unit < 48 << 20, f"all logits together are {4096 * 32000 * 4 >> 20} MiB"
