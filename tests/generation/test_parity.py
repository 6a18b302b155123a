"""Greedy search and beams choose the reference library's tokens, every one."""

from __future__ import annotations

from typing import Any

import pytest
from tests.generation.conftest import Pair, left_padded, prompts, right_padded, theirs_new

import tsumugu as tg

ENDS = [None, [7], [7, 11, 60, 61, 80, 81, 90]]
ROWS = prompts(5, 5, 5, 5)
RAGGED = prompts(9, 3, 1, 6, seed=3)


def ours_new(pair: Pair, rows: list[list[int]], ends: list[int] | None, **options: Any) -> list[list[int]]:
    """Our new tokens for each text."""
    copies = options.get("num_return_sequences", 1)
    found = tg.generate(pair.ours, rows, eos_token_id=ends, **options)
    return [text[len(rows[index // copies]) :] for index, text in enumerate(found)]


@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"min_new_tokens": 9},
        {"min_new_tokens": 20, "repetition_penalty": 1.1},
    ],
    ids=str,
)
def test_greedy(pair: Pair, ends: list[int] | None, options: dict[str, Any]) -> None:
    options = {**options, "max_new_tokens": 20}
    assert ours_new(pair, ROWS, ends, **options) == theirs_new(pair.theirs, ROWS, ends, **options)


@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_greedy_with_prompts_of_different_lengths(pair: Pair, ends: list[int] | None) -> None:
    wanted = theirs_new(pair.theirs, RAGGED, ends, max_new_tokens=16)
    assert ours_new(pair, RAGGED, ends, max_new_tokens=16) == wanted
    for padded in (left_padded(RAGGED), right_padded(RAGGED)):
        found = tg.generate(pair.ours, *padded, eos_token_id=ends, max_new_tokens=16, pad_token_id=3)
        assert found.shape == (4, 9 + max(map(len, wanted)))
        assert (found[:, :9] == padded[0]).all()
        for row, new in zip(found[:, 9:].tolist(), wanted, strict=True):
            assert row == new + [3] * (len(row) - len(new))


def test_max_length(pair: Pair) -> None:
    for length in (6, 13):
        assert ours_new(pair, ROWS, None, max_length=length) == theirs_new(pair.theirs, ROWS, None, max_length=length)


def test_the_end_token_is_tried(pair: Pair) -> None:
    """The cases above mean something: some texts end early, some do not."""
    lengths = {len(each) for each in ours_new(pair, ROWS + RAGGED, ENDS[2], max_new_tokens=20)}
    assert min(lengths) < 20
    assert len(lengths) > 1


@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_beams(pairs: Any, num_beams: int, length_penalty: float, early_stopping: Any) -> None:
    pair = pairs("gpt2 plain" if num_beams == 3 else "llama grouped")
    for ends in ENDS:
        options = {
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "num_return_sequences": num_beams,
            "max_new_tokens": 12,
        }
        assert ours_new(pair, ROWS, ends, **options) == theirs_new(pair.theirs, ROWS, ends, **options)


@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
        {"num_beams": 3, "min_new_tokens": 6},
        {"num_beams": 2, "num_return_sequences": 2, "early_stopping": True},
    ],
    ids=str,
)
def test_beams_with_prompts_of_different_lengths(pair: Pair, ends: list[int] | None, options: dict[str, Any]) -> None:
    options = {**options, "max_new_tokens": 12}
    assert ours_new(pair, RAGGED, ends, **options) == theirs_new(pair.theirs, RAGGED, ends, **options)


def test_beams_with_a_repetition_penalty(pair: Pair) -> None:
    options = {"num_beams": 3, "repetition_penalty": 1.4, "max_new_tokens": 12, "num_return_sequences": 3}
    for ends in ENDS:
        assert ours_new(pair, ROWS, ends, **options) == theirs_new(pair.theirs, ROWS, ends, **options)
