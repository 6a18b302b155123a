"""How results of one shape become columns, and lines in a terminal, whichever way the task was solved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class ShowsLabel:
    """Results are `{"label", "score"}`, or lists of those."""

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        """See `Task.record`."""
        return dict(result) if isinstance(result, Mapping) else {"labels": result}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        """See `Task.lines`."""
        for answer in [result] if isinstance(result, Mapping) else result:
            yield f"{answer['score']:.4f}  {answer['label']}"


class ShowsLabels:
    """Results are `{"sequence", "labels", "scores"}`, the best first."""

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        """See `Task.record`."""
        return {"labels": result["labels"], "scores": result["scores"]}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        """See `Task.lines`."""
        for label, score in zip(result["labels"], result["scores"], strict=True):
            yield f"{score:.4f}  {label}"


class ShowsScore:
    """Results are `{"score"}`."""

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        """See `Task.record`."""
        return dict(result)

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        """See `Task.lines`."""
        yield f"{result['score']:.4f}"


class ShowsEntities:
    """Results are lists of `{"entity" or "entity_group", "score", "word", "start", "end"}`."""

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        """See `Task.record`."""
        return {"entities": result}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        """See `Task.lines`."""
        for each in result:
            kind = each.get("entity", each.get("entity_group"))
            yield f"{each['score']:.4f}  {kind:8}  {each['start']}-{each['end']}\t{each['word']}"
