"""Masks: what they hold, that joining them is a proper "and", and that plain causal attention costs no tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsumugu.blocks.mask import EVERYTHING, Mask, causal_mask, document_mask, padding_mask, window_mask

SIDE, BATCH = 5, 2


def table(mask: Mask) -> np.ndarray:
    """What a mask comes to: scores of 0 (or its bias) where a query sees, -inf where not; `[batch, 1, side, side]`."""
    scores = torch.zeros(BATCH, 1, SIDE, SIDE, dtype=torch.float64)
    if mask.causal:
        scores = scores.masked_fill(~torch.ones(SIDE, SIDE, dtype=torch.bool).tril(), float("-inf"))
    given = mask.scores(torch.float64)
    if given is not None:
        scores = scores.masked_fill(~given, float("-inf")) if given.dtype == torch.bool else scores + given
    return scores.numpy()


bits = st.lists(st.booleans(), min_size=BATCH * SIDE, max_size=BATCH * SIDE).map(
    lambda flat: torch.tensor(flat).view(BATCH, SIDE)
)
numbers = st.lists(st.integers(-8, 8), min_size=SIDE * SIDE, max_size=SIDE * SIDE).map(
    lambda flat: torch.tensor(flat, dtype=torch.float64).view(1, 1, SIDE, SIDE) / 4  # sums of these are exact
)
masks = st.one_of(
    st.just(EVERYTHING),
    st.just(causal_mask(SIDE)),
    st.integers(1, SIDE + 1).map(lambda window: causal_mask(SIDE, window=window)),
    st.integers(0, SIDE).map(lambda window: window_mask(SIDE, window)),
    bits.map(padding_mask),
    bits.map(lambda each: document_mask(each.cumsum(-1))),
    numbers.map(lambda bias: Mask(bias=bias)),
    st.tuples(bits, numbers).map(lambda pair: padding_mask(pair[0]).with_bias(pair[1])),
    numbers.map(lambda bias: causal_mask(SIDE).with_bias(bias)),
)


@settings(deadline=None)
@given(masks, masks, masks)
def test_and_is_associative_and_commutative_and_adds_up(a: Mask, b: Mask, c: Mask) -> None:
    assert np.array_equal(table(a & b), table(b & a))
    assert np.array_equal(table((a & b) & c), table(a & (b & c)))
    assert np.array_equal(table(a & b), table(a) + table(b))
    assert np.array_equal(table(a & EVERYTHING), table(a))


@settings(deadline=None)
@given(masks, numbers)
def test_with_bias_is_and_with_a_bias(mask: Mask, bias: torch.Tensor) -> None:
    assert np.array_equal(table(mask.with_bias(bias)), table(mask & Mask(bias=bias)))


@settings(deadline=None)
@given(
    queries=st.integers(1, 6),
    offset=st.integers(0, 8),
    spare=st.integers(0, 3),
    window=st.one_of(st.none(), st.integers(1, 10)),
    by_row=st.booleans(),
)
def test_causal_mask_sees_itself_and_the_past(
    queries: int, offset: int, spare: int, window: int | None, by_row: bool
) -> None:
    keys = offset + queries + spare
    offsets = [offset, max(0, offset - 1)] if by_row else [offset]
    mask = causal_mask(queries, keys, offset=torch.tensor(offsets) if by_row else offset, window=window)
    for row, start in enumerate(offsets):
        for query in range(queries):
            for key in range(keys):
                wanted = key <= query + start and (window is None or key > query + start - window)
                if mask.allowed is not None:
                    assert not mask.causal
                    assert bool(mask.allowed[row, 0, query, key]) == wanted
                else:
                    assert (not mask.causal or key <= query) == wanted


def test_plain_causal_makes_no_tensor() -> None:
    for mask in (
        causal_mask(7),
        causal_mask(7, window=7),
        causal_mask(1, 9, offset=8),
        causal_mask(1),
        causal_mask(7) & EVERYTHING,
        causal_mask(7) & causal_mask(7),
        causal_mask(7) & padding_mask(torch.ones(2, 7)),
    ):
        assert mask.allowed is None
        assert mask.bias is None
        assert mask.scores(torch.float32) is None
    assert causal_mask(7).causal
    assert causal_mask(1, 9, offset=8).hides_nothing
    assert padding_mask(torch.ones(2, 7)).hides_nothing


def test_scores_have_the_type_of_the_queries() -> None:
    bias = torch.zeros(1, 1, 2, 2)
    assert Mask(bias=bias).scores(torch.bfloat16).dtype == torch.bfloat16  # type: ignore[union-attr]
    assert causal_mask(2).with_bias(bias).scores(torch.float16).dtype == torch.float16  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.float32, torch.uint8])
def test_padding_is_told_by_numbers_of_any_type(dtype: torch.dtype) -> None:
    mask = padding_mask(torch.tensor([[1, 1, 0]]).to(dtype))
    assert mask.allowed is not None
    assert mask.allowed.tolist() == [[[[True, True, False]]]]


@settings(deadline=None)
@given(bits, st.integers(1, SIDE + 1))
def test_a_prefix_sees_itself_in_both_directions_as_far_as_a_window_reaches(prefix: torch.Tensor, window: int) -> None:
    found = table(causal_mask(SIDE, window=window, prefix=prefix))
    for row in range(BATCH):
        for query in range(SIDE):
            for key in range(SIDE):
                both = bool(prefix[row, query] and prefix[row, key])
                sees = abs(query - key) < window and (key <= query or both)
                assert found[row, 0, query, key] == (0 if sees else -np.inf)
    whole = table(causal_mask(SIDE, prefix=prefix))
    assert np.array_equal(
        whole == 0, (table(causal_mask(SIDE)) == 0) | (prefix[:, None, :, None] & prefix[:, None, None]).numpy()
    )
