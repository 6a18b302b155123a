"""Decoders that read a prefix in both directions, and what follows from the left."""

from __future__ import annotations

import pytest
import torch

from tsumugu.core.errors import InputError
from tsumugu.core.registry import FAMILIES

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
DECODERS = {"llama": {"num_kv_heads": 1}, "gpt2": {}, "gpt3": {"band": 4}}
TIME = 10


@pytest.fixture(params=DECODERS)
def model(request):
    """A small decoder in float64 with weights of some spread."""
    family = FAMILIES[request.param]
    config = family.config_class(**SIZES, **DECODERS[request.param], max_positions=16)
    built = family.build(config, "causal-lm").double().eval()
    chance = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for each in built.parameters():
            each.copy_(torch.randn(each.shape, generator=chance, dtype=torch.float64) * 0.3 + (each.dim() == 1))
    return built


def logits(model, *, changed=None, **options):
    """Logits of ten tokens, of which one may be another."""
    ids = torch.arange(20, 20 + TIME)[None]
    if changed is not None:
        ids[0, changed] = 60
    with torch.no_grad():
        return model(ids, **options).logits[0]


def test_a_prefix_is_read_in_both_directions_and_the_rest_is_not(model):
    prefix = torch.arange(TIME)[None] < 4
    both = logits(model, prefix=prefix)
    last_of_prefix = (logits(model, prefix=prefix, changed=3) - both).abs().amax(-1) > 1e-9
    assert last_of_prefix[:4].all()
    behind = (logits(model, prefix=prefix, changed=6) - both).abs().amax(-1) > 1e-9
    assert behind.tolist() == [False] * 6 + [True] * 4
    assert torch.allclose(logits(model, prefix=[[0] * TIME]), logits(model), rtol=0, atol=1e-12)


def test_a_prefix_in_a_cache_goes_on_as_if_read_at_once(model):
    ids = torch.arange(20, 20 + TIME)[None]
    whole = logits(model, prefix=torch.arange(TIME)[None] < 4)
    cache = model.new_cache(1, TIME)
    with torch.no_grad():
        parts = [model(ids[:, :4], prefix=torch.ones(1, 4), cache=cache).logits]
        parts += [model(ids[:, at : at + 1], cache=cache).logits for at in range(4, TIME)]
    assert torch.allclose(torch.cat(parts, 1)[0], whole, rtol=0, atol=1e-10)


def test_a_prefix_of_another_shape_or_after_the_first_tokens_is_refused(model):
    with pytest.raises(InputError, match=r"prefix: shape \[1, 3\] is not that of the 10 tokens that are read"):
        logits(model, prefix=[[1, 1, 0]])
    cache = model.new_cache(1, TIME)
    model(torch.tensor([[20, 21]]), cache=cache)
    with pytest.raises(InputError, match="give the prefix with the first tokens only"):
        model(torch.tensor([[22]]), prefix=[[1]], cache=cache)
