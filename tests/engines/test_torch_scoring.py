"""Scores with what is shared read once are those of each text read by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines.conftest import Build

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.engines.session import open_scorer, open_session, read_prefix
from tsumugu.engines.torch_scoring import Tree
from tsumugu.generation.generate import complete, resolve_options
from tsumugu.models.decoder import Decoder

KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"num_kv_heads": 2},
    "llama windowed": {"num_kv_heads": 2, "window": 4},
    "gemma3": {"num_kv_heads": 1, "head_dim": 8, "num_layers": 7, "window": 5, "logit_softcap": 4.0},
}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, build: Build) -> Decoder:
    found = build(request.param.split()[0], **KINDS[request.param])
    assert isinstance(found, Decoder)
    return found


def naive(model: Decoder, text: list[int], answer: list[int]) -> list[float]:
    """One pass over everything for each answer alone."""
    with torch.inference_mode():
        logs = model([text + answer]).logits[0].double().log_softmax(-1)
    return [float(logs[len(text) + place - 1, token]) for place, token in enumerate(answer)]


TOKENS = st.integers(0, 259)
ROWS = st.lists(
    st.tuples(
        st.lists(TOKENS, min_size=1, max_size=9),
        st.lists(st.lists(st.integers(0, 3) | TOKENS, min_size=1, max_size=5), max_size=6),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(prefix=st.lists(TOKENS, max_size=12), rows=ROWS)
def test_any_texts_and_answers(
    prefix: list[int], rows: list[tuple[list[int], list[list[int]]]], model: Decoder
) -> None:
    scorer = open_scorer(model, prefix=prefix)
    for _ in range(2):  # the second time the cache is there already
        found = scorer.score([stem for stem, _ in rows], [answers for _, answers in rows])
        for (stem, answers), mine in zip(rows, found, strict=True):
            assert len(mine) == len(answers)
            for answer, scores in zip(answers, mine, strict=True):
                assert np.allclose(scores, naive(model, prefix + stem, answer), rtol=0, atol=1e-5)


def test_many_rows_are_one_result(model: Decoder) -> None:
    draw = np.random.default_rng(3)
    prefix = draw.integers(0, 260, 9).tolist()
    stems = [draw.integers(0, 260, draw.integers(1, 20)).tolist() for _ in range(130)]
    answers = [[draw.integers(0, 260, 3).tolist() for _ in range(4)] for _ in stems]
    together = open_scorer(model, prefix=prefix).score(stems, answers)
    scorer = open_scorer(model, prefix=prefix)
    for row in (0, 57, 129):
        alone = scorer.score([stems[row]], [answers[row]])[0]
        assert np.allclose(together[row], alone, rtol=0, atol=1e-5)


def test_what_is_shared_stands_once() -> None:
    tree = Tree.grown([7, 8], [[1, 2, 3], [1, 2, 4], [1, 5], [6]])
    assert tree.tokens == [7, 8, 1, 2], "last tokens are asked for, not read"
    assert tree.parents == [-1, 0, 1, 2]
    assert tree.asked[1] == [(1, 1), (2, 2), (3, 4)]


def test_what_cannot_be_scored(model: Decoder, build: Build) -> None:
    scorer = open_scorer(model, prefix=[1])
    for stems, answers in (([[]], [[[1]]]), ([[1]], [[[]]])):
        with pytest.raises(InputError, match="has no token"):
            scorer.score(stems, answers)
    with pytest.raises(InputError, match="70 tokens are more than 64"):
        scorer.score([[1] * 69], [[[1]]])
    with pytest.raises(InputError, match="does not score texts"):
        open_scorer(build("bert", "masked-lm"), prefix=[])


@pytest.mark.parametrize("batch", [1, 4])
def test_sessions_branch_from_a_prefix(model: Decoder, batch: int) -> None:
    """The same tokens as prompts that are read whole."""
    begun = [5, 9, 31, 200, 7, 7, 12]
    prompts = [begun + rest for rest in ([3], [4, 5, 6, 7, 8, 9, 10], [11, 12], [99, 98, 97, 96])][:batch]
    options = resolve_options(model, prompts, {"max_new_tokens": 12, "eos_token_id": 259})
    prefix = read_prefix(model, begun)
    wanted = complete(model, prompts, options)
    assert complete(model, prompts, options, prefix=prefix) == wanted
    assert complete(model, prompts, options, prefix=prefix) == wanted, "a prefix can be used again"
    assert [
        text[len(prompt) :]
        for text, prompt in zip(tg.generate(model, prompts, max_new_tokens=12, eos_token_id=259), prompts, strict=True)
    ] == wanted
    for wrong in ([begun], [[1, 2, 3, 4, 5, 6, 7, 8]]):
        with pytest.raises(InputError, match="does not begin with the prefix"):
            open_session(model, batch=1, capacity=20, prefix=prefix).start(wrong)
