"""GPT-3: the published shapes to the last row, a pass as loops have it, GPT-2's files where layers are dense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.blocks import loops
from tests.models import loops as networks
from tests.models import references
from transformers import GPT2LMHeadModel

import tsumugu as tg
from tsumugu.core.errors import ConfigError, UnknownNameError
from tsumugu.core.registry import FAMILIES
from tsumugu.models.gpt3 import GPT3Config

TABLE = {
    # name: layers, width, heads, width of a head, and the number of parameters, as table 2.1 prints them
    "small": (12, 768, 12, 64, 125e6),
    "medium": (24, 1024, 16, 64, 350e6),
    "large": (24, 1536, 16, 96, 760e6),
    "xl": (24, 2048, 24, 128, 1.3e9),
    "2.7b": (32, 2560, 32, 80, 2.7e9),
    "6.7b": (32, 4096, 32, 128, 6.7e9),
    "13b": (40, 5140, 40, 128, 13.0e9),
    "175b": (96, 12288, 96, 128, 175.0e9),
}
TINY = {"vocab_size": 61, "max_positions": 32, "hidden_size": 12, "num_heads": 3, "intermediate_size": 20}


def built(**values: Any) -> Any:
    config = GPT3Config(**{**TINY, **values})
    return loops.randomised(FAMILIES["gpt3"].build(config, "causal-lm"))


@pytest.mark.parametrize("name", TABLE)
def test_published_shapes(name: str) -> None:
    layers, width, heads, head_dim, published = TABLE[name]
    config = GPT3Config.preset(name)
    with torch.device("meta"):
        model = FAMILIES["gpt3"].build(config, "causal-lm")
    shapes = {key: tuple(each.shape) for key, each in model.named_parameters()}
    assert {each.device.type for each in model.parameters()} == {"meta"}
    assert shapes["embeddings.token.weight"] == (50257, width)
    assert shapes["embeddings.position.weight"] == (2048, width)
    assert "head.weight" not in shapes, "tied to the embeddings"
    for layer in range(layers):
        prefix = f"decoder.layers.{layer}"
        for part in ("query", "key", "value"):
            assert shapes[f"{prefix}.attention.{part}.weight"] == (heads * head_dim, width)
        assert shapes[f"{prefix}.attention.output.weight"] == (width, heads * head_dim)
        assert shapes[f"{prefix}.feed_forward.up.weight"] == (4 * width, width)
        assert shapes[f"{prefix}.feed_forward.down.weight"] == (width, 4 * width)
    assert f"decoder.layers.{layers}.attention.query.weight" not in shapes
    inner = heads * head_dim
    attention = 4 * width * inner + 3 * inner + width
    feed_forward = 8 * width**2 + 5 * width
    formula = (50257 + 2048) * width + layers * (attention + feed_forward + 4 * width) + 2 * width
    assert model.num_parameters() == formula
    if name != "xl":
        assert formula == pytest.approx(published, rel=0.02)


def test_the_table_contradicts_itself_in_one_line() -> None:
    """As printed XL has 1.5 billion parameters; with 16 heads of the printed width it has the 1.3 of its name."""

    def count(config: GPT3Config) -> int:
        with torch.device("meta"):
            return int(FAMILIES["gpt3"].build(config, "causal-lm").num_parameters())

    printed = GPT3Config.preset("xl")
    assert count(printed) == pytest.approx(1.5e9, rel=0.02)
    assert count(printed.replace(num_heads=16)) == pytest.approx(1.3e9, rel=0.02)


def test_names_of_presets() -> None:
    assert GPT3Config.preset("175b").num_layers == 96
    for other in ("175B", "gpt3-175b", "GPT3-175B"):
        assert GPT3Config.preset(other) == GPT3Config.preset("175b")
    assert GPT3Config.preset("1.3b") == GPT3Config.preset("xl")
    assert GPT3Config() == GPT3Config.preset("small")
    with pytest.raises(UnknownNameError, match="did you mean '175b'"):
        GPT3Config.preset("175")


@pytest.mark.parametrize("band", [None, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("layers", [1, 4])
def test_forward_as_loops_have_it(band: int | None, layers: int) -> None:
    model = built(num_layers=layers, band=band)
    ids = torch.randint(0, 61, (2, 7), generator=torch.Generator().manual_seed(0)).tolist()
    windows = [None if layer % 2 == 0 else band for layer in range(layers)]
    wanted = networks.gpt2(ids, loops.parameters(model), model.config, windows)
    with torch.no_grad():
        assert loops.difference(model(ids).logits, wanted) <= loops.TOLERANCE


def test_heads_that_are_not_as_wide_together_as_the_model() -> None:
    """As in two lines of the table."""
    model = built(num_layers=2, head_dim=5, band=2)
    ids = [[5, 6, 7, 8, 9]]
    wanted = networks.gpt2(ids, loops.parameters(model), model.config, [None, 2])
    with torch.no_grad():
        assert loops.difference(model(ids).logits, wanted) <= loops.TOLERANCE


def test_bands_change_what_is_seen() -> None:
    model = built(num_layers=2, band=2)
    dense = FAMILIES["gpt3"].build(model.config.replace(band=None), "causal-lm").double().eval()
    dense.load_state_dict(model.state_dict())
    ids = [[5, 6, 7, 8, 9]]
    with torch.no_grad():
        ours, other = model(ids).logits[0], dense(ids).logits[0]
    assert torch.allclose(ours[:2], other[:2])
    assert float((ours[2:] - other[2:]).abs().amin(-1).max()) > 0
    assert float((ours[2:] - other[2:]).abs().amax(-1).min()) > 1e-3


@pytest.mark.parametrize("padding", ["right", "left"])
def test_padding_in_banded_layers(padding: str) -> None:
    """Padding at either end moves no band: real tokens see what they would see alone."""
    model = built(num_layers=4, band=3)
    given = references.inputs(model.config, padding=padding)
    given["input_ids"] = given["input_ids"] % 61
    with torch.no_grad():
        together = model(**given, position_ids=(given["attention_mask"].cumsum(-1) - 1).clamp(min=0)).logits
        for row, real in enumerate(given["attention_mask"].bool()):
            alone = model(given["input_ids"][row][real][None]).logits[0]
            assert float((together[row][real] - alone).abs().max()) <= 1e-10


@pytest.mark.parametrize("band", [None, 1, 3])
def test_cached_is_uncached(band: int | None) -> None:
    model = built(num_layers=4, band=band).float()
    rows = [[5, 6, 7, 8], [9], [10, 11]]
    for prompt, text in zip(rows, tg.generate(model, rows, eos_token_id=None, max_new_tokens=15), strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(15):
                ids.append(int(model([ids]).logits[0, -1].argmax()))
        assert text == ids


@pytest.mark.parametrize("tied", [True, False])
def test_dense_checkpoints_are_gpt2s(tied: bool, tmp_path: Path) -> None:
    config = GPT3Config(**{**TINY, "num_layers": 3, "band": None, "tie_embeddings": tied, "pad_token_id": 3})
    model = FAMILIES["gpt3"].build(config, "causal-lm").eval()
    references.spread(model, seed=1)
    tg.save_model(model, tmp_path)
    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {key: found for key, found in report.items() if found} == {}
    ids = torch.randint(4, 61, (3, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 11, [1] * 7 + [0] * 4, [1] * 4 + [0] * 7])
    with torch.no_grad():
        found = model(ids, mask, labels=ids, output_hidden_states=True)
        wanted = theirs.eval()(ids, attention_mask=mask, labels=ids, output_hidden_states=True)
    assert references.compare(found, wanted, mask) <= 1e-5


@pytest.mark.parametrize("head", FAMILIES["gpt3"].heads)
def test_round_trip(head: str, tmp_path: Path) -> None:
    config = GPT3Config(**{**TINY, "num_layers": 2, "head_dim": 5, "band": 3, "labels": ("a", "b", "c")})
    model = FAMILIES["gpt3"].build(config, head).eval()
    references.spread(model, seed=2)
    tg.save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt3"
    again = tg.load_model(tmp_path)
    assert (again.family.name, again.head_name, again.config) == ("gpt3", head, config)
    for (name, mine), (other, theirs) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(mine, theirs)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="5 heads do not divide a width of 768"):
        GPT3Config(num_heads=5)
    with pytest.raises(ConfigError, match="too small"):
        GPT3Config(band=0)
    assert np.array_equal(GPT3Config(num_layers=4, band=9).windows, (None, 9, None, 9))
