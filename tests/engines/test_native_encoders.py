"""An encoder run by the kernels gives what torch gives, the same in any company, and nearly the same in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.conftest import Build
from tests.engines.test_native import kernels, older
from tests.engines.test_onnx_encoders import inputs, same
from tests.models import references

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.core.pooling import POOLING_MODES
from tsumugu.core.pooling import pool as pool_arrays
from tsumugu.engines.native.compile_encoder import by_rows
from tsumugu.engines.native.encoder import NativeEncoder

__all__ = ["kernels", "older"]

HEADS = ("base", "masked-lm", "sequence-classification", "token-classification", "question-answering")
LAYERS = (
    "odd width",
    "narrow feed-forward",
    "a head for every two columns",
    "relu",
    "gelu_new",
    "great eps",
    "no pad token",
)
CASES = [
    *((f"{family} plain", head) for family in ("bert", "roberta", "xlm-roberta", "electra") for head in HEADS),
    *((f"bert {what}", "base") for what in LAYERS),
    *((f"electra {what}", "replaced-token") for what in ("plain", "one width", "wide embeddings")),
    ("bert untied", "masked-lm"),
]


@pytest.mark.parametrize(("case", "head"), CASES)
def test_outputs_are_those_of_torch(case: str, head: str, cache: Path, tmp_path: Path) -> None:
    references.reference(case, head).save_pretrained(tmp_path / "model")
    model = tg.load_model(tmp_path / "model")
    quick = tg.load_model(tmp_path / "model", engine="auto")
    assert isinstance(quick, NativeEncoder)
    same(model, quick, inputs())
    same(model, quick, inputs(left=True))


@pytest.fixture(scope="module")
def folder(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "model"
    sizes = {"hidden_size": 128, "num_heads": 8, "intermediate_size": 160, "max_positions": 300}
    tg.save_model(build("bert", "base", **sizes), folder)
    return folder


@pytest.fixture(scope="module", params=[None, "int8"])
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[NativeEncoder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSUMUGU_HOME", str(folder.parent / "home"))
        yield tg.load_model(folder, engine="native", quantize=request.param)


def ragged(seed: int, lengths: list[int]) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    ids = draw.integers(3, 260, (len(lengths), max(lengths)))
    real = (np.arange(ids.shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": ids, "attention_mask": real, "token_type_ids": draw.integers(0, 2, ids.shape)}


def test_long_and_short_texts_are_those_of_torch(model: NativeEncoder, folder: Path) -> None:
    """More tokens than go through the network together; in 8 bits the states point nearly the same way."""
    batch = ragged(0, [300, 1, 17, 32, 33, 290, 95, 12, 13, 250])
    with torch.inference_mode():
        wanted = tg.load_model(folder)(**batch).last_hidden_state.numpy()
    found = model(**batch).last_hidden_state
    real = batch["attention_mask"] != 0
    a, b = found[real], wanted[real]
    if model.bits == 32:
        assert np.abs(a - b).max() <= 1e-4
    else:
        assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() >= 0.99
    assert not found[~real].any()


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 70), min_size=2, max_size=9), seed=st.integers(0, 9))
def test_company_changes_no_bit(model: NativeEncoder, lengths: list[int], seed: int) -> None:
    batch = ragged(seed, lengths)
    together = model(**batch).last_hidden_state
    for row, length in enumerate(lengths):
        alone = model(**{name: values[row : row + 1, :length] for name, values in batch.items()})
        assert np.array_equal(alone.last_hidden_state[0], together[row, :length])


def test_first_tokens_alone_are_the_same_bits(model: NativeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer computes no others where a text is judged by its first token."""
    monkeypatch.setattr("tsumugu.engines.native.encoder.SMALL", 0)
    batch = ragged(5, [300, 1, 17, 1, 32, 290, 95, 250, *([2] * 40)])
    wanted = model(**batch).last_hidden_state[:, 0]
    assert np.array_equal(model.pooled(**batch, mode="cls"), wanted)
    many = tg.engines.load.opened(model.folder, path=model.path, source=model.source, threads=3)
    assert np.array_equal(many.pooled(**batch, mode="cls"), wanted)


def test_several_threads_change_no_bit(model: NativeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsumugu.engines.native.encoder.SMALL", 0)
    many = tg.engines.load.opened(model.folder, path=model.path, source=model.source, threads=3)
    batch = ragged(1, [200, 3, 41])
    one, three = model(**batch), many(**batch)
    assert np.array_equal(one.last_hidden_state, three.last_hidden_state)
    assert np.array_equal(one.pooler_output, three.pooler_output)


def test_avx2_gives_the_same(model: NativeEncoder, older: None) -> None:
    """To rounding; whole numbers are summed up exactly on both."""
    batch = ragged(2, [60, 7, 130])
    newer = model(**batch).last_hidden_state
    again = tg.engines.load.opened(model.folder, path=model.path, source=model.source)
    found = again(**batch).last_hidden_state
    assert np.abs(found - newer).max() <= (1e-5 if model.bits == 32 else 3e-2) * np.abs(newer).max()


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_vectors_are_pooled_as_elsewhere(model: NativeEncoder, mode: Any) -> None:
    batch = ragged(3, [20, 1, 9])
    wanted = pool_arrays(model(**batch).last_hidden_state, batch["attention_mask"], mode)
    assert np.abs(model.pooled(**batch, mode=mode) - wanted).max() <= 1e-5


def test_a_text_of_padding_alone_disturbs_no_other(model: NativeEncoder) -> None:
    batch = ragged(4, [5, 8])
    wanted = model(**batch).last_hidden_state
    batch["attention_mask"][0] = 0
    found = model(**batch)
    assert np.array_equal(found.last_hidden_state[1], wanted[1])
    assert np.isfinite(found.pooler_output).all()
    batch["attention_mask"][:] = 0
    assert not model(**batch).last_hidden_state.any()


def test_wrong_input_is_refused(model: NativeEncoder) -> None:
    with pytest.raises(InputError, match="outside the vocabulary of 260"):
        model([[260]])
    with pytest.raises(InputError, match="a segment is outside the 2"):
        model([[1, 2]], token_type_ids=[[0, 2]])
    with pytest.raises(InputError, match="does not generate text"):
        tg.generate(model, [[1, 2]])


def test_without_a_compiler_onnx_runtime_gives_the_same(
    model: NativeEncoder, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ConfigError("there is no C compiler", where="engine")

    monkeypatch.setattr("tsumugu.engines.load.load_library", missing)
    other = tg.load_model(folder, engine="auto")
    assert not isinstance(other, NativeEncoder)
    if model.bits == 32:
        same(lambda **given: model(**given), other, inputs())


def test_rows_in_8_bits_are_as_near_as_can_be() -> None:
    matrix = np.random.default_rng(0).standard_t(4, (40, 96)).astype(np.float32)
    matrix[7] = 0
    numbers, scales = by_rows(matrix)
    assert (np.abs(numbers * scales[:, None] - matrix) <= scales[:, None] * 0.5001).all()
    assert np.abs(numbers[:7].astype(int)).max(1).tolist() == [127] * 7
