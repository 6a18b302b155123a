"""A session on torch computes what a forward pass over each whole text computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.conftest import Build

from tsumugu.core.errors import InputError
from tsumugu.engines.session import open_session

TOLERANCE = 2e-5


def alone(model: Any, ids: list[int]) -> np.ndarray:
    """Logits of what follows `ids`."""
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([ids])).logits[0, -1].numpy()
    return found


@pytest.fixture(scope="module")
def models(build: Build) -> dict[str, Any]:
    return {
        "gpt2": build("gpt2"),
        "llama": build("llama", num_kv_heads=2),
        "windowed": build("llama", num_kv_heads=1, window=3),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama", "windowed"])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_course_of_steps(models: dict[str, Any], name: str, data: st.DataObject) -> None:
    """Prompts of any lengths, steps, rows that leave, repeat and change places."""
    model = models[name]
    token = st.integers(0, 259)
    texts = data.draw(st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=4))
    session = open_session(model, batch=len(texts), capacity=24)
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
            assert np.abs(row - alone(model, text)).max() <= TOLERANCE


def test_logits_are_float32_whatever_the_model(build: Build) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        session = open_session(build("llama").to(dtype), batch=1, capacity=8)
        for logits in (session.start([[1, 2, 3]]), session.step(np.array([4]))):
            assert logits.dtype == np.float32
            assert logits.shape == (1, 260)
            assert np.isfinite(logits).all()


def test_a_session_that_is_full_says_so(models: dict[str, Any]) -> None:
    session = open_session(models["llama"], batch=1, capacity=4)
    session.start([[1, 2, 3]])
    session.step(np.array([4]))
    with pytest.raises(InputError, match="5 tokens do not fit a cache of 4"):
        session.step(np.array([4]))


def test_no_session_without_a_language_model(build: Build) -> None:
    with pytest.raises(InputError, match="head 'base' does not generate text"):
        open_session(build("llama", "base"), batch=1, capacity=4)
    with pytest.raises(InputError, match=r"bert model .* does not generate text"):
        open_session(build("bert", "masked-lm"), batch=1, capacity=4)
