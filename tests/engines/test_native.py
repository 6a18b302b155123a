"""What the kernels promise beyond the right logits: the same bits in any company, and on older processors too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.conftest import Build

import tsumugu as tg
from tsumugu.core.errors import CheckpointError, ConfigError, InputError, UnknownNameError
from tsumugu.engines.native import library, pack
from tsumugu.engines.prefixes import Prefixes
from tsumugu.engines.session import open_session


@pytest.fixture(autouse=True)
def kernels() -> None:
    try:
        library.load_library()
    except ConfigError as error:
        pytest.skip(str(error))


FORMS = [(None, "float32"), ("int8", "float32"), ("int4", "float32"), (None, "int8")]
"""Weights, and keys and values."""


@pytest.fixture(scope="module", params=FORMS)
def model(request: pytest.FixtureRequest, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSUMUGU_HOME", str(folder / "home"))
        sizes = {"hidden_size": 96, "num_heads": 6, "num_kv_heads": 2, "intermediate_size": 160, "max_positions": 600}
        tg.save_model(build("llama", **sizes), folder / "model")
        quantize, kv_cache = request.param
        return tg.load_model(folder / "model", engine="native", quantize=quantize, kv_cache=kv_cache)


def opened(model: Any, threads: int = 0) -> Any:
    """The same model once more."""
    return tg.engines.load.opened(
        model.folder, path=model.path, source=model.source, threads=threads, kv_cache=model.kv_cache
    )


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_company_and_pieces_change_no_bit(model: Any, data: st.DataObject) -> None:
    """A text read alone token by token, in pieces, with guesses taken back, or beside others."""
    token = st.integers(0, 259)
    texts = data.draw(st.lists(st.lists(token, min_size=2, max_size=40), min_size=2, max_size=6))
    alone = []
    for text in texts:
        session = open_session(model, batch=1, capacity=64)
        logits = session.start([text[:1]])
        for each in text[1:]:
            logits = session.step(np.array([each]))
        alone.append(logits[0].copy())
    beside = open_session(model, batch=len(texts), capacity=64).start(texts)
    assert np.array_equal(beside, np.stack(alone))
    pieces: Any = open_session(model, batch=len(texts), capacity=64)
    cuts = [data.draw(st.integers(1, len(text) - 1)) for text in texts]
    pieces.start([text[:cut] for text, cut in zip(texts, cuts, strict=True)])
    wrong = data.draw(st.integers(0, 3))
    if wrong:
        pieces.extend([[7] * wrong] * len(texts))
        pieces.forget(np.full(len(texts), wrong))
    rest = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
    every = pieces.extend(rest, every=True)
    last = np.cumsum([len(text) for text in rest]) - 1
    assert np.array_equal(every[last], np.stack(alone))


def test_several_threads_change_no_bit(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsumugu.engines.native.network.SMALL", 0)
    many = opened(model, threads=3)
    text = np.random.default_rng(0).integers(0, 260, 550).tolist()
    one = open_session(model, batch=1, capacity=560).start([text])
    three = open_session(many, batch=1, capacity=560)
    assert np.array_equal(three.start([text]), one)
    assert np.array_equal(three.step(np.array([5])), open_session(model, batch=1, capacity=560).start([[*text, 5]]))


def test_no_text_grows_beyond_its_room(model: Any) -> None:
    session = open_session(model, batch=2, capacity=5)
    session.start([[1, 2, 3], [4, 5, 6, 7]])
    session.step(np.array([8, 9]))
    with pytest.raises(InputError, match="a text of 5 tokens"):
        session.step(np.array([8, 9]))
    with pytest.raises(InputError, match="longer than 600"):
        open_session(model, batch=1, capacity=700).start([[1] * 601])


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels as a processor with AVX2 and nothing more gets them."""
    flags = tuple("-march=haswell" if flag == "-march=native" else flag for flag in library.FLAGS)
    monkeypatch.setattr(library, "FLAGS", flags)
    library.load_library.cache_clear()
    yield
    library.load_library.cache_clear()


def test_avx2_gives_the_same(model: Any, older: None) -> None:
    """To rounding: sums are added up in another order."""
    text = list(range(3, 60))
    newer = open_session(model, batch=1, capacity=64).start([text])
    found = open_session(opened(model), batch=1, capacity=64).start([text])
    whole = model.bits == 32 and model.kv_cache == "float32"
    assert np.abs(found - newer).max() <= (1e-4 if whole else 3e-2) * np.abs(newer).max()


