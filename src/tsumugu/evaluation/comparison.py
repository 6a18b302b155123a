"""Several systems on the same examples: ranked, with intervals, and how likely their differences are by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tsumugu.core.errors import InputError
from tsumugu.evaluation.resampling import Difference, Score, Test, compare, mcnemar
from tsumugu.evaluation.results import Results, Settings
from tsumugu.evaluation.scoring import Item, score

Evaluated = tuple[Results, Sequence[Item]]


@dataclass(frozen=True)
class Rank:
    """One system of a comparison.

    Attributes:
        place: 1 is the best.
        system: its name.
        scores: every metric.
        difference: to the system that all are compared with; None for that one.
        adjusted: the p-value, corrected by Holm for the number of comparisons.
        mcnemar: the p-value of McNemar's test, where answers are right or wrong.
        seconds: how long the system took.
    """

    place: int
    system: str
    scores: dict[str, Score]
    difference: Difference | None
    adjusted: float | None
    mcnemar: float | None
    seconds: float | None


@dataclass(frozen=True)
class Comparison:
    """Systems on one set of examples, the best first.

    Attributes:
        source, kind, examples: of the data.
        metric: by which they are ranked.
        against: the system that the others are compared with.
        ranks: the systems.
    """

    source: str
    kind: str
    examples: int
    metric: str
    against: str
    ranks: list[Rank]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a number that is none is null."""
        found = asdict(self)
        for rank in found["ranks"]:
            for each in rank["scores"].values():
                each.update({name: None for name in ("value", "low", "high") if not math.isfinite(each[name])})
        return found


def rank(
    evaluated: Sequence[Evaluated],
    *,
    metric: str | None = None,
    against: str | None = None,
    test: Test | None = None,
    settings: Settings | None = None,
) -> Comparison:
    """Rank systems that solved the same examples.

    Args:
        evaluated: results with their items, as `load` gives them.
        metric: the one that ranks; that of the first results when left out.
        against: the system that the others are compared with; the best when left out.
        test: "randomization" or "bootstrap"; as fits the metric when left out.
        settings: of the tests.

    Raises:
        InputError: the examples are not the same, or there is no such metric or system.

    Source: Dror et al. 2018, "The Hitchhiker's Guide to Testing Statistical Significance in NLP"; Holm 1979, "A Simple
    Sequentially Rejective Multiple Test Procedure".
    """
    settings = settings or Settings()
    first = evaluated[0][0]
    name = metric or first.primary
    for results, items in evaluated[1:]:
        _check_same(evaluated[0], (results, items))
    # Scored anew, and alike: labels that one system alone predicts count for all.
    measures = [score(items, results.scoring).find(name) for results, items in evaluated]
    sign = 1 if measures[0].higher else -1
    order = sorted(range(len(evaluated)), key=lambda at: (-sign * _sound(measures[at].value, sign), at))
    names = [results.system for results, _ in evaluated]
    if against is not None and against not in names:
        raise InputError(f"there is no system {against!r}", where="against", mend=f"one of {', '.join(names)}")
    base = names.index(against) if against is not None else order[0]
    differences = {
        at: compare(
            measures[at],
            measures[base],
            test=test,
            resamples=settings.resamples,
            confidence=settings.confidence,
            seed=settings.seed,
        )
        for at in order
        if at != base
    }
    adjusted = dict(zip(differences, holm([each.p for each in differences.values()]), strict=True))
    right = [np.array([float(item.correct) for item in items]) for _, items in evaluated]
    decided = first.kind in ("text-classification", "pair-classification", "multiple-choice")
    ranks = [
        Rank(
            place=place,
            system=names[at],
            scores=evaluated[at][0].scores,
            difference=differences.get(at),
            adjusted=adjusted.get(at),
            mcnemar=mcnemar(right[at], right[base]) if decided and at != base else None,
            seconds=evaluated[at][0].seconds,
        )
        for place, at in enumerate(order, start=1)
    ]
    return Comparison(first.source, first.kind, first.examples, name, names[base], ranks)


def compare_all(evaluated: Sequence[Evaluated], **options: Any) -> list[Comparison]:
    """A comparison for each set of data among the results, in the order of their first; see `rank`."""
    groups: dict[tuple[str, str], list[Evaluated]] = {}
    for each in evaluated:
        groups.setdefault((each[0].kind, each[0].source), []).append(each)
    return [rank(group, **options) for group in groups.values()]


def holm(values: Sequence[float]) -> list[float]:
    """P-values, corrected for their number."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found, most = [0.0] * len(values), 0.0
    for done, at in enumerate(order):
        most = max(most, min(1.0, values[at] * (len(values) - done)))
        found[at] = most
    return found


def markdown(comparison: Comparison, *, digits: int = 3) -> str:
    """A table of a comparison: systems, metrics with intervals, differences with p-values."""
    metrics = list(comparison.ranks[0].scores)
    metrics.insert(0, metrics.pop(metrics.index(comparison.metric)))
    shown = metrics[:4]
    head = ["", "system", *shown, f"Δ to {comparison.against}", "p", "p (Holm)"]
    lines = [
        f"### {comparison.source}: {comparison.kind}, {comparison.examples:,} examples",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for each in comparison.ranks:
        cells = [str(each.place), each.system.replace("|", "\\|")]
        for at, name in enumerate(shown):
            score_of = each.scores.get(name)
            cells.append(
                ""
                if score_of is None
                else score_of.__format__(f".{digits}f")
                if at == 0
                else f"{score_of.value:.{digits}f}"
            )
        difference = each.difference
        cells += (
            ["", "", ""]
            if difference is None
            else [f"{difference.value:+.{digits}f}", p_value(difference.p), p_value(each.adjusted or 0.0)]
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def p_value(value: float) -> str:
    """A p-value as tables show it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _sound(value: float, sign: int) -> float:
    """A value to sort by: what is no number comes last."""
    return value if math.isfinite(value) else -sign * math.inf


def _check_same(first: Evaluated, second: Evaluated) -> None:
    """Raise InputError unless both solved the same examples."""
    where = f"{first[0].system} and {second[0].system}"
    if first[0].kind != second[0].kind:
        raise InputError(f"one is {first[0].kind}, the other {second[0].kind}", where=where)
    if len(first[1]) != len(second[1]):
        raise InputError(
            f"{len(first[1])} examples and {len(second[1])}", where=where, mend="evaluate both on the same"
        )
    for mine, theirs in zip(first[1], second[1], strict=True):
        if mine.id != theirs.id or mine.reference != theirs.reference:
            raise InputError(
                f"the examples differ, first at {mine.id!r} and {theirs.id!r}",
                where=where,
                mend="evaluate both on the same data",
            )
