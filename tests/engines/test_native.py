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
from tsumugu.core.errors import CheckpointError, ConfigError
from tsumugu.engines.native import library, pack
from tsumugu.engines.session import open_session


@pytest.fixture(autouse=True)
def kernels() -> None:
    try:
        library.load_library()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=[None, "int8", "int4"])
def model(request: pytest.FixtureRequest, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSUMUGU_HOME", str(folder / "home"))
        sizes = {"hidden_size": 96, "num_heads": 6, "num_kv_heads": 2, "intermediate_size": 160, "max_positions": 600}
        tg.save_model(build("llama", **sizes), folder / "model")
        return tg.load_model(folder / "model", engine="native", quantize=request.param)


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
    many = tg.engines.load.opened(model.folder, path=model.path, source=model.source, threads=3)
    text = np.random.default_rng(0).integers(0, 260, 550).tolist()
    one = open_session(model, batch=1, capacity=560).start([text])
    three = open_session(many, batch=1, capacity=560)
    assert np.array_equal(three.start([text]), one)
    assert np.array_equal(three.step(np.array([5])), open_session(model, batch=1, capacity=560).start([[*text, 5]]))


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
    again = tg.engines.load.opened(model.folder, path=model.path, source=model.source)
    found = open_session(again, batch=1, capacity=64).start([text])
    assert np.abs(found - newer).max() <= (1e-4 if model.bits == 32 else 3e-2) * np.abs(newer).max()


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
