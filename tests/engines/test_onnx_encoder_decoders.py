"""A compiled encoder-decoder writes what torch writes: T5 of every kind, however its texts are stepped."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.test_onnx_decoders import distance, round_inputs, rounded_matrix
from tests.generation.conftest import left_padded, prompts, right_padded
from tests.models import references

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.engines.measure import Limits, phases
from tsumugu.engines.onnx_model import OnnxModel
from tsumugu.engines.onnx_seq2seq_session import seated
from tsumugu.engines.onnx_weights import Scheme
from tsumugu.engines.session import open_session
from tsumugu.models.base import Model

TOLERANCE = 1e-4
RAGGED = prompts(9, 3, 1, 6, seed=3)
LONG = prompts(70, 4, 65, seed=1)
"""Longer than what is read side by side, and much longer than a bias tells distances apart."""
COURSE = ([0, 0, 1, 1, 2, 2], [1, 0, 3, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 2, 5], [1], [0, 0])
CASES = (
    "t5 plain",
    "t5 wide heads",
    "t5 narrow heads",
    "t5 short encoder",
    "t5 short decoder",
    "t5 few buckets",
    "t5 silu",
    "t5 gated relu",
    "t5 v1.1 untied",
    "t5 v1.1 tied",
    "t5 v1.1 gated silu untied",
    "mt5 plain untied",
    "umt5 three layers",
)

Both = tuple[Model, OnnxModel]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A case of `references` -> its folder."""

    @functools.cache
    def made(case: str) -> Path:
        folder = tmp_path_factory.mktemp("t5")
        references.reference(case, "seq2seq-lm").save_pretrained(folder)
        return folder

    return made


@pytest.fixture(scope="module")
def pairs(shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A case of `references` -> on torch and compiled, in a cache of this module's own."""
    home = str(tmp_path_factory.mktemp("home"))

    @functools.cache
    def made(case: str) -> Both:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TSUMUGU_HOME", home)
            quick = tg.load_model(shelf(case), engine="auto")
        assert isinstance(quick, OnnxModel)
        return tg.load_model(shelf(case)), quick

    return made


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_torch(case: str, pairs: Any) -> None:
    """Prompts of several lengths; rows that change places, repeat and leave."""
    draw = np.random.default_rng(0)
    for texts in (RAGGED, LONG):
        usual, quick = (open_session(model, batch=2, capacity=30) for model in pairs(case))
        gaps = [np.abs(usual.start(texts) - quick.start(texts)).max()]
        for rows in COURSE:
            rows = [min(row, len(texts) - 1) for row in rows] if len(rows) == 6 else rows
            tokens = draw.integers(4, 90, len(rows))
            for session in (usual, quick):
                session.select(np.array(rows))
            gaps.append(np.abs(usual.step(tokens) - quick.step(tokens)).max())
        assert max(gaps) <= TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.4},
        {"do_sample": True, "seed": 3, "num_return_sequences": 3, "top_p": 0.9},
        {"repetition_penalty": 1.3, "eos_token_id": [7, 11, 60, 61, 80, 81, 90]},
    ],
    ids=["greedy", "beams", "several beams", "drawn", "ending early"],
)
def test_generation_writes_the_same(options: dict[str, Any], pairs: Any) -> None:
    for case in ("t5 plain", "t5 v1.1 untied", "umt5 three layers"):
        model, quick = pairs(case)
        for texts in (*(prompts(*lengths, seed=sum(lengths)) for lengths in ((5, 2, 9), (1, 12), (30, 3, 4, 8))), LONG):
            wanted = tg.generate(model, texts, max_new_tokens=16, **options)
            assert tg.generate(quick, texts, max_new_tokens=16, **options) == wanted


def test_padding_is_nothing_and_tensors_come_back(pairs: Any) -> None:
    model, quick = pairs("t5 plain")
    wanted = tg.generate(model, *left_padded(RAGGED), max_new_tokens=6)
    for padded in (left_padded(RAGGED), right_padded(RAGGED)):
        assert torch.equal(tg.generate(quick, *padded, max_new_tokens=6), wanted)
    assert list(tg.generate(quick, RAGGED[0], max_new_tokens=6, stream=True)) == wanted[0, 1:].tolist()


@settings(deadline=None)
@given(st.integers(1, 5), st.data())
def test_rows_of_a_text_sit_side_by_side(texts: int, data: st.DataObject) -> None:
    more = data.draw(st.lists(st.integers(0, texts - 1), max_size=6))
    origins = np.array(data.draw(st.permutations([*range(texts), *more])))
    slots, places = seated(origins, texts)
    assert slots.shape == (texts, np.bincount(origins).max())
    for row, (place, text) in enumerate(zip(places, origins, strict=True)):
        assert slots.flat[place] == row
        assert place // slots.shape[1] == text


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("quantize", "bits"), [("int8", 8), ("int4", 4)])
def test_quantised_logits_are_those_of_rounded_numbers(
    quantize: str, bits: int, tied: bool, tmp_path: Path, cache: Path
) -> None:
    """Heads are 16 wide, so that no zeros come between the numbers of a group.

    A number on the edge between two may be rounded either way, which one row shows; most rows are equal.
    """
    family, sizes = FAMILIES["t5"], {"vocab_size": 99, "hidden_size": 64, "num_heads": 4, "head_dim": 16}
    more = {"num_layers": 2, "intermediate_size": 96, "gated": not tied, "tie_embeddings": tied}
    model = family.build(family.config_class(**sizes, **more), "seq2seq-lm").eval()
    references.spread(model, 0)
    tg.save_model(model, tmp_path)
    scheme = Scheme.parse(quantize)
    whole = open_session(model, batch=4, capacity=4).start(RAGGED)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            own = scheme.table_bits(module.in_features) if name == "head" else bits
            size = scheme.group_for(module.in_features, own)
            module.weight.data = torch.from_numpy(rounded_matrix("onnx", module.weight, own, size))
            module.register_forward_pre_hook(functools.partial(round_inputs, size))
    if tied:
        model.embeddings.token.weight.data = model.head.weight.data
    rounded = open_session(model, batch=4, capacity=4).start(RAGGED)
    quick = tg.load_model(tmp_path, engine="onnx", quantize=quantize)
    found = open_session(quick, batch=4, capacity=4).start(RAGGED)
    off = [distance(*each) for each in zip(found, rounded, strict=True)]
    assert np.median(off) <= 1e-5
    assert max(off) <= 5e-2  # one number rounded to the other side of an edge
    assert distance(found, whole) > 5e-3


def test_what_cannot_be_done_is_said(pairs: Any, shelf: Any, cache: Path) -> None:
    _, quick = pairs("t5 plain")
    with pytest.raises(InputError, match="outside the vocabulary of 99"):
        tg.generate(quick, [[99]])
    with pytest.raises(InputError, match="encoder-decoder only writes texts; use"):
        quick([[1, 2]])
    with pytest.raises(InputError, match="only decoders are measured"):
        phases(quick, Limits({1: 1.0}, 1.0), threads=1)
    session = open_session(quick, batch=1, capacity=2)
    session.start([[5]])
    session.step(np.array([5]))
    with pytest.raises(InputError, match="3 tokens is longer than 2"):
        session.step(np.array([5]))
    with pytest.raises(ConfigError, match="native kernels know"):
        tg.load_model(shelf("t5 plain"), engine="native")
    with pytest.raises(ConfigError, match="'encoder' has no form"):
        tg.load_model(shelf("t5 plain"), engine="onnx", task="encoder")
