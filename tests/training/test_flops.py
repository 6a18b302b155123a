"""Operations are counted as PyTorch counts them while it really multiplies, to the last one, in every family."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from tsumugu.core.errors import InputError, UnknownNameError
from tsumugu.core.registry import FAMILIES
from tsumugu.training.conventions import CONVENTIONS, Shape, conventional_flops
from tsumugu.training.flops import Flops, causal_pairs, count_flops, flops_per_token, generation_flops

TIME, STEPS, BATCH = 11, 7, 3
TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 44,
    "max_positions": 64,
    "embedding_size": 24,
    "band": 3,
}
"""Values for whichever of these a family's configuration has."""
HEADS = [(family, head) for family in FAMILIES for head in FAMILIES[family].heads]


def built(family: str, head: str, **values: Any) -> Any:
    kind = FAMILIES[family].config_class
    known = {each.name for each in fields(kind)}
    values = {key: each for key, each in {**TINY, **values}.items() if key in known}
    model = FAMILIES[family].build(kind(**values), head)
    torch.manual_seed(0)
    for each in model.parameters():
        torch.nn.init.normal_(each, std=0.02)
    return model


def ids(length: int = TIME) -> torch.Tensor:
    return torch.randint(4, 99, (BATCH, length), generator=torch.Generator().manual_seed(1))


def measured(model: Any, **inputs: Any) -> tuple[float, float]:
    """Operations of the forward and of the backward pass of the whole batch, with scores written out in full."""
    if getattr(model, "decoder_positions", None) is not None and model.decoder is not None:
        inputs["decoder_input_ids"] = ids(STEPS)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(ids(), **inputs)
        forward = counter.get_total_flops()
        found = [each for each in output.to_tuple() if isinstance(each, torch.Tensor) and each.requires_grad]
        sum((each.float().sum() for each in found), torch.zeros(())).backward()
    return forward, counter.get_total_flops() - forward


@pytest.mark.parametrize(("family", "head"), HEADS, ids=[" ".join(each) for each in HEADS])
def test_every_operation_is_counted(family: str, head: str) -> None:
    model = built(family, head).train()
    if getattr(model, "generator", None) is not None:  # called with ids alone, a pair is its discriminator
        pair = count_flops(model, TIME)
        apart = [count_flops(each, TIME).training() for each in (model.generator, built(family, "replaced-token"))]
        assert pair.training() == apart[0] + apart[1]
        return
    found = count_flops(model, TIME, target=STEPS)
    forward, backward = measured(model)
    assert (BATCH * found.forward.total, BATCH * found.backward.total) == (forward, backward)
    assert found.tokens == TIME + (STEPS if family == "t5" and head != "encoder" else 0)


