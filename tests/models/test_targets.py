"""Targets: the loss is the sum over what is asked for, with the gradients that all logits would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from tsumugu.core.errors import InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.models.targets import ROUND, summed_loss

SIZES = {"vocab_size": 61, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
CASES = {
    "gpt2 causal-lm": {"intermediate_size": 24, "max_positions": 16},
    "gpt2 causal-lm untied": {"intermediate_size": 24, "max_positions": 16, "tie_embeddings": False},
    "llama causal-lm": {"intermediate_size": 24, "max_positions": 16, "num_kv_heads": 1},
    "gemma3 causal-lm": {
        "intermediate_size": 24,
        "max_positions": 16,
        "window": 4,
        "head_dim": 8,
        "logit_softcap": 3.0,
    },
    "gpt causal-lm": {"max_positions": 16},
    "gpt3 causal-lm": {"intermediate_size": 24, "max_positions": 16, "band": 4},
    "bert masked-lm": {"intermediate_size": 24, "max_positions": 16},
    "bert pretraining": {"intermediate_size": 24, "max_positions": 16},
    "roberta masked-lm": {"intermediate_size": 24, "max_positions": 20},
    "electra masked-lm": {"intermediate_size": 24, "max_positions": 16, "embedding_size": 12},
    "t5 seq2seq-lm": {"intermediate_size": 24, "head_dim": 8},
    "t5 seq2seq-lm untied": {"intermediate_size": 24, "head_dim": 8, "tie_embeddings": False, "scale_outputs": False},
}
IGNORE = -100
BATCH, TIME = 3, 12


def build(case: str) -> torch.nn.Module:
    """A small model in float64, without dropout, with weights of some spread."""
    family, head = case.split()[:2]
    record = FAMILIES[family]
    model = record.build(record.config_class(**SIZES, **CASES[case]), head).double().eval()
    chance = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(torch.randn(each.shape, generator=chance, dtype=torch.float64) * 0.2 + (each.dim() == 1))
    return model


def texts(share: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets `[batch, time]`, of which `share` are asked for."""
    chance = torch.Generator().manual_seed(3)
    ids, targets = (torch.randint(4, 61, (BATCH, TIME), generator=chance) for _ in range(2))
    return ids, targets.masked_fill(torch.rand(targets.shape, generator=chance) >= share, IGNORE)


def plain(model: torch.nn.Module, ids: torch.Tensor, targets: torch.Tensor, **options: object) -> torch.Tensor:
    if model.head_name == "seq2seq-lm":
        options["decoder_input_ids"] = model.shifted(targets)
    logits = model(ids, **options).logits
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_loss_and_its_gradients_are_those_of_all_logits(case, share):
    model = build(case)
    ids, targets = texts(share)
    expected = plain(model, ids, targets)
    output = model(ids, targets=targets)
    assert output.logits is None
    assert torch.allclose(output.loss, expected, rtol=1e-12, atol=1e-12)
    wanted, found = gradients(model, expected), gradients(model, output.loss)
    extra = {name for name in wanted if name.startswith(("pooler", "next_sentence"))}
    assert wanted.keys() - extra == found.keys()
    for name, each in found.items():
        assert torch.allclose(each, wanted[name], rtol=1e-9, atol=1e-10), name


@pytest.mark.parametrize("case", ["llama causal-lm", "bert masked-lm", "t5 seq2seq-lm"])
def test_padding_and_packed_texts_go_with_targets(case):
    model = build(case)
    ids, targets = texts()
    real = torch.ones_like(ids)
    real[1, 7:] = 0
    assert torch.allclose(
        model(ids, real, targets=targets).loss, plain(model, ids, targets, attention_mask=real), rtol=1e-12
    )
    if case.startswith("t5"):
        return
    documents = torch.arange(TIME).div(5, rounding_mode="floor").expand(BATCH, TIME)
    expected = plain(model, ids, targets, document_ids=documents)
    assert torch.allclose(model(ids, document_ids=documents, targets=targets).loss, expected, rtol=1e-12)


def test_the_head_runs_on_what_is_asked_for_only():
    model = build("bert masked-lm")
    seen = []
    model.head.dense.register_forward_hook(lambda module, given, made: seen.append(len(made)))
    ids, targets = texts()
    model(ids, targets=targets)
    assert seen == [int((targets != IGNORE).sum())]


