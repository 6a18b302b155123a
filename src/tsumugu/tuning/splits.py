"""The examples of a run: what is learnt, what chooses the best checkpoint, what is scored at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tsumugu.core.errors import InputError
from tsumugu.corpus.chance import generators
from tsumugu.corpus.documents import Reading, read_documents
from tsumugu.corpus.inputs import find_sources
from tsumugu.data.hub_datasets import DATASET
from tsumugu.data.labelled.examples import Examples
from tsumugu.data.labelled.load import load_examples, load_splits
from tsumugu.tuning.recipe import DataSection, Tuning

SPLIT, FOLD, JUDGED = 7, 8, 9
"""The purposes of what is drawn: to split examples, to cut them into folds, to choose the best checkpoint by."""


@dataclass(frozen=True)
class Splits:
    """The examples of a run.

    Attributes:
        train: what is learnt.
        validation: what chooses the best checkpoint.
        test: what is scored at the end, if there is anything.
    """

    train: Examples
    validation: Examples
    test: Examples | None

    @property
    def checksums(self) -> list[str]:
        """Of each split, by what is in it."""
        found = []
        for part in (self.train, self.validation, self.test):
            digest = hashlib.sha256()
            for row in part or ():
                digest.update(repr((row.id, row.texts, row.answer)).encode("utf-8", "surrogatepass"))
            found.append(digest.hexdigest())
        return found


def read_splits(recipe: Tuning, kind: str | None) -> Splits:
    """The examples of a recipe, each row checked; all have the labels of training.

    Raises:
        InputError: they cannot be read, or there are none to learn from.
    """
    data = recipe.data
    options: dict[str, Any] = {
        "format": data.format,
        "columns": data.columns or None,
        "on_problem": "skip" if data.skip else "raise",
    }
    labels: Sequence[str] | None = data.labels or None
    if not data.source.startswith(DATASET) and not Path(data.source).exists():
        raise InputError("there is no such file or folder", where=data.source)
    if Path(data.source).is_file():
        found = {"train": load_examples(data.source, kind, labels=labels, **options)}
    else:
        found = load_splits(data.source, kind, labels=labels, **options)
    if "train" not in found:
        raise InputError("there is no split of training", where=data.source, mend="name a file train.jsonl, or a file")
    train = found["train"]
    labels = None if train.labels is None else tuple(train.labels)
    for split, path in (("validation", data.validation), ("test", data.test)):
        if path is not None:
            found[split] = load_examples(path, kind, labels=labels, **options)
    if data.folds is not None:
        places = folds_of(train, data.folds, recipe.train.seed)
        found["test"] = _pick(train, np.flatnonzero(places == data.fold))
        train = _pick(train, np.flatnonzero(places != data.fold))
    (random,) = generators(recipe.train.seed, [0], purpose=SPLIT)
    validation = found.get("validation")
    if data.per_label is not None:
        train = _pick(train, _few(train, data.per_label, random))
    if validation is None and data.validation_share == 0:
        validation = train
    elif validation is None:
        count = round(data.validation_share * len(train))
        if not 0 < count < len(train):
            raise InputError(
                f"{len(train)} examples leave nothing to choose the best checkpoint by",
                where=data.source,
                mend="give data.validation, or a larger data.validation_share",
            )
        order = random.permutation(len(train))
        validation, train = _pick(train, order[:count]), _pick(train, order[count:])
    if data.limit is not None and data.limit < len(train):
        train = _pick(train, random.permutation(len(train))[: data.limit])
    if data.more is not None:
        further = load_examples(data.more, train.kind, labels=labels)
        whole = replace(train, rows=(*train.rows, *further.rows))
        train, validation = whole, whole if validation is train else validation
    return Splits(train, validation, found.get("test"))


def drawn(examples: Examples, count: int | None, seed: int) -> Examples:
    """So many examples at most, by chance: a file may be in the order of its labels. All when None."""
    if count is None or count >= len(examples):
        return examples
    (random,) = generators(seed, [0], purpose=JUDGED)
    return _pick(examples, random.permutation(len(examples))[:count])


def read_unlabelled(data: DataSection, splits: Splits) -> list[str]:
    """The texts without labels, each once, but for those that stand in a split.

    Raises:
        InputError: they cannot be read, or there are none.
    """
    known = {
        text for part in (splits.train, splits.validation, splits.test) for row in part or () for text in row.texts
    }
    texts = (
        document.text.strip()
        for source in find_sources(data.unlabelled)
        for document in read_documents(source, Reading("line"))
    )
    found = [text for text in dict.fromkeys(texts) if text and text not in known]
    if not found:
        raise InputError("there is no text that has no label yet", where="data.unlabelled")
    return found


def folds_of(examples: Examples, folds: int, seed: int) -> np.ndarray:
    """The fold of each example, from 1: of like size, and with like shares of every label where each has one.

    Raises:
        InputError: there are fewer examples than folds.

    Source: Kohavi 1995, "A Study of Cross-Validation and Bootstrap for Accuracy Estimation and Model Selection".
    """
    if len(examples) < folds:
        raise InputError(f"{len(examples)} examples do not fill {folds} folds", where=examples.source)
    (random,) = generators(seed, [0], purpose=FOLD)
    answers = [each if isinstance(each, str) else "" for each in examples.answers]
    order = sorted(
        random.permutation(len(examples)).tolist(), key=lambda at: answers[at]
    )  # a stable sort: within a label by chance
    places = np.empty(len(examples), np.int64)
    places[order] = np.arange(len(examples)) % folds + 1
    return places


def _few(examples: Examples, count: int, random: np.random.Generator) -> np.ndarray:
    """Where `count` examples of each label stand, or all that there are.

    Raises:
        InputError: the examples have no labels.
    """
    if examples.kind not in ("text-classification", "pair-classification"):
        raise InputError("these examples have no labels of their own", where="data.per_label", mend="use data.limit")
    places: dict[str, list[int]] = {}
    for at in random.permutation(len(examples)).tolist():
        places.setdefault(examples[at].label, []).append(at)
    return np.array([at for some in places.values() for at in some[:count]], np.int64)


def _pick(examples: Examples, places: np.ndarray) -> Examples:
    """Some examples, in the order of the file."""
    return replace(examples, rows=tuple(examples.rows[at] for at in np.sort(places)), problems=())
