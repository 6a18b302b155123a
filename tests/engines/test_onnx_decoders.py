"""A compiled decoder computes what torch computes: every tiny decoder of the reference's, however it is stepped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.conftest import Build
from tests.models import references

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.engines.native import pack
from tsumugu.engines.native.library import load_library
from tsumugu.engines.onnx_model import OnnxModel
from tsumugu.engines.onnx_weights import Scheme, dequantized, quantized
from tsumugu.engines.session import open_session
from tsumugu.models.base import Model

TOLERANCE = 1e-4
TEXTS = ([5, 17, 3, 88, 9, 41, 7, 12], [60], [23, 4, 71])

Both = tuple[Model, OnnxModel]
Compile = Callable[..., OnnxModel]


@pytest.fixture(scope="module", params=["onnx", "native"])
def engine(request: pytest.FixtureRequest) -> str:
    """Both engines that a decoder is compiled for; the kernels only where they can be had."""
    if request.param == "native":
        try:
            load_library()
        except ConfigError as error:
            pytest.skip(str(error))
    return str(request.param)


@pytest.fixture
def compiled(cache: Path, tmp_path: Path, engine: str) -> Compile:
    """Save a model and compile it, in a cache of this test's own."""

    def made(model: Model, **options: Any) -> OnnxModel:
        folder = tmp_path / "saved"
        tg.save_model(model, folder)
        found = tg.load_model(folder, **{"engine": engine, **options})
        assert isinstance(found, OnnxModel)
        return found

    return made


def following(model: Any, text: list[int]) -> np.ndarray:
    """torch's logits of what follows a text, all of it read at once."""
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([text])).logits[0, -1].numpy()
    return found


def check(model: Model, compiled: OnnxModel, tolerance: float = TOLERANCE) -> None:
    """Prompts of several lengths, steps, rows that change places, repeat and leave."""
    texts = [list(each) for each in TEXTS]
    session = open_session(compiled, batch=3, capacity=16)
    logits = session.start(texts)
    for step, rows in enumerate(([0, 1, 2], [2, 2, 0, 1], [3, 0], [1, 0])):
        if step:
            session.select(np.array(rows))
            texts = [list(texts[row]) for row in rows]
            tokens = [(7 * step + row) % 90 for row in range(len(rows))]
            logits = session.step(np.array(tokens))
            texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
        for row, text in zip(logits, texts, strict=True):
            assert np.abs(row - following(model, text)).max() <= tolerance


@pytest.mark.parametrize("case", [case for case in references.CASES if "causal-lm" in references.heads(case)])
def test_logits_are_those_of_torch(case: str, engine: str, cache: Path, tmp_path: Path) -> None:
    references.reference(case, "causal-lm").save_pretrained(tmp_path / "model")
    model = tg.load_model(tmp_path / "model")
    if engine == "native" and not model.decoder.layers[0].norm_first:
        with pytest.raises(ConfigError, match="native kernels know"):
            tg.load_model(tmp_path / "model", engine=engine)
    else:
        check(model, tg.load_model(tmp_path / "model", engine=engine))


@pytest.mark.parametrize("family", ["gpt2", "gpt3", "megatron"])
def test_families_of_the_same_blocks_compile(family: str, build: Build, compiled: Compile) -> None:
    model = build(family, num_layers=3, **({"band": 3} if family == "gpt3" else {}))
    check(model, compiled(model))


@pytest.fixture(scope="module")
def both(build: Build, engine: str, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSUMUGU_HOME", str(folder / "home"))
        tg.save_model(build("llama", num_kv_heads=2), folder / "model")
        return tg.load_model(folder / "model"), tg.load_model(folder / "model", engine=engine)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_course_of_steps(both: Both, data: st.DataObject) -> None:
    model, quick = both
    token = st.integers(0, 259)
    texts = data.draw(st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=4))
    session = open_session(quick, batch=len(texts), capacity=24)
    logits = session.start(texts)
    texts = [list(each) for each in texts]
    for _ in range(data.draw(st.integers(0, 6))):
        if data.draw(st.booleans()):
            rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=5))
            session.select(np.array(rows))
            texts = [list(texts[row]) for row in rows]
        tokens = data.draw(st.lists(token, min_size=len(texts), max_size=len(texts)))
        logits = session.step(np.array(tokens))
        for text, each in zip(texts, tokens, strict=True):
            text.append(each)
    if len(logits) == len(texts):
        for row, text in zip(logits, texts, strict=True):
            assert np.abs(row - following(model, text)).max() <= TOLERANCE


def test_prompts_longer_than_a_chunk(build: Build, compiled: Compile) -> None:
    """Long prompts are read in pieces, each row alone."""
    model = build("llama", num_kv_heads=2, max_positions=1200, window=700)
    quick = compiled(model)
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 260, size).tolist() for size in (1100, 3, 513)]
    session = open_session(quick, batch=3, capacity=1110)
    logits = session.start(texts)
    for row, text in zip(logits, texts, strict=True):
        assert np.abs(row - following(model, text)).max() <= TOLERANCE
    logits = session.step(np.array([1, 2, 3]))
    for row, text, token in zip(logits, texts, (1, 2, 3), strict=True):
        assert np.abs(row - following(model, [*text, token])).max() <= TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.4},
        {"do_sample": True, "seed": 3, "num_return_sequences": 3, "top_p": 0.9},
        {"repetition_penalty": 1.3, "eos_token_id": 7},
    ],
)
def test_generation_writes_the_same(both: Both, options: dict[str, Any]) -> None:
    texts = [list(each) for each in TEXTS]
    model, quick = both
    assert tg.generate(quick, texts, max_new_tokens=12, **options) == tg.generate(
        model, texts, max_new_tokens=12, **options
    )


