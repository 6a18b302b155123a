"""The result of an evaluation: computed once, kept as ``results.json`` beside ``predictions.jsonl``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tsumugu import __version__
from tsumugu.checkpoints.atomic import new_file
from tsumugu.core.errors import InputError
from tsumugu.data.readers import read_rows
from tsumugu.evaluation.metrics import Array, calibration_bins, confusion_matrix, encode, precision_recall_f1
from tsumugu.evaluation.resampling import Measure, Score, bootstrap
from tsumugu.evaluation.scoring import BINS, PRIMARY, Item, Prediction, Scored, Scoring, score

RESULTS, PREDICTIONS, REPORT = "results.json", "predictions.jsonl", "report.html"
_LEAST = 5
"""Slices of fewer examples say nothing."""


@dataclass(frozen=True)
class Settings:
    """How sure we want to be: resamples of the bootstrap, the confidence of intervals, the seed."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Slice:
    """Some of the examples.

    Attributes:
        by: what they have in common: "length", "label", or a column.
        name: which of them.
        score: the primary metric of these.
    """

    by: str
    name: str
    score: Score


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
        system: what was evaluated: a model, a file of predictions, a baseline.
        source: the data.
        kind, labels: of the data.
        primary: the metric that ranks.
        scores: every metric.
        higher: whether more is better, by metric.
        per_label: support, predicted, precision, recall, f1 of each label.
        confusion: how often a label (row) was taken for which (column; the last: for none of them).
        calibration: examples, mean confidence and accuracy of each bin.
        slices: the primary metric of parts.
        notes: rules, signatures, thresholds.
        seconds: how long the system took, None where it was not run.
        skipped: rows of the data that were passed over.
    """

    system: str
    source: str
    kind: str
    labels: tuple[str, ...]
    primary: str
    scores: dict[str, Score]
    higher: dict[str, bool]
    per_label: list[dict[str, Any]] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    calibration: list[list[float]] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    skipped: int = 0
    settings: Settings = field(default_factory=Settings)
    scoring: Scoring = field(default_factory=lambda: Scoring(""))
    version: str = __version__
    created: str = ""

    @property
    def examples(self) -> int:
        return self.scores[self.primary].examples

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a number that is none is null."""
        found: dict[str, Any] = _finite(asdict(self))
        return found


