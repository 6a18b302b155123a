"""Pairs of tiny random decoders, the reference library's and ours with the same weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from tests.models import references
from tests.threads import one_thread as one_thread
from transformers import PreTrainedModel

from tsumugu.core.registry import FAMILIES
from tsumugu.models.decoder import Decoder

CONTEXT = 48
CASES = ("gpt2 plain", "llama grouped", "llama llama3", "mistral window", "gemma3_text plain")


class Pair(NamedTuple):
    """One network twice."""

    ours: Decoder
    theirs: PreTrainedModel


@pytest.fixture(scope="session")
def pairs() -> Callable[[str], Pair]:
    """A case of `references` -> the two, with a context of 48 tokens and no end token of their own."""

    @functools.cache
    def made(case: str) -> Pair:
        theirs = references.reference(case, "causal-lm", positions=CONTEXT)
        theirs.config.eos_token_id = theirs.generation_config.eos_token_id = None
        family = FAMILIES[case.split()[0]]
        ours = family.build(family.from_hub(json.loads(theirs.config.to_json_string())), "causal-lm").eval()
        ours.load_state_dict(ours.keymap.to_ours(theirs.state_dict()), strict=False)
        ours.tie()
        return Pair(ours, theirs)

    return made


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, pairs: Callable[[str], Pair]) -> Pair:
    return pairs(request.param)


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random prompts without the pad token."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 99, (length,), generator=generator).tolist() for length in lengths]


def left_padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask `[batch, longest]`, padding first."""
    longest = max(map(len, rows))
    ids = torch.tensor([[references.PAD] * (longest - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def right_padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask `[batch, longest]`, padding last."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [references.PAD] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def theirs_new(
    theirs: PreTrainedModel, rows: list[list[int]], ends: list[int] | None, **options: Any
) -> list[list[int]]:
    """The reference library's new tokens for each text, with the one that ended it and without padding."""
    ids, mask = left_padded(rows)
    options = {"do_sample": False, "pad_token_id": references.PAD, "eos_token_id": ends, **options}
    with torch.no_grad():
        out = theirs.generate(ids, attention_mask=mask, **options)
    return [cut(row, ends or []) for row in out[:, ids.shape[1] :].tolist()]


def cut(row: list[int], ends: list[int]) -> list[int]:
    """Up to and with the first end; padding after it is dropped."""
    for index, token in enumerate(row):
        if token in ends:
            return row[: index + 1]
    return row
