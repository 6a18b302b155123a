"""What was read, what was dropped and why: counted as documents come in, with a few examples of each reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tsumugu.core.errors import one_line

_EXAMPLES = 3
_SHOWN = 120  # characters of an example


@dataclass
class Tally:
    """Sums over some documents; characters and bytes are those of the normal form."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int = 0

    def add(self, other: Tally) -> None:
        """Count what the other counted."""
        self.documents += other.documents
        self.characters += other.characters
        self.bytes += other.bytes
        self.tokens += other.tokens


@dataclass
class Dropped:
    """The documents dropped for one reason, with the first few of them: where they stand, the measure, their start."""

    documents: int = 0
    characters: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Report:
    """The counts of a preparation, as plain values inside.

    Attributes:
        read, kept, held_back: all documents; those for training; those for validation.
        changed: how many normalisation changed.
        dropped: by reason, those that could happen with count 0.
        languages: documents by language, where languages are asked for.
        inputs: files, documents read and kept (held back or not) of each input, as the user named them.
    """

    read: Tally = field(default_factory=Tally)
    kept: Tally = field(default_factory=Tally)
    held_back: Tally = field(default_factory=Tally)
    changed: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def begin(cls, reasons: Sequence[str], inputs: Sequence[str]) -> Report:
        """An empty report, of documents that can be dropped for these reasons, from what the user named."""
        report = cls(dropped={reason: Dropped() for reason in reasons})
        report.inputs = [{"input": each, "files": 0, "documents": 0, "kept": 0} for each in inputs]
        return report

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """A report from what `to_dict` gave."""
        dropped = {name: Dropped(**each) for name, each in data["dropped"].items()}
        return cls(
            read=Tally(**data["read"]),
            kept=Tally(**data["kept"]),
            held_back=Tally(**data["held_back"]),
            changed=data["changed"],
            dropped=dropped,
            languages=data["languages"],
            inputs=data["inputs"],
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)

    def count(self, found: Mapping[str, npt.NDArray[Any]], held: npt.NDArray[np.bool_], origin: Sequence[int]) -> None:
        """Count a block.

        Args:
            found: what a worker gave, the reasons made final.
            held: which documents are held back if they are kept, `[documents]`.
            origin: which input each document comes from, `[documents]`.
        """
        kept = found["reasons"] == 0
        self.read.add(_tally(found, np.ones(len(kept), bool), tokens=False))
        self.kept.add(_tally(found, kept & ~held))
        self.held_back.add(_tally(found, kept & held))
        self.changed += int(found["changed"].sum())
        for which, count in zip(*np.unique(found.get("languages", np.zeros(0, str)), return_counts=True), strict=True):
            if which:
                self.languages[str(which)] = self.languages.get(str(which), 0) + int(count)
        self.languages = dict(sorted(self.languages.items()))
        numbers = np.asarray(origin)
        for each in np.unique(numbers):
            self.inputs[each]["documents"] += int((numbers == each).sum())
            self.inputs[each]["kept"] += int(((numbers == each) & kept).sum())

    def drop(self, reason: str, characters: int, where: str, value: float | str | None, text: str) -> None:
        """Count a document that is dropped, and show it when it is among the first of its reason."""
        each = self.dropped[reason]
        each.documents += 1
        each.characters += characters
        if len(each.examples) < _EXAMPLES:
            shown = one_line(text[: 2 * _SHOWN])
            shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
            each.examples.append({"where": where, "value": value, "text": shown})


def _tally(found: Mapping[str, npt.NDArray[Any]], which: npt.NDArray[np.bool_], *, tokens: bool = True) -> Tally:
    return Tally(
        documents=int(which.sum()),
        characters=int(found["characters"][which].sum()),
        bytes=int(found["bytes"][which].sum()),
        tokens=int(found["lengths"][which].sum()) if tokens else 0,
    )
