"""Memory by part: the papers' equations to the byte, and what PyTorch really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.training.published import built

from tsumugu.core.errors import ConfigError
from tsumugu.core.registry import FAMILIES
from tsumugu.training.memory import Footprint, Layout, Run, Setup, layer_activations, optimizer_states
from tsumugu.training.optimizers import OptimizerConfig, build_optimizer

# Megatron's GPT-3 and MT-NLG, as Korthikanti et al. 2022 have them in table 3.
GPT3 = {"vocab_size": 51200, "band": None}
PAPER: dict[str, Any] = {"precision": "fp16", "fused_attention": False, "full_logits": True, "context": 2048}


def gpt3(batch: int = 64, **setup: Any) -> Footprint:
    return Footprint(built("gpt3-175b", tuple(GPT3.items())), Setup(**{**PAPER, "batch": batch, **setup}))


def mt_nlg(**setup: Any) -> Footprint:
    return Footprint(built("megatron-530b"), Setup(**{**PAPER, "batch": 280, **setup}))


def per_layer(footprint: Footprint, layout: Layout) -> float:
    (run,) = footprint.runs
    return layer_activations(run, footprint.setup, layout)


@pytest.mark.parametrize("tensor", [1, 8])
def test_the_equations_for_one_layer(tensor: int) -> None:
    """Korthikanti et al. 2022, equations 1, 2, 4 and 6, with s, h and a of GPT-3."""
    s, h, a = 2048, 12288, 96
    scores = 5 * a * s / h
    assert scores == 80  # so says section 5 of the paper
    apart, together = gpt3(sequence_parallel=False), gpt3()
    none, some, whole = (Layout(tensor=tensor, recompute=each) for each in ("none", "selective", "full"))
    assert per_layer(apart, none) == s * h * (10 + 24 / tensor + scores / tensor)
    assert per_layer(together, none) == s * h / tensor * (34 + scores)
    assert per_layer(apart, some) == s * h * (10 + 24 / tensor)
    assert per_layer(together, some) == s * h / tensor * 34
    assert per_layer(apart, whole) == s * h * 2
    assert per_layer(gpt3(fused_attention=True), none) == s * h / tensor * 34


def test_what_selective_recomputation_saves() -> None:
    """70 % of GPT-3's activations and 65 % of MT-NLG's: Korthikanti et al. 2022, section 5."""
    for footprint, saved in ((gpt3(), 0.70), (mt_nlg(), 0.65)):
        kept = per_layer(footprint, Layout(tensor=8, recompute="selective")) / per_layer(footprint, Layout(tensor=8))
        assert 1 - kept == pytest.approx(saved, abs=0.005)


def test_the_first_stage_of_a_pipeline() -> None:
    """Equation 5 and the input and output of section 4.3: s b h L / t (34 + 5 a s / h + p / L (1 if p = 1: …))."""
    s, h, layers, vocab, t = 2048, 12288, 96, 51200, 8
    deep = gpt3().activations(Layout(tensor=t, pipeline=8))
    assert deep == s * h * layers / t * (34 + 80) + s * h * 8 / t
    flat = gpt3().activations(Layout(tensor=t))
    # Their last term counts what enters the output layer twice, as what its norm reads and what it reads itself.
    assert flat == s * h * layers / t * (34 + 80 + 1 / layers + 4 / layers * (1 + vocab / h))


@pytest.mark.parametrize(
    ("zero", "gigabytes"),
    [(0, {1: 120, 64: 120}), (1, {4: 52.5, 64: 31.4, 1024: 30.1}), (2, {16: 21.6, 64: 16.6}), (3, {4: 30, 64: 1.88})],
)
def test_zero_shares_out(zero: int, gigabytes: dict[int, float]) -> None:
    """Rajbhandari et al. 2020, ZeRO, table 1: 7.5 billion parameters, 16 bytes for each."""
    footprint = Footprint(built("megatron-7.5b"), Setup(context=2048, batch=1024))
    for data, published in gigabytes.items():
        memory = footprint.of(Layout(data=data, zero=zero))
        states = memory.weights + memory.gradients + memory.optimizer + memory.master_weights
        assert states / footprint.parameters * 7.5 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama2-70b", "bert-base", "roberta-base", "t5-v1.1-base", "t5-base", "gpt3-13b"]
)
def test_all_parts_are_all_parameters(name: str) -> None:
    model = built(name)
    footprint = Footprint(model, Setup(context=128, target=64 if name.startswith("t5") else 0))
    assert footprint.weights(Layout()) == model.num_parameters()


def test_cutting_by_columns_and_rows() -> None:
    """By hand: a layer of GPT of width 4 with 2 heads and networks of 16, on two devices."""
    config = FAMILIES["gpt2"].config_class(vocab_size=10, hidden_size=4, num_layers=2, num_heads=2, max_positions=8)
    model = FAMILIES["gpt2"].build(config, "causal-lm")
    cut = 3 * (4 * 4 + 4) / 2 + 4 * 4 / 2 + (4 * 16 + 16) / 2 + 4 * 16 / 2
    whole = 4 + 4 + 2 * 8  # the biases after the sums, and two norms
    footprint = Footprint(model, Setup(context=8))
    assert footprint.weights(Layout(tensor=2)) == 2 * (cut + whole) + 10 * 4 / 2 + 8 * 4 + 8
    assert footprint.weights(Layout(tensor=2, pipeline=2)) == (cut + whole) + 10 * 4 / 2 + 8 * 4 + 8


def test_few_heads_of_keys_are_copied() -> None:
    config = FAMILIES["llama"].config_class(
        vocab_size=10, hidden_size=8, num_layers=1, num_heads=4, num_kv_heads=2, intermediate_size=8
    )
    footprint = Footprint(FAMILIES["llama"].build(config, "causal-lm"), Setup(context=8))
    keys = 2 * 8 * 4  # keys and values; two heads of two dimensions each
    parts = 2 * 64 + 3 * 64 + 2 * 80  # queries and output, the network, table and head
    assert footprint.weights(Layout(tensor=4)) == parts / 4 + keys / 2 + 3 * 8


KEPT = {
    "gpt2": {"embedding_dropout": 0.0, "residual_dropout": 0.0, "attention_dropout": 0.0},
    "bert": {"dropout": 0.0, "attention_dropout": 0.0, "intermediate_size": 256},
    "llama": {"num_kv_heads": 2, "intermediate_size": 176},
    "t5": {"dropout": 0.0, "head_dim": 16, "intermediate_size": 256},
    "t5 gated": {"dropout": 0.0, "head_dim": 16, "intermediate_size": 256, "gated": True, "activation": "gelu_new"},
}


@pytest.mark.parametrize("name", KEPT)
def test_what_pytorch_keeps(name: str) -> None:
    """The bytes that two more layers keep for the backward pass, weights aside, in float32 on the CPU."""
    family, batch, time = FAMILIES[name.split()[0]], 2, 64
    ids = torch.randint(4, 50, (batch, time))
    kept = []
    for layers in (2, 4):
        values = {"vocab_size": 50, "hidden_size": 64, "num_layers": layers, "num_heads": 4, **KEPT[name]}
        model = family.build(family.config_class(**values), "base").train()
        own = {each.untyped_storage().data_ptr() for each in model.parameters()}
        found: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor, own: set[int] = own, found: dict[int, Any] = found) -> torch.Tensor:
            if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in own:
                found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(ids, **({"decoder_input_ids": ids} if family.name == "t5" else {}))
        kept.append(sum(each.untyped_storage().nbytes() for each in found.values()))
        del output
    setup = Setup(context=time, target=time if family.name == "t5" else 0, precision="fp32")
    ours = sum(layer_activations(run, setup, Layout()) for run in Footprint(model, setup).runs)
    if family.name == "t5":  # no CPU kernel keeps the scores to itself where a trained bias is added to them
        ours += 2 * time * time * 4 * 4
    assert (kept[1] - kept[0]) / 2 / batch == pytest.approx(ours, rel=0.02)


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor", "sgd"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_states_of_real_optimizers(name: str, family: str) -> None:
    values = {"vocab_size": 30, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
    model = FAMILIES[family].build(FAMILIES[family].config_class(**values), FAMILIES[family].heads[0])
    optimizer = build_optimizer(model, OptimizerConfig.from_dict({"name": name}))
    for each in model.parameters():
        each.grad = torch.zeros_like(each)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    held = sum(each.numel() for each in states if isinstance(each, torch.Tensor) and each.dim() > 0)
    assert held == optimizer_states(model, name)


def test_room_to_work_in() -> None:
    setup = {"context": 2048, "batch": 64}
    footprint = Footprint(built("llama-7b"), Setup(**setup))
    chunk = 4 * 2 * 1024 * 32000
    assert footprint.buffers(Layout()) == chunk
    assert footprint.buffers(Layout(tensor=8)) == chunk / 8
    layer = per_layer(footprint, Layout())
    assert footprint.buffers(Layout(recompute="full", micro_batch=4)) == chunk + 4 * layer
    parameters = (built("llama-7b").num_parameters() - 2 * 32000 * 4096 - 4096) / 32
    assert footprint.buffers(Layout(data=64, zero=3)) == chunk + 3 * 2 * parameters
    assert Footprint(built("llama-7b"), Setup(**setup, full_logits=True)).buffers(Layout()) == 0


def test_rmsnorm_and_gates_and_grouped_queries() -> None:
    """By hand for LLaMA 2 70B in bf16, bytes for each token of a layer."""
    footprint = Footprint(built("llama2-70b"), Setup(context=4096, batch=64))
    norms = 2 * 8192 * (4 + 2 + 2)
    attention = 2 * (2 * 8192 + 2 * 1024)
    network = 2 * 4 * 28672
    assert per_layer(footprint, Layout()) == 4096 * (norms + attention + network)


def test_what_is_refused() -> None:
    config = FAMILIES["gpt2"].config_class(num_layers=0, vocab_size=10, hidden_size=4, num_heads=1)
    with pytest.raises(ConfigError, match="without layers"):
        Footprint(FAMILIES["gpt2"].build(config, "causal-lm"), Setup())
    with pytest.raises(ConfigError, match="adamw"):
        Footprint(built("gpt2"), Setup(optimizer="adamm"))
    assert isinstance(gpt3().runs[0], Run)