def test_evaluation_gives_the_same_sum():
    model = build("gpt2 causal-lm")
    ids, targets = texts()
    with torch.no_grad():
        measured = model(ids, targets=targets).loss
    assert measured.item() == model(ids, targets=targets).loss.item()


def test_states_can_be_asked_for_beside_targets():
    model = build("electra masked-lm")
    ids, targets = texts()
    states = model(ids, targets=targets, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert torch.equal(states[-1], model(ids, output_hidden_states=True).hidden_states[-1])


def test_next_sentences_are_added_as_a_sum():
    model = build("bert pretraining")
    ids, targets = texts()
    follows = torch.tensor([0, IGNORE, 1])
    output = model(ids, targets=targets, next_sentence_label=follows)
    whole = model(ids)
    pair = functional.cross_entropy(whole.next_sentence_logits, follows, ignore_index=IGNORE, reduction="sum")
    assert torch.allclose(output.loss, plain(model, ids, targets) + pair, rtol=1e-12)
    assert torch.equal(output.next_sentence_logits, whole.next_sentence_logits)


def test_a_decoder_may_be_given_what_was_written():
    model = build("t5 seq2seq-lm")
    ids, targets = texts()
    written = torch.randint(4, 61, targets.shape, generator=torch.Generator().manual_seed(1))
    logits = model(ids, decoder_input_ids=written).logits
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    found = model(ids, decoder_input_ids=written, targets=targets)
    assert torch.allclose(found.loss, expected, rtol=1e-12)
    assert found.logits is None
    assert found.last_hidden_state is None


def test_targets_come_in_any_format():
    model = build("gpt2 causal-lm")
    ids, targets = texts()
    expected = model(ids, targets=targets).loss.item()
    assert model(ids.numpy(), targets=targets.numpy()).loss.item() == expected
    assert model(ids, targets=targets.tolist()).loss.item() == expected
    assert model(ids, targets=targets.numpy().astype(np.int32)).loss.item() == expected


@pytest.mark.parametrize("case", ["gpt2 causal-lm", "bert masked-lm", "t5 seq2seq-lm"])
def test_what_is_refused(case):
    model = build(case)
    ids, targets = texts()
    with pytest.raises(InputError, match="labels and targets say the same"):
        model(ids, labels=targets, targets=targets)
    for wrong in (61, -1, -99):
        strange = targets.clone()
        strange[1, 2] = wrong
        with pytest.raises(InputError, match=f"target {wrong} is outside the vocabulary of 61"):
            model(ids, targets=strange)
    given = {"decoder_input_ids": ids} if case.startswith("t5") else {}
    with pytest.raises(InputError, match=r"targets: shape \[3, 11\] is not \[3, 12\]"):
        model(ids, targets=targets[:, :-1], **given)


@pytest.mark.parametrize(("family", "head"), [("gpt2", "base"), ("bert", "token-classification"), ("t5", "encoder")])
def test_heads_that_predict_no_tokens_take_none(family, head):
    record = FAMILIES[family]
    model = record.build(record.config_class(**SIZES), head)
    with pytest.raises(InputError, match=f"the head {head} predicts no tokens"):
        model([[5, 6]], targets=[[6, 7]])


def test_in_bfloat16_on_a_cpu_the_head_is_given_few_different_shapes():
    """Each shape is compiled and kept there: a run of many would grow without end."""
    head = build("bert masked-lm").float().head
    seen = set()
    head.dense.register_forward_pre_hook(lambda _, inputs: seen.add(len(inputs[0])))
    chance = torch.Generator().manual_seed(5)
    states = torch.randn(10, 20, 16, generator=chance)
    for asked in range(40, 60):
        targets = torch.full((200,), IGNORE)
        targets[torch.randperm(200, generator=chance)[:asked]] = 7
        exact = summed_loss(head, states, targets.view(10, 20))
        with torch.autocast("cpu", torch.bfloat16):
            narrow = summed_loss(head, states, targets.view(10, 20))
        assert abs(narrow.item() / exact.item() - 1) < 0.01
    assert {each for each in seen if each not in range(40, 60)} == {ROUND}