@pytest.mark.parametrize(
    "trained",
    [
        ("",),
        ("head",),
        ("embeddings",),
        ("decoder.layers.1",),
        ("decoder.layers.1.feed_forward",),
        ("decoder.layers.0.attention.query",),
        ("decoder.layers.0.attention.value",),
        ("decoder.layers.0.attention_norm",),
        ("decoder.layers.1.attention.output.bias",),
        ("decoder.norm",),
        (),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_frozen_parts_cost_no_gradients(family: str, trained: tuple[str, ...]) -> None:
    if family == "llama" and trained == ("decoder.layers.1.attention.output.bias",):
        trained = ("decoder.layers.1.attention.output",)
    model = built(family, "causal-lm", tie_embeddings=False).train()
    for name, each in model.named_parameters():
        each.requires_grad_(name.startswith(trained) if trained else False)
    found = count_flops(model, TIME)
    if not trained:
        assert found.backward.total == 0
        return
    forward, backward = measured(model)
    assert BATCH * found.forward.total == forward
    assert BATCH * found.backward.total == backward


def test_what_is_below_an_encoder_decoders_trained_part() -> None:
    model = built("t5", "seq2seq-lm", tie_embeddings=False).train()
    for name, each in model.named_parameters():
        each.requires_grad_(name.startswith("decoder.layers.2"))
    found = count_flops(model, TIME, target=STEPS)
    assert (BATCH * found.forward.total, BATCH * found.backward.total) == measured(model)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_full_recomputation(family: str) -> None:
    """PyTorch stops computing again at the last tensor it needs, which spares what narrows; without that we agree."""
    model = built(family, "base").train()
    stack = model.encoder if family == "bert" else model.decoder
    for layer in stack.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    found = count_flops(model, TIME)
    with set_checkpoint_early_stop(False):
        assert BATCH * found.training("full").total == sum(measured(model))
    narrows = sum(2 * TIME * layer.feed_forward.down.weight.numel() for layer in stack.layers)
    # Dropout and a norm after the network need what it gives, so there it is computed again after all.
    spared = narrows if family == "llama" else 0
    assert BATCH * (found.training("full").total - spared) == sum(measured(model))


def test_parts() -> None:
    """By hand, for one token of GPT-2's shape: width 32, 2 layers, 4 heads of 8, networks of 44, 99 words."""
    count = count_flops(built("gpt2", "causal-lm"), TIME)
    assert count.forward == Flops(
        projections=TIME * 2 * 2 * 4 * 32 * 32,
        scores=2 * 4 * TIME * TIME * 32,
        feed_forward=TIME * 2 * 2 * 2 * 32 * 44,
        head=TIME * 2 * 32 * 99,
    )
    assert count.backward == count.forward * 2
    assert count.training("selective") == count.training() + Flops(scores=count.forward.scores)
    assert count.training().as_dict()["total"] == 3 * count.forward.total
    assert flops_per_token(built("gpt2", "causal-lm"), TIME) == 3 * count.forward.total / TIME


def test_a_head_that_is_asked_less_costs_less() -> None:
    model = built("bert", "masked-lm")
    whole, part = (count_flops(model, TIME, asked=share).forward for share in (1.0, 0.25))
    assert part.head == whole.head / 4
    assert part.layers == whole.layers


@given(tokens=st.integers(1, 40), window=st.none() | st.integers(1, 50))
def test_pairs_that_masks_let_through(tokens: int, window: int | None) -> None:
    seen = [(i, j) for i in range(tokens) for j in range(i + 1) if window is None or i - j < window]
    assert causal_pairs(tokens, window) == len(seen)


def test_masked_pairs() -> None:
    causal = count_flops(built("gpt2", "causal-lm"), TIME, masked=True).forward
    assert causal.scores == 2 * 4 * causal_pairs(TIME) * 32
    banded = count_flops(built("gpt3", "causal-lm"), TIME, masked=True).forward
    assert banded.scores == 4 * (causal_pairs(TIME) + causal_pairs(TIME, 3)) * 32
    read = count_flops(built("t5", "seq2seq-lm", head_dim=8), TIME, target=STEPS, masked=True).forward
    assert read.scores == 4 * 32 * (2 * TIME**2 + 3 * (causal_pairs(STEPS) + TIME * STEPS))


@pytest.mark.parametrize("family", ["gpt2", "gpt3", "llama"])
def test_writing_with_a_cache(family: str) -> None:
    model, prompt, new = built(family, "causal-lm", band=None).eval(), 6, 5
    found = generation_flops(model, prompt, new)
    cache = model.new_cache(1, prompt + new)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids()[:1, :prompt], cache=cache, logits_to_keep=1)
        for step in range(new - 1):
            model(ids()[1:2, step : step + 1], cache=cache)
    # The kernel multiplies the whole square of the prompt.
    square = 2 * 4 * (prompt**2 - causal_pairs(prompt)) * 32
    assert found.total + square == counter.get_total_flops()
    assert generation_flops(model, prompt, 1).head == 2 * 32 * 99


def test_writing_with_an_encoder_decoder() -> None:
    model, prompt, new = built("t5", "seq2seq-lm", head_dim=8).eval(), 6, 5
    session = model.open_session(batch=1, capacity=32)
    assert session is not None
    states = count_flops(model, prompt, target=new, masked=True).forward
    assert generation_flops(model, prompt, new) == states


@pytest.mark.parametrize("name", ["palm", "megatron", "kaplan", "6n"])
def test_conventions_against_the_count(name: str) -> None:
    """On a network of GPT's form each formula is our count, but for what it leaves out or puts in."""
    model = built("megatron", "causal-lm", vocab_size=128, intermediate_size=None)
    shape, count = Shape.of(model), count_flops(model, TIME)
    training, tokens = count.training(), count.tokens
    given = conventional_flops(name, model, TIME)
    others = shape.parameters - shape.matrix_parameters - shape.vocab * shape.width  # positions, norms and biases
    match name:
        case "6n":
            assert given == pytest.approx((training.total - training.scores) / tokens + 6 * others)
        case "palm":
            assert given == pytest.approx(training.total / tokens + 6 * others)
        case "kaplan":
            assert given == pytest.approx((training.projections + training.feed_forward + training.scores / 2) / tokens)
        case "megatron":
            assert given == pytest.approx(training.total / tokens)
            full = count.training("full").total / tokens
            assert conventional_flops(name, model, TIME, "full") == pytest.approx(full)
            selective = conventional_flops(name, model, TIME, "selective") * tokens
            assert selective == pytest.approx(training.total + 3 * count.forward.scores)


def test_every_convention_has_its_source() -> None:
    assert all("Source:" in (each.__doc__ or "") for each in CONVENTIONS.values())


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="at least one token"):
        count_flops(built("gpt2", "causal-lm"), 0)
    with pytest.raises(InputError, match="not counted"):
        count_flops(torch.nn.Linear(2, 2), 4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="writes no text"):
        generation_flops(built("bert", "masked-lm"), 4, 4)
    with pytest.raises(InputError, match="writes no text"):
        generation_flops(built("gpt2", "sequence-classification"), 4, 4)
    with pytest.raises(UnknownNameError, match="did you mean 'kaplan'"):
        conventional_flops("kaplann", built("gpt2", "causal-lm"), 4)
