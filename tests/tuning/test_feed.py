"""What is read when: each row once an epoch, the same on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsumugu.core.errors import ConfigError
from tsumugu.objectives.base import Batch
from tsumugu.tuning.base import Row
from tsumugu.tuning.feed import ExampleFeed, held_back
from tsumugu.tuning.writing import TextToText


def make(rows):
    longest = max(len(row.ids) for row in rows)
    tokens = sum(len(row.ids) for row in rows)
    return Batch({"rows": np.array([row.answer for row in rows])}, {}, tokens, longest * len(rows) - tokens, 0)


def rows_of(lengths):
    return [Row([1] * length, at) for at, length in enumerate(lengths)]


def feed_of(rows, **options):
    chosen = {"batch": 4, "micro_batch": None, "parts": 1, "seed": 3, **options}
    return ExampleFeed(rows, make, **chosen)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=4, max_size=80),
    batch=st.integers(1, 20),
    micro_batch=st.none() | st.integers(1, 9),
    parts=st.integers(1, 3),
    by_length=st.booleans(),
)
def test_each_row_once_an_epoch(lengths, batch, micro_batch, parts, by_length):
    rows = rows_of(lengths)
    try:
        feed = feed_of(rows, batch=batch, micro_batch=micro_batch, parts=parts, by_length=by_length)
    except ConfigError:
        assert len(rows) // -(-len(rows) // batch) < parts
        return
    for epoch in (0, 1):
        read, sizes = [], []
        for step in range(epoch * feed.steps_per_epoch, (epoch + 1) * feed.steps_per_epoch):
            dealt = [feed.batches(step, part, parts) for part in range(parts)]
            assert len({len(each) for each in dealt}) == 1
            some = np.concatenate([batch.inputs["rows"] for each in dealt for batch in each])
            assert all(len(batch.inputs["rows"]) for each in dealt for batch in each)
            sizes.append(len(some))
            read += some.tolist()
        assert sorted(read) == list(range(len(rows)))
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch


@given(
    lengths=st.lists(st.integers(1, 30), min_size=6, max_size=60),
    batch=st.integers(6, 20),
    places=st.integers(10, 200),
    parts=st.integers(1, 2),
)
def test_no_more_tokens_are_computed_at_once_than_allowed(lengths, batch, places, parts):
    feed = feed_of(rows_of(lengths), batch=batch, parts=parts, places=places)
    read = []
    for step in range(feed.steps_per_epoch):
        dealt = [feed.batches(step, part, parts) for part in range(parts)]
        assert len({len(each) for each in dealt}) == 1
        for each in (batch for some in dealt for batch in some):
            read += each.inputs["rows"].tolist()
            assert each.tokens + each.padding <= places or len(each.inputs["rows"]) <= parts
    assert sorted(read) == list(range(len(lengths)))


def test_a_step_is_a_function_of_its_number():
    rows = rows_of([3, 5, 2, 9, 4, 4, 1, 7, 8, 6])
    one, other = feed_of(rows), feed_of(rows)
    order = [5, 0, 2, 1, 4, 3]
    found = {step: other.batches(step, 0, 1)[0].inputs["rows"].tolist() for step in order}
    assert found == {step: one.batches(step, 0, 1)[0].inputs["rows"].tolist() for step in sorted(order)}
    assert found != {step: feed_of(rows, seed=4).batches(step, 0, 1)[0].inputs["rows"].tolist() for step in order}


def share_of_padding(rows, make=make, **options):
    chosen = {"batch": 32, "micro_batch": None, "parts": 1, "seed": 3, **options}
    feed = ExampleFeed(rows, make, **chosen)
    batches = [feed.batches(step, 0, 1)[0] for step in range(feed.steps_per_epoch)]
    padding = sum(batch.padding for batch in batches)
    return padding / (padding + sum(batch.tokens for batch in batches))


@pytest.mark.parametrize("count", [1700, 3000, 3300, 9000])
def test_little_is_padding(count):
    random = np.random.default_rng(0)
    rows = rows_of(np.clip(random.lognormal(3.2, 0.6, count), 4, 128).astype(int))
    assert share_of_padding(rows, by_length=True) < 0.05
    assert share_of_padding(rows, by_length=False) > 0.4


def test_what_is_written_is_sorted_too_and_counted():
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3.2, 0.6, (2000, 2)), 4, 128).astype(int)
    rows = [Row([1] * read, [1] * written, written=int(written)) for read, written in lengths]
    objective = object.__new__(TextToText)
    objective.pad = 0
    batch = objective.batch(rows[:4])
    assert batch.tokens == lengths[:4].sum()
    assert batch.tokens + batch.padding == 4 * lengths[:4].max(0).sum()
    plain = [Row(row.ids, row) for row in rows]
    unsorted = share_of_padding(plain, lambda some: objective.batch([row.answer for row in some]))
    assert share_of_padding(rows, objective.batch) < 0.8 * unsorted


def test_more_ranks_than_rows_are_refused():
    with pytest.raises(ConfigError, match="cannot be dealt"):
        feed_of(rows_of([3, 3, 3]), batch=2, parts=2)


def test_what_is_held_back_keeps_to_the_tokens_too():
    rows = rows_of([3, 30, 4, 28, 5, 27, 3, 29])
    made = [*held_back(rows, make, micro_batch=8, places=60)]
    assert sorted(np.concatenate([each.inputs["rows"] for each in made]).tolist()) == list(range(8))
    assert len(made) > 1
    assert max(each.tokens + each.padding for each in made) <= 60
    assert len([*held_back(rows, make, micro_batch=8)]) == 1
