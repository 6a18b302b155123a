"""ELECTRA: published sizes of models and generators, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tsumugu.core.errors import ConfigError
from tsumugu.core.registry import FAMILIES

ELECTRA = FAMILIES["electra"]
BASE = {"hidden_size": 768, "embedding_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {
    "hidden_size": 1024,
    "embedding_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
}


@pytest.mark.parametrize(
    ("config", "head", "count"),
    [
        ({}, "base", 13_483_008),
        ({}, "replaced-token", 13_549_057),
        (BASE, "base", 108_891_648),
        (LARGE, "base", 334_092_288),
    ],
    ids=["small", "small, replaced tokens", "base", "large"],
)
def test_number_of_parameters(config: dict[str, Any], head: str, count: int) -> None:
    with torch.device("meta"):
        model = ELECTRA.build(ELECTRA.from_hub(config), head)
    assert model.num_parameters() == count


@pytest.mark.parametrize(
    ("config", "size", "shape"),
    [({}, 1 / 4, (64, 1, 256, 12)), (BASE, 1 / 3, (256, 4, 1024, 12)), (LARGE, 1 / 4, (256, 4, 1024, 24))],
    ids=["small", "base", "large"],
)
def test_generators_are_as_published(config: dict[str, Any], size: float, shape: tuple[int, ...]) -> None:
    """Width, heads, inner width and depth; the embeddings are the discriminator's.

    Source: Clark et al. 2020, table 6.
    """
    whole = ELECTRA.from_hub(config).replace(generator_size=size)
    small = whole.generator
    assert (small.hidden_size, small.num_heads, small.intermediate_size, small.num_layers) == shape
    assert small.embedding_size == whole.embedding_size


def test_heads_of_a_generator_divide_its_width() -> None:
    config = ELECTRA.config_class(hidden_size=200, num_heads=2, generator_size=1.0)
    assert config.generator.num_heads == 2


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="position_embedding_type: only absolute"):
        ELECTRA.from_hub({"position_embedding_type": "relative_key"})
    with pytest.raises(ConfigError, match="is_decoder: ELECTRA as a decoder"):
        ELECTRA.from_hub({"is_decoder": True})
