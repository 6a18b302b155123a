"""Compiled decoders score what is proposed as torch does, whatever stands in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.conftest import Build
from tests.engines.test_torch_scoring import KINDS, ROWS, TOKENS

import tsumugu as tg
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.engines import session_scoring
from tsumugu.engines.native import library
from tsumugu.engines.session import open_scorer

PAIRS = [("native", "llama"), ("native", "llama windowed"), ("native", "gemma3"), ("onnx", "gpt2")]


@pytest.fixture(scope="module", params=PAIRS, ids=" ".join)
def models(request: pytest.FixtureRequest, build: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A compiled decoder, and the same on torch."""
    engine, kind = request.param
    if engine == "native":
        try:
            library.load_library()
        except ConfigError as error:
            pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("scored")
    sizes = {"hidden_size": 64} | ({"head_dim": 16} if engine == "native" else {})
    reference = build(kind.split()[0], **KINDS[kind] | sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSUMUGU_HOME", str(folder / "home"))
        tg.save_model(reference, folder / "model")
        return tg.load_model(folder / "model", engine=engine), reference


@settings(max_examples=15, deadline=None)
@given(prefix=st.lists(TOKENS, max_size=12), rows=ROWS, together=st.integers(1, 9))
def test_scores_are_those_of_torch(
    prefix: list[int], rows: list[tuple[list[int], list[list[int]]]], together: int, models: tuple[Any, Any]
) -> None:
    scorer, reference = (open_scorer(each, prefix=prefix) for each in models)
    scorer._together = together  # type: ignore[attr-defined]  # batches of any size, not as memory has it
    stems, answers = [stem for stem, _ in rows], [mine for _, mine in rows]
    wanted = reference.score(stems, answers)
    for _ in range(2):  # the second time the prefix is there already
        found = scorer.score(stems, answers)
        assert [[len(each) for each in mine] for mine in found] == [[len(each) for each in mine] for mine in answers]
        flat = [[number for mine in side for each in mine for number in each] for side in (found, wanted)]
        assert np.allclose(*flat, rtol=0, atol=1e-4)


def test_the_prefix_is_read_once(models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = models
    read: list[int] = []
    opened = type(model.open_session(batch=1, capacity=16))
    extend = opened.extend
    monkeypatch.setattr(
        opened, "extend", lambda self, texts, **named: read.extend(map(len, texts)) or extend(self, texts, **named)
    )
    scorer = open_scorer(model, prefix=list(range(9)))
    for _ in range(2):
        scorer.score([[1, 2], [3]], [[[4], [5]], [[6]]])
    assert read == [9, 2, 1, 2, 1]


def test_what_cannot_be_scored(models: tuple[Any, Any]) -> None:
    scorer = open_scorer(models[0], prefix=[1])
    for stems, answers in (([[]], [[[1]]]), ([[1]], [[[]]])):
        with pytest.raises(InputError, match="has no token"):
            scorer.score(stems, answers)
    with pytest.raises(InputError, match="70 tokens are more than 64"):
        scorer.score([[1] * 69], [[[1]]])
    assert scorer.score([[1] * 63], [[[1]]])[0][0][0] < 0
    assert session_scoring.ROW_LIMIT >= scorer._together >= 1  # type: ignore[attr-defined]
