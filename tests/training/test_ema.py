"""The average of weights: its numbers, the model that borrows it, and its way through a file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.models import tiny

from tsumugu.core.errors import CheckpointError
from tsumugu.training.ema import Ema


def drift(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn(each.shape, generator=generator).to(each.dtype))


def test_the_average_is_that_of_a_plain_loop() -> None:
    model = tiny("gpt2", "causal-lm", torch.float64)
    ema = Ema(model, decay=0.5)
    wanted = {name: each.detach().numpy().copy() for name, each in model.named_parameters()}
    for step in range(12):
        drift(model, step)
        ema.update(step)
        keep = min(0.5, (1 + step) / (10 + step))
        for name, each in model.named_parameters():
            wanted[name] = keep * wanted[name] + (1 - keep) * each.detach().numpy()
    assert keep == 0.5
    for name, each in ema.tensors().items():
        assert np.abs(each.numpy() - wanted[name]).max() <= 1e-10
    assert ema.tensors().keys() == wanted.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_borrows_the_average_and_gets_its_own_weights_back(dtype: torch.dtype) -> None:
    model = tiny("gpt2", "causal-lm", dtype)
    ema = Ema(model, decay=0.9)
    drift(model, 0)
    ema.update(0)
    own = copy.deepcopy(model.state_dict())
    places = [each.data_ptr() for each in model.parameters()]

    def evaluate() -> None:
        with ema.swapped():
            for name, each in model.named_parameters():
                assert torch.equal(each, ema.tensors()[name].to(dtype))
                assert ema.tensors()[name].dtype == torch.float32
            assert not torch.equal(model.decoder.norm.weight, own["decoder.norm.weight"])
            assert model.head.weight is model.embeddings.token.weight
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate()
    assert all(torch.equal(each, own[name]) for name, each in model.state_dict().items())
    assert places == [each.data_ptr() for each in model.parameters()]


def test_an_average_goes_on_from_a_file_bit_by_bit(tmp_path: Path) -> None:
    model = tiny("gpt2", "causal-lm")
    ema = Ema(model)
    drift(model, 0)
    ema.update(0)
    save_file(ema.tensors(), tmp_path / "ema.safetensors")
    again = Ema(model)
    again.load(load_file(tmp_path / "ema.safetensors"))
    drift(model, 1)
    ema.update(1)
    again.update(1)
    assert all(torch.equal(each, again.tensors()[name]) for name, each in ema.tensors().items())


def test_an_average_of_another_model_is_refused_and_changes_nothing() -> None:
    ema = Ema(tiny("gpt2", "causal-lm"))
    before = {name: each.clone() for name, each in ema.tensors().items()}
    good = {name: each + 1 for name, each in before.items()}
    with pytest.raises(CheckpointError, match=r"lacks decoder\.norm\.weight"):
        ema.load({name: each for name, each in good.items() if name != "decoder.norm.weight"})
    with pytest.raises(CheckpointError, match="the model lacks, extra"):
        ema.load(good | {"extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"decoder\.norm\.weight has another shape: \[9\] is not \[8\]"):
        ema.load(good | {"decoder.norm.weight": torch.zeros(9)})
    assert all(torch.equal(each, before[name]) for name, each in ema.tensors().items())


def test_frozen_parameters_have_no_average() -> None:
    model = tiny("gpt2", "causal-lm")
    model.embeddings.requires_grad_(False)
    assert not any(name.startswith("embeddings") for name in Ema(model).tensors())
