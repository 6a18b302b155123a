"""Tags and spans, held to seqeval in every scheme."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval import scheme as theirs
from seqeval.metrics.sequence_labeling import get_entities

from tsumugu.core.errors import InputError
from tsumugu.data.labelled.tags import SCHEMES, TokenSpan, spans_to_tags, split_tag, tags_to_spans


def tags(prefixes: str) -> st.SearchStrategy[list[str]]:
    marked = st.builds("{}-{}".format, st.sampled_from(prefixes.replace("O", "")), st.sampled_from(["A", "B", "C-D"]))
    return st.lists(st.one_of(st.just("O"), marked), min_size=1, max_size=12)


@given(tags("IOBES"))
def test_lenient_reading_is_seqevals(sequence: list[str]) -> None:
    expected = [TokenSpan(label, start, end + 1) for label, start, end in get_entities(sequence)]
    assert tags_to_spans(sequence) == expected


@pytest.mark.parametrize("name", list(SCHEMES))
@given(data=st.data())
def test_strict_reading_is_seqevals(name: str, data: st.DataObject) -> None:
    sequence = data.draw(tags(SCHEMES[name].prefixes))
    found = theirs.Tokens(sequence, getattr(theirs, name)).entities
    assert tags_to_spans(sequence, name) == [TokenSpan(each.tag, each.start, each.end) for each in found]


@pytest.mark.parametrize("name", ["IOB2", "IOE2", "IOBES", "BILOU", "BIO", "bioes"])
@given(data=st.data())
def test_spans_written_are_spans_read(name: str, data: st.DataObject) -> None:
    edges = sorted(data.draw(st.sets(st.integers(0, 20), max_size=8)))
    spans = [
        TokenSpan(data.draw(st.sampled_from(["A", "B"])), start, end)
        for start, end in zip(edges[::2], edges[1::2], strict=False)
    ]
    written = spans_to_tags(spans, 21, name)
    assert tags_to_spans(written, name) == spans
    assert tags_to_spans(written) == spans


def test_bilou_is_read_leniently_too() -> None:
    assert tags_to_spans(["U-A", "U-A", "B-A", "L-A", "I-A"]) == [
        TokenSpan("A", 0, 1),
        TokenSpan("A", 1, 2),
        TokenSpan("A", 2, 4),
        TokenSpan("A", 4, 5),
    ]


@pytest.mark.parametrize("tag", ["X-A", "", "PER", "o", "B_A"])
def test_what_is_no_tag(tag: str) -> None:
    with pytest.raises(InputError, match="is of no scheme"):
        split_tag(tag)


def test_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="'S-A' is not of scheme IOB2; prefixes: I, O, B"):
        tags_to_spans(["S-A"], "IOB2")
    with pytest.raises(InputError, match="unknown scheme 'IOB3'; did you mean 'IOB"):
        tags_to_spans(["O"], "IOB3")
    with pytest.raises(InputError, match="overlap at token 1"):
        spans_to_tags([("A", 0, 2), ("B", 1, 3)], 4)
    with pytest.raises(InputError, match="leaves the 2 tokens"):
        spans_to_tags([("A", 0, 3)], 2)
    with pytest.raises(InputError, match="IOB1 is read but not written"):
        spans_to_tags([], 2, "IOB1")
