"""An adapter on the training loop: what checkpoints hold, and that a resumed run ends where the undisturbed does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.training.models import tiny
from torch import Tensor

import tsumugu as tg
from tsumugu.objectives.base import Batch
from tsumugu.training.checkpointing import steps_in
from tsumugu.training.distributed import World
from tsumugu.training.events import Stream
from tsumugu.training.loop import Trainer
from tsumugu.training.recipe import Settings


class Labels:
    """The loss of a classifier."""

    name, head, weights = "labels", "sequence-classification", {"loss": 1.0}

    def losses(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": model(inputs["input_ids"], labels=inputs["labels"]).loss * len(inputs["labels"])}


class Draws:
    """Four rows a step."""

    def batches(self, step: int, part: int, parts: int) -> list[Batch]:
        random = np.random.default_rng(step)
        ids, labels = random.integers(0, 24, (4, 7)), random.integers(0, 2, 4)
        return [Batch({"input_ids": ids, "labels": labels}, {"loss": 4}, ids.size, 0, 0)]

    def epoch(self, step: int) -> float:
        return 0.0


def trained(base: Path, folder: Path, steps: int) -> Any:
    model = tg.load_model(base)
    tg.add_adapter(model, tg.LoraConfig(rank=2, dropout=0.1), seed=3)
    folder.mkdir(exist_ok=True)
    values = {"train": {"batch": 4, "lr": 0.05, "ema": 0.9}, "checkpoints": {"every": 3, "keep": 9}}
    settings = Settings.from_dict(values)
    with World.open() as world:
        trainer = Trainer(model, Labels(), Draws(), settings, steps=steps, folder=folder, world=world, stream=Stream())
        trainer.resume()
        trainer.run()
    return model


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_run(family: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tg.save_model(tiny(family, "sequence-classification"), base)
    before = (base / "model.safetensors").read_bytes()
    whole = trained(base, tmp_path / "whole", 6)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(steps_in(tmp_path / "parts/checkpoints")[6])
    parts = trained(base, tmp_path / "parts", 6)
    for name, each in whole.named_parameters():
        assert torch.equal(each, parts.get_parameter(name)), name
    last = steps_in(tmp_path / "parts/checkpoints")[6]
    assert not (last / "model.safetensors").exists()
    held = sum(path.stat().st_size for path in last.rglob("*.safetensors"))
    assert held < 6 * 4 * whole.num_parameters(trainable_only=True) + 40_000
    names = set(load_file(last / "adapter_model.safetensors"))
    assert all(".lora_" in name or "classifier" in name or "score" in name for name in names)
    averaged = tg.load_model(last)
    ids = torch.arange(12)[None]
    assert not torch.equal(averaged(ids).logits, tg.load_model(base)(ids).logits)
    assert not torch.equal(averaged(ids).logits, whole.eval()(ids).logits)
    assert (base / "model.safetensors").read_bytes() == before
