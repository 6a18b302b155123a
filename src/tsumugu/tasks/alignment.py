"""What a model is to say at each token: labelled spans of characters as tags, answers as a first and a last token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tsumugu.data.labelled.examples import QuestionExample, SpanExample
from tsumugu.data.labelled.tags import OUTSIDE
from tsumugu.objectives.base import IGNORE


def tags_of(
    example: SpanExample, offsets: Sequence[tuple[int, int]], sides: Sequence[int | None], index: Mapping[str, int]
) -> list[int]:
    """The tag of each token; special tokens have none. A token that a span touches is part of it."""
    spans = list(example.spans)
    tags, at, opened = [], 0, False
    for (start, end), side in zip(offsets, sides, strict=True):
        if side is None or start == end:
            tags.append(IGNORE)
            continue
        while at < len(spans) and spans[at].end <= start:
            at, opened = at + 1, False
        if at < len(spans) and spans[at].start < end:
            # A piece may begin in the middle of a span.
            tags.append(index[f"{'I' if opened or spans[at].start < start else 'B'}-{spans[at].label}"])
            opened = True
        else:
            tags.append(index[OUTSIDE])
    return tags


def span_of(
    example: QuestionExample, offsets: Sequence[tuple[int, int]], sides: Sequence[int | None]
) -> tuple[int, int]:
    """The first and last token of the answer in a piece of its context; (0, 0) where it is not wholly there."""
    if not example.answers:
        return 0, 0
    start = example.answers[0].start
    end = start + len(example.answers[0].text)
    inside = [
        at for at, ((a, b), side) in enumerate(zip(offsets, sides, strict=True)) if side == 1 and a < end and b > start
    ]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    return inside[0], inside[-1]