def test_keys_and_values_in_8_bits_are_what_torch_rounds(
    build: Build, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's attention with queries, keys and values rounded to 127 steps, each token and head by itself.

    Where one number lies between two steps it may fall on either: a hundredth of what rounding changes in all.
    """
    sizes = {"head_dim": 48, "num_kv_heads": 2, "query_scale": 48.0, "window": 16}
    tg.save_model(build("gemma3", **sizes), tmp_path / "model")
    quick = tg.load_model(tmp_path / "model", kv_cache="int8")
    plain = torch.nn.functional.scaled_dot_product_attention

    def rounded(x: torch.Tensor) -> torch.Tensor:
        step = x.abs().amax(-1, keepdim=True) / 127
        return torch.round(x / step) * step

    def attention(query: Any, key: Any, value: Any, *others: Any, **named: Any) -> torch.Tensor:
        return plain(rounded(query), rounded(key), rounded(value), *others, **named)

    text = list(range(3, 60))
    session = open_session(quick, batch=1, capacity=64)
    found = session.start([text]).copy()
    whole = tg.load_model(tmp_path / "model")
    with torch.inference_mode():
        near = whole(torch.tensor([text])).logits[0, -1].numpy()
        monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", attention)
        wanted = whole(torch.tensor([text])).logits[0, -1].numpy()
    changed = np.abs(found[0] - near).max()
    assert np.abs(found[0] - wanted).max() <= 0.05 * changed
    assert changed <= 0.05 * np.abs(near).max()


def test_what_was_read_is_kept_in_8_bits_too(model: Any) -> None:
    """A text that begins as one before it is read from there on, and its logits are the same, bit for bit."""
    text = np.random.default_rng(1).integers(0, 260, 300).tolist()
    fresh = opened(model)
    wanted = open_session(fresh, batch=1, capacity=310).start([text]).copy()
    fresh.prefixes = Prefixes()
    open_session(fresh, batch=2, capacity=310).start([text[:200]])
    kept = fresh.prefixes.size
    share = 1 / 4 + 1 / 16 if model.kv_cache == "int8" else 1
    assert kept == 2 * 208 * 96 // 6 * 2 * 2 * 4 * share
    session: Any = open_session(fresh, batch=1, capacity=310)
    session.begin(1)
    assert session.recall(0, text) == 200
    assert np.array_equal(session.extend([text[200:]]), wanted)
    session.select(np.zeros(3, np.int64))
    again = session.step(np.full(3, 7))
    assert np.array_equal(again, np.repeat(open_session(fresh, batch=1, capacity=310).start([[*text, 7]]), 3, axis=0))


def test_only_a_decoder_of_the_native_engine_keeps_8_bits(build: Build, cache: Path, tmp_path: Path) -> None:
    tg.save_model(build("bert", "base"), tmp_path / "bert")
    with pytest.raises(ConfigError, match="an encoder keeps no keys"):
        tg.load_model(tmp_path / "bert", engine="auto", kv_cache="int8")
    with pytest.raises(ConfigError, match="the onnx engine keeps keys and values in float32"):
        tg.load_model(tmp_path / "bert", engine="onnx", kv_cache="int8")
    with pytest.raises(UnknownNameError, match="unknown cache 'int4'"):
        tg.load_model(tmp_path / "bert", kv_cache="int4")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_of_gguf_are_taken_over_number_by_number(kind: str) -> None:
    matrix = np.random.default_rng(0).normal(size=(24, 96)).astype(np.float32)
    blocks = quantize(matrix, GGMLQuantizationType[kind])
    groups = pack.from_gguf(kind, blocks)
    assert np.abs(groups.values() - dequantize(blocks, GGMLQuantizationType[kind])).max() <= 1e-6
    assert groups.bits == (8 if kind == "Q8_0" else 4)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_loses_less_than_the_plainest(bits: int) -> None:
    matrix = np.random.default_rng(1).standard_t(4, size=(64, 256)).astype(np.float32)
    groups = pack.round_rows(matrix, bits)
    blocks = matrix.reshape(64, -1, pack.GROUP)
    low, high = (blocks.min(-1), blocks.max(-1)) if bits == 4 else (-np.abs(blocks).max(-1), np.abs(blocks).max(-1))
    scale = ((high - low) / (15 if bits == 4 else 254))[..., None]
    plain = np.rint((blocks - low[..., None]) / scale) * scale + low[..., None]
    lost = np.square(groups.values() - matrix).mean()
    assert lost <= np.square(plain.reshape(64, -1) - matrix).mean() * (0.9 if bits == 4 else 1.01)


def test_a_file_that_was_cut_is_refused(model: Any, tmp_path: Path) -> None:
    for name in ("weights.bin", "model.json"):
        (tmp_path / name).write_bytes((model.folder / name).read_bytes())
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.truncate(1000)
    broken = tg.engines.load.opened(tmp_path, path=tmp_path, source="broken")
    with pytest.raises(CheckpointError, match="1000 bytes of weights"):
        open_session(broken, batch=1, capacity=8)


def test_without_a_compiler_onnx_runs(
    build: Callable[..., Any], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tg.save_model(build("llama"), tmp_path / "model")
    library.load_library.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("TSUMUGU_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match="no C compiler"):
        tg.load_model(tmp_path / "model", engine="native")
    found = tg.load_model(tmp_path / "model", engine="auto")
    library.load_library.cache_clear()
    assert found.interface["kind"] == "decoder"
    with torch.inference_mode():
        wanted = tg.load_model(tmp_path / "model")(torch.tensor([[1, 2, 3]])).logits[0, -1].numpy()
    assert np.abs(open_session(found, batch=1, capacity=4).start([[1, 2, 3]])[0] - wanted).max() <= 1e-4