def test_a_pipeline_runs_on_it(both: Both, tokenizer: Any) -> None:
    model, quick = both
    ours = tg.pipeline("text-generation", quick, tokenizer)
    theirs = tg.pipeline("text-generation", model, tokenizer)
    assert ours(["the sea", "a"], max_new_tokens=9) == theirs(["the sea", "a"], max_new_tokens=9)


@pytest.mark.parametrize("width", [64, 96, 48, 288])
@pytest.mark.parametrize(
    ("quantize", "bits", "group"), [("int8", 8, 0), ("int4", 4, 0), ("int8", 8, 128), ("int4", 4, 64)]
)
def test_quantised_logits_are_those_of_rounded_numbers(
    quantize: str, bits: int, group: int, width: int, engine: str, build: Build, compiled: Compile
) -> None:
    """torch with each matrix rounded as it is stored, and what it is multiplied with to 8 bits in each group.

    A number on the edge between two may be rounded either way, which one text shows and most do not.
    """
    heads = {"num_heads": width // 16, "num_kv_heads": 1}
    model = build("llama", hidden_size=width, intermediate_size=96, tie_embeddings=True, **heads)
    quick = compiled(model, quantize=quantize, group=group)
    texts = [list(text) for text in TEXTS]
    whole = np.stack([following(model, text) for text in texts])
    scheme = Scheme.parse(quantize, group)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            table = name == "head"
            own = scheme.table_bits(width) if table and engine == "onnx" else bits
            own = 8 if table and engine == "native" else own
            if own < 32:
                size = scheme.group_for(module.in_features, own) if engine == "onnx" or group else pack.GROUP
                module.weight.data = torch.from_numpy(rounded_matrix(engine, module.weight, own, size))
                given = pack.GROUP if engine == "native" else size
                module.register_forward_pre_hook(functools.partial(round_inputs, given))
    if engine == "native" or scheme.table_bits(width) < 32:
        model.embeddings.token.weight.data = model.head.weight.data
    rounded = np.stack([following(model, text) for text in texts])
    found = open_session(quick, batch=3, capacity=9).start(texts)
    off = [distance(*each) for each in zip(found, rounded, strict=True)]
    assert np.median(off) <= 1e-5
    assert max(off) <= 5e-2  # one number rounded to the other side of an edge
    assert distance(found, whole) > 5e-3


def rounded_matrix(engine: str, matrix: torch.Tensor, bits: int, group: int) -> np.ndarray:
    """What the numbers of a matrix stand for once it was compiled."""
    whole = matrix.detach().numpy()
    if engine == "native":
        return pack.round_rows(whole, bits, group).values()[:, : whole.shape[1]]
    return dequantized(quantized(whole, bits, group), whole.shape[1])


def round_inputs(group: int, module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Eight bits and one scale for each group along the last axis."""
    width = inputs[0].shape[-1]
    blocks = torch.nn.functional.pad(inputs[0], (0, -width % group)).unflatten(-1, (-1, group))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
    return ((blocks / scale).round().mul(scale).flatten(-2)[..., :width],)


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """The root mean square of the difference, as a share of that of what is wanted."""
    return float(np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()))


def test_a_prompt_beyond_the_room_is_refused(both: Both) -> None:
    with pytest.raises(InputError, match="9 tokens"):
        open_session(both[1], batch=1, capacity=8).start([[1] * 9])


def test_what_has_no_graph_is_refused_by_name(build: Build, compiled: Compile) -> None:
    with pytest.raises(ConfigError, match=r"'pretraining' (has no form|is nothing)"):
        compiled(build("bert", "pretraining"))


def test_auto_takes_torch_where_there_is_no_graph(build: Build, cache: Path, tmp_path: Path) -> None:
    tg.save_model(build("bert", "pretraining"), tmp_path / "model")
    assert isinstance(tg.load_model(tmp_path / "model", engine="auto"), Model)
    assert isinstance(tg.load_model(tmp_path / "model", engine="auto", task="ner", strict=False), Model)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"engine": "onxx"}, "unknown engine 'onxx'"),
        ({"engine": "torch", "quantize": "int8"}, "whole weights"),
        ({"engine": "onnx", "dtype": "bfloat16"}, "float32"),
        ({"quantize": "int5"}, "unknown quantisation 'int5'"),
        ({"quantize": "int4", "group": 48}, "groups of 48"),
    ],
)
def test_what_cannot_be_done_is_said(options: dict[str, Any], what: str, build: Build, tmp_path: Path) -> None:
    tg.save_model(build("llama"), tmp_path / "model")
    with pytest.raises(tg.TsumuguError, match=what):
        tg.load_model(tmp_path / "model", **options)
