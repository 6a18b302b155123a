"""GPT: the published size, text written with a cache, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from tests.models import references

import tsumugu as tg
from tsumugu.core.errors import ConfigError
from tsumugu.core.registry import FAMILIES

GPT = FAMILIES["gpt"]


def test_number_of_parameters() -> None:
    """The published model: 116.5 million."""
    with torch.device("meta"):
        model = GPT.build(GPT.from_hub({}), "causal-lm")
    assert model.num_parameters() == 116_534_784


@pytest.mark.parametrize("case", ["openai-gpt plain", "openai-gpt untied"])
def test_cached_text_is_the_reference_librarys(case: str) -> None:
    """Which has no cache: it reads all again for every token."""
    theirs = references.reference(case, "causal-lm", positions=48)
    ours = GPT.build(GPT.from_hub(json.loads(theirs.config.to_json_string())), "causal-lm").eval()
    ours.load_state_dict(ours.keymap.to_ours(theirs.state_dict()), strict=False)
    ours.tie()
    ids = torch.randint(4, 99, (3, 7), generator=torch.Generator().manual_seed(1))
    wanted = theirs.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=3)
    assert torch.equal(tg.generate(ours, ids, max_new_tokens=20, eos_token_id=None), wanted)


def test_activations() -> None:
    """What config.json calls gelu is the one that tanh approximates."""
    for theirs, ours in (("gelu", "gelu_new"), ("relu", "relu"), ("silu", "silu"), ("swish", "silu")):
        config = GPT.from_hub({"afn": theirs})
        assert config.activation == ours
        assert GPT.from_hub(GPT.to_hub(config, "base")) == config
    with pytest.raises(ConfigError, match=r"config.json: activation: GPT has no 'tanh'"):
        GPT.from_hub({"afn": "tanh"})
    with pytest.raises(ConfigError, match="do not divide"):
        GPT.from_hub({"n_head": 5})
