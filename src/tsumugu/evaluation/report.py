"""The report of an evaluation: one HTML file that needs no network and no script, in English or Japanese."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from tsumugu.checkpoints.atomic import new_file
from tsumugu.core.errors import InputError
from tsumugu.evaluation.comparison import Comparison, p_value
from tsumugu.evaluation.report_words import WORDS
from tsumugu.evaluation.resampling import Score
from tsumugu.evaluation.results import Results, Slice
from tsumugu.evaluation.scoring import Item, score
from tsumugu.text.japanese import japanese_share

_ERRORS = 50
_LONGEST = 400  # characters of a text that are shown
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_MOST_LABELS = 40  # a larger matrix cannot be read


def write_report(results: Results, items: Sequence[Item], path: Path, *, language: str = "en") -> None:
    """Write the report of one system.

    Args:
        results, items: what was found, and the examples with their predictions.
        path: of the file, which appears whole or not at all.
        language: "en" or "ja".

    Raises:
        InputError: there is no such language.
        CheckpointError: the file cannot be written.
    """
    main = results.scores[results.primary]
    page = _template("report.html.j2").render(
        **_common(language),
        results=results,
        main=main,
        metrics=[_bar(name, each, results.higher[name]) for name, each in results.scores.items()],
        slices=[_bar(_part(each, language), each.score, True, by=each.by) for each in results.slices],
        confusion=_confusion(results),
        bins=_reliability(results),
        errors=_errors(results, items),
        wrong=sum(not item.correct for item in items),
    )
    _write(path, page)


def write_comparison(comparisons: Sequence[Comparison], path: Path, *, language: str = "en") -> None:
    """Write the report of comparisons, a table for each set of data; see `write_report`."""
    tables = []
    for each in comparisons:
        names = [each.metric, *(name for name in each.ranks[0].scores if name != each.metric)]
        rows = [{"rank": rank, "bar": _bar(rank.system, rank.scores[each.metric], True)} for rank in each.ranks]
        tables.append({"comparison": each, "names": names[:5], "rows": rows})
    _write(path, _template("comparison.html.j2").render(**_common(language), tables=tables, p_value=p_value))


def _common(language: str) -> dict[str, Any]:
    if language not in WORDS:
        raise InputError(f"there is no report in {language!r}", where="language", mend=f"one of {', '.join(WORDS)}")
    return {"language": language, "words": WORDS[language]}


def _write(path: Path, page: str) -> None:
    with new_file(path) as partial:
        partial.write_text(page, "utf-8")


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["shown"] = shown
    environment.tests["japanese"] = lambda text: japanese_share([str(text)]) > 0.05
    return environment.get_template(name)


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def shown(text: str) -> str:
    """A text as the report shows it: its middle left out where it is long, signs that are none replaced."""
    text = _CONTROL.sub("\ufffd", text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def _part(each: Slice, language: str) -> str:
    """The name of a slice in the report's language."""
    edges = re.fullmatch(r"([\d,]+) to ([\d,]+) characters", each.name) if each.by == "length" else None
    return each.name if edges is None else WORDS[language]["range"].format(*edges.groups())


def _bar(name: str, each: Score, higher: bool, by: str = "") -> dict[str, Any]:
    """A value with its interval on a scale from 0 to 1, 0 to 100, or -1 to 1, in percent; losses have none."""
    if name in ("log_loss", "brier", "perplexity", "bits_per_byte"):
        return {"name": name, "score": each, "higher": higher, "by": by, "places": None}
    top = 100.0 if max(each.value, each.high) > 1 and name in ("bleu", "chrf") else max(1.0, each.high, each.value)
    floor = -1.0 if min(each.value, each.low) < 0 else 0.0
    sound = all(map(math.isfinite, (each.value, each.low, each.high)))
    places = [100 * (value - floor) / (top - floor) for value in (each.value, each.low, each.high)] if sound else []
    return {"name": name, "score": each, "higher": higher, "by": by, "places": [f"{place:.2f}" for place in places]}


def _confusion(results: Results) -> list[dict[str, Any]]:
    """The rows of the matrix, each cell with its share of the row; nothing where there are too many labels."""
    if not results.confusion or len(results.labels) > _MOST_LABELS:
        return []
    rows = []
    none = any(row[-1] for row in results.confusion)
    for label, counts in zip(results.labels, results.confusion, strict=True):
        total = max(sum(counts), 1)
        cells = [{"count": count, "share": count / total} for count in (counts if none else counts[:-1])]
        rows.append({"label": label, "cells": cells})
    return rows


def _reliability(results: Results) -> list[dict[str, float]]:
    """The bins that are not empty, in the coordinates of a square of 200."""
    width = 200 / max(len(results.calibration), 1)
    return [
        {
            "x": at * width,
            "width": width,
            "y": 200 * (1 - accuracy),
            "height": 200 * accuracy,
            "count": count,
            "confidence": confidence,
            "accuracy": accuracy,
        }
        for at, (count, confidence, accuracy) in enumerate(results.calibration)
        if count
    ]


def _errors(results: Results, items: Sequence[Item]) -> list[dict[str, Any]]:
    """The worst answers first: of classes, those that the system was surest of."""
    losses, unlikely = _losses(results, items), results.kind == "language-modeling"
    order = sorted(range(len(items)), key=lambda at: (-losses[at], -(items[at].prediction.confidence or 0.0), at))
    return [
        {
            "id": items[at].id,
            "texts": [shown(text) for text in items[at].texts],
            "reference": [] if unlikely else _said(items[at].reference, items[at]),
            "prediction": [_number(losses[at])] if unlikely else _said(items[at].prediction.answer, items[at]),
            "confidence": items[at].prediction.confidence,
        }
        for at in order[:_ERRORS]
        if losses[at] > 0
    ]


def _losses(results: Results, items: Sequence[Item]) -> list[float]:
    """How bad each answer is, 0 for none."""
    if results.kind == "similarity":
        gold, guessed = (
            np.array([float(each) for each in values])
            for values in ([item.reference for item in items], [item.prediction.answer for item in items])
        )
        scaled = [(each - each.mean()) / (each.std() or 1.0) for each in (gold, guessed)]
        return [float(each) for each in np.abs(scaled[0] - scaled[1])]
    measure = score(items, results.scoring).find(results.primary)
    if results.kind == "language-modeling" and measure.finish is not None:
        return [float(each) for each in measure.finish(measure.rows)]
    if measure.finish is None or not measure.higher:
        return [float(not item.correct) for item in items]
    values = measure.finish(measure.rows)
    return [
        0.0 if item.correct else float(values.max() - value) or 1e-9 for item, value in zip(items, values, strict=True)
    ]


def _said(answer: Any, item: Item) -> list[str]:
    """An answer or a reference in words."""
    if isinstance(answer, float):
        return [_number(answer)]
    if isinstance(answer, tuple | list):
        if answer and isinstance(answer[0], tuple | list):
            text = item.texts[0]
            return [f"{label}: {shown(text[start:end])}" for start, end, label in answer]
        return [shown(str(each)) for each in dict.fromkeys(answer)][:5] or ["∅"]
    return [shown(str(answer)) if str(answer) else "∅"]
