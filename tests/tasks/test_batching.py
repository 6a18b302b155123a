"""Groups of rows of like length: every row once, within the budget, with little padding."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tsumugu.tasks.base import WINDOW
from tsumugu.tasks.batching import ALIKE, LEAST, longest_first


@given(st.lists(st.integers(1, 600), min_size=1, max_size=300), st.integers(1, 40), st.integers(64, 5000))
def test_groups(lengths: list[int], rows: int, budget: int) -> None:
    groups = longest_first(lengths, rows=rows, budget=budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    flat = [lengths[row] for group in groups for row in group]
    assert flat == sorted(lengths, reverse=True)
    for group in groups:
        longest = lengths[group[0]]
        assert len(group) <= rows
        assert len(group) == 1 or len(group) * longest <= budget
        for place, row in enumerate(group):
            assert lengths[row] >= ALIKE * longest or place * longest < LEAST


def test_a_twentieth_is_padding_of_texts_as_people_write_them() -> None:
    draw = random.Random(1)
    lengths = [max(3, min(128, round(draw.lognormvariate(3.2, 0.45)))) for _ in range(WINDOW)]
    groups = longest_first(lengths)
    computed = sum(len(group) * lengths[group[0]] for group in groups)
    assert 1 - sum(lengths) / computed < 0.06
    assert sum(lengths) / len(groups) > 1000  # and what is computed together is still much
