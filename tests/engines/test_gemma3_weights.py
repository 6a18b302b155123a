"""Gemma 3 270M: real weights in four kinds of blocks, read as llama.cpp reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engines.test_llama_cpp import PROMPTS, behind
from tests.text.corpus import varied_texts
from tests.text.llama_cpp import Judge, differing

import tsumugu as tg
from tsumugu.models.base import Model

LONG = " ".join(f"{number}. The {word} is older than the sea." for number, word in enumerate(["river", "hill"] * 30))
"""More tokens than the 512 that most layers see."""

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def model(gemma3_path: Path) -> Model:
    return tg.load_model(gemma3_path)


def test_it_is_what_was_published(model: Model) -> None:
    assert model.load_report is not None
    assert model.load_report.fits
    assert model.num_parameters() == 268_098_176
    assert [layer for layer, window in enumerate(model.config.windows) if window is None] == [5, 11, 17]
    assert model.end_tokens[:1] == (1,)
    assert 106 in model.end_tokens, "the end of a turn"


def test_what_llama_cpp_writes_is_likeliest_to_us(model: Model, gemma3_path: Path) -> None:
    """llama.cpp multiplies eight-bit activations here and we float32 ones: between near equals it may choose the other.

    From a float32 copy of the same weights it writes our likeliest tokens, all of them.
    """
    tokenizer = tg.load_tokenizer(gemma3_path)
    assert len(tokenizer.encode(LONG)) > 600
    assert max(behind(model, tokenizer, gemma3_path, [*PROMPTS[:3], LONG])) <= 0.25


@pytest.mark.slow
def test_a_float32_copy_says_the_same_in_llama_cpp(model: Model, gemma3_path: Path, tmp_path: Path) -> None:
    tokenizer = tg.load_tokenizer(gemma3_path)
    path = tmp_path / "copy.gguf"
    tg.save_model(model, path, tokenizer=tokenizer)
    assert max(behind(model, tokenizer, path, [*PROMPTS[:2], LONG])) == 0.0


def test_its_tokenizer_has_llama_cpps_ids(gemma3_path: Path) -> None:
    special = ("<start_of_turn>", "<end_of_turn>", "<bos>", "\n\n\n", "<h1>", "<mask>", "[multimodal]")
    assert differing(tg.load_tokenizer(gemma3_path), Judge(gemma3_path), varied_texts(200, special=special)) == []