def summarize(
    items: Sequence[Item],
    scoring: Scoring,
    *,
    system: str,
    source: str = "",
    primary: str | None = None,
    slice_by: Sequence[str] = (),
    settings: Settings | None = None,
    seconds: float | None = None,
    skipped: int = 0,
) -> Results:
    """Score items with intervals, by label and by part.

    Args:
        items: the examples, solved.
        scoring: how they are scored.
        system, source: what was evaluated, and on what.
        primary: the metric that ranks; the usual one of the kind when left out.
        slice_by: columns kept as `extra` whose values make further slices.
        settings: of the bootstrap.
        seconds: how long the system took.
        skipped: rows of the data that were passed over.

    Raises:
        InputError: there is no such metric or column, or as `score` says.
    """
    settings = settings or Settings()
    scored = score(items, scoring)
    main = scored.find(primary or PRIMARY[scoring.kind])

    def sure(measure: Measure) -> Score:
        return bootstrap(measure, resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed)

    return Results(
        system=system,
        source=source,
        kind=scoring.kind,
        labels=scored.labels,
        primary=main.name,
        scores={name: sure(measure) for name, measure in scored.measures.items()},
        higher={name: measure.higher for name, measure in scored.measures.items()},
        per_label=_per_label(scored),
        confusion=_confusion(items, scored, scoring.kind),
        calibration=_calibration(items),
        slices=[
            Slice(by, name, sure(main.part(np.array(places))))
            for by, name, places in _parts(items, scoring.kind, slice_by)
            if len(places) >= _LEAST
        ],
        notes=scored.notes,
        seconds=seconds,
        skipped=skipped,
        settings=settings,
        scoring=scoring,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _per_label(scored: Scored) -> list[dict[str, Any]]:
    if not scored.labels:
        return []
    sums: Array = next(iter(scored.measures.values())).rows.sum(0)
    _, predicted, gold = sums.reshape(3, -1)
    values = zip(*precision_recall_f1(sums), strict=True)
    return [
        {
            "label": label,
            "support": int(gold[at]),
            "predicted": int(predicted[at]),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
        }
        for at, (label, (precision, recall, f1)) in enumerate(zip(scored.labels, values, strict=False))
    ]


def _confusion(items: Sequence[Item], scored: Scored, kind: str) -> list[list[int]]:
    if not kind.endswith("-classification") or kind == "token-classification":
        return []
    places = encode([item.reference for item in items], [item.prediction.answer for item in items], scored.labels)
    found: list[list[int]] = confusion_matrix(places, len(scored.labels)).tolist()
    return found


def _calibration(items: Sequence[Item]) -> list[list[float]]:
    sure = [item.prediction.confidence for item in items]
    if any(each is None for each in sure):
        return []
    bins = calibration_bins([float(each or 0) for each in sure], [float(item.correct) for item in items], BINS)
    return [[count, total / max(count, 1), right / max(count, 1)] for count, total, right in bins.tolist()]


def _parts(items: Sequence[Item], kind: str, slice_by: Sequence[str]) -> Iterator[tuple[str, str, list[int]]]:
    """What slices there are: quarters by length, labels, values of columns."""
    if kind in ("language-modeling", "code-generation"):
        return
    lengths = [sum(map(len, item.texts)) for item in items]
    edges = sorted({int(each) for each in np.quantile(lengths, [0.25, 0.5, 0.75, 1.0], method="higher")})
    low = 0
    for high in edges:
        places = [at for at, length in enumerate(lengths) if low < length <= high]
        yield "length", f"{low + 1:,} to {high:,} characters", places
        low = high
    values: dict[tuple[str, str], list[int]] = {}
    for at, item in enumerate(items):
        if kind in ("text-classification", "pair-classification"):
            values.setdefault(("label", item.reference), []).append(at)
        elif kind == "token-classification":
            for label in {entity[-1] for entity in item.reference}:
                values.setdefault(("label", str(label)), []).append(at)
        elif kind == "question-answering":
            values.setdefault(("answer", "has one" if item.reference else "has none"), []).append(at)
        for column in slice_by:
            if column not in item.extra:
                raise InputError(f"the column {column!r} was not kept", where="slice_by")
            values.setdefault((column, str(item.extra[column])), []).append(at)
    for (by, name), places in sorted(values.items(), key=lambda each: (each[0][0], -len(each[1]))):
        yield by, name, places


def measure_of(items: Sequence[Item], scoring: Scoring, name: str) -> Measure:
    """One metric of the items."""
    return score(items, scoring).find(name)


# Files ------------------------------------------------------------------------------------------------


def save(results: Results, items: Sequence[Item], folder: str | Path) -> None:
    """Write ``results.json`` and ``predictions.jsonl``; each appears whole or not at all.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / PREDICTIONS) as partial, partial.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(_finite(_record(item)), ensure_ascii=False, allow_nan=False) + "\n")
    with new_file(folder / RESULTS) as partial:
        partial.write_text(json.dumps(results.to_dict(), ensure_ascii=False, indent=2) + "\n", "utf-8")


def load(path: str | Path) -> tuple[Results, list[Item]]:
    """What `save` wrote: a folder, or its ``results.json``.

    Raises:
        InputError: the files are not there, or are none of ours.
    """
    path = Path(path)
    file = path / RESULTS if path.is_dir() else path
    try:
        data = json.loads(file.read_text("utf-8"))
        results = _results(data)
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(file), mend="tsumugu evaluate … --output FOLDER") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"these are no results of ours ({error})", where=str(file)) from error
    rows = read_rows(file.parent / PREDICTIONS)
    return results, [_item(row.values, results.kind, row.where) for row in rows]


def _results(data: Mapping[str, Any]) -> Results:
    known = dict(data)
    scores = {name: _score(each) for name, each in known.pop("scores").items()}
    slices = [Slice(each["by"], each["name"], _score(each["score"])) for each in known.pop("slices")]
    scoring = known.pop("scoring")
    return Results(
        scores=scores,
        slices=slices,
        labels=tuple(known.pop("labels")),
        settings=Settings(**known.pop("settings")),
        scoring=Scoring(**{**scoring, "labels": tuple(scoring["labels"]), "k": tuple(scoring.get("k", (1,)))}),
        **known,
    )


def _score(each: Mapping[str, Any]) -> Score:
    low, high = (math.nan if each[name] is None else each[name] for name in ("low", "high"))
    return Score(math.nan if each["value"] is None else each["value"], low, high, each["examples"])


def _record(item: Item) -> dict[str, Any]:
    prediction = item.prediction
    record = {
        "id": item.id,
        "texts": list(item.texts),
        "reference": item.reference,
        "prediction": prediction.answer,
        "confidence": prediction.confidence,
        "probabilities": None if prediction.probabilities is None else dict(prediction.probabilities),
        "no_answer": prediction.no_answer,
        "extra": dict(item.extra) or None,
    }
    return {name: value for name, value in record.items() if value is not None}


def _item(values: Mapping[str, Any], kind: str, where: str) -> Item:
    try:
        reference, answer = values["reference"], values["prediction"]
        if kind == "token-classification":
            reference, answer = (tuple(tuple(each) for each in spans) for spans in (reference, answer))
        elif isinstance(reference, list):
            reference = tuple(reference)
        rest = {name: values.get(name) for name in ("confidence", "probabilities", "no_answer")}
        return Item(
            str(values["id"]), tuple(values["texts"]), reference, Prediction(answer, **rest), values.get("extra") or {}
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"this is no prediction of ours ({error})", where=where) from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
