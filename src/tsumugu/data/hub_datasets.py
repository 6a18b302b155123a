"""Rows of a data set of the `datasets` library: saved on disk, or on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsumugu.core.errors import InputError, MissingExtraError
from tsumugu.data.rows import Row

DATASET = "hf:"
"""How the name of such a source begins: ``hf:NAME[:SPLIT]``."""


@dataclass(frozen=True)
class HubDataset:
    """One split of a data set.

    Attributes:
        name: as the user wrote it.
        rows: the library's own, streamed where it can.
        class_names: the names behind the numbers of columns of class labels, by column.
    """

    name: str
    rows: Any
    class_names: dict[str, Sequence[str]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Row]:
        """The rows.

        Raises:
            InputError: one cannot be read.
        """
        with_place = enumerate(self.rows, start=1)
        while True:
            try:
                number, values = next(with_place)
            except StopIteration:
                return
            except (OSError, ValueError, RuntimeError, LookupError) as error:
                raise InputError(f"cannot be read: {error}", where=self.name) from error
            yield Row(number, values, self.name)


def open_dataset(name: str, *, split: str | None = None) -> HubDataset:
    """One split of ``hf:NAME[:SPLIT]``; "train" when neither the name nor `split` says which.

    Raises:
        InputError: there is no such data set or split, or it cannot be read.
        MissingExtraError: the `datasets` library is not installed.
    """
    datasets = _library(name)
    home, colon, stated = name.removeprefix(DATASET).rpartition(":")
    home, split = (home, stated) if colon else (stated, split or "train")
    try:
        rows = _open(datasets, home, split)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise InputError(f"cannot be read: {error}", where=name) from error
    return HubDataset(name, rows, dict(_class_names(datasets, rows)))


def splits_of(name: str) -> list[str]:
    """The names of the splits of ``hf:NAME``.

    Raises:
        InputError: there is no such data set, or it cannot be read.
        MissingExtraError: the `datasets` library is not installed.
    """
    datasets = _library(name)
    home = name.removeprefix(DATASET)
    try:
        if (Path(home) / "state.json").is_file():
            return ["train"]
        if (Path(home) / "dataset_dict.json").is_file():
            return list(datasets.load_from_disk(home))
        return list(datasets.get_dataset_split_names(home))
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise InputError(f"cannot be read: {error}", where=name) from error


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", extra="datasets", purpose=f"reading {name}") from None
    return datasets


def _open(datasets: Any, home: str, split: str) -> Any:
    path = Path(home)
    if not (path / "state.json").is_file() and not (path / "dataset_dict.json").is_file():
        return datasets.load_dataset(home, split=split, streaming=True)
    saved = datasets.load_from_disk(home)
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if split not in saved:
        raise InputError(f"there is no split {split!r} (splits: {', '.join(saved)})", where=f"{DATASET}{home}")
    return saved[split]


def _class_names(datasets: Any, rows: Any) -> Iterator[tuple[str, Sequence[str]]]:
    for column, feature in (rows.features or {}).items():
        inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else feature)
        if isinstance(inner, datasets.ClassLabel):
            yield column, tuple(inner.names)
