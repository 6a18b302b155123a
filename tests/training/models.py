"""Tiny models of every shape that the training tests need."""

from __future__ import annotations

from typing import Any

import torch

from tsumugu.core.registry import FAMILIES
from tsumugu.models.base import Model

SIZES: dict[str, dict[str, Any]] = {
    "bert": {"num_heads": 2, "intermediate_size": 16, "num_layers": 2, "max_positions": 16},
    "gpt2": {"num_heads": 2, "num_layers": 2, "max_positions": 16},
    "llama": {"num_heads": 2, "num_kv_heads": 1, "intermediate_size": 12, "num_layers": 2, "tie_embeddings": True},
    "t5": {"num_heads": 2, "head_dim": 4, "intermediate_size": 16, "num_layers": 2},
}


def tiny(family: str, head: str, dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    """A model of width 8 over 24 tokens with weights from seed 0, in training mode without dropout."""
    known = FAMILIES[family]
    config = known.config_class(**{"vocab_size": 24, "hidden_size": 8} | SIZES[family] | options)
    model: Model = known.build(config, head).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(torch.randn(each.shape, generator=generator) * 0.1)
    return model


def give_gradients(model: torch.nn.Module, seed: int) -> None:
    """Random gradients, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for each in model.parameters():
        if each.requires_grad:
            each.grad = torch.randn(each.shape, generator=generator).to(each.dtype)
