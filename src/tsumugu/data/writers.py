r"""Write rows of results as text, JSON, CSV or Parquet, whole or not at all.

What each format keeps:

- ``.jsonl``, ``.json``: nested values; NaN and infinities, which JSON lacks, become null.
- ``.csv``, ``.tsv``: the columns of the first row; lists and objects as JSON, None as an empty field.
- ``.txt``: one column, a row a line; line ends inside a text are written ``\n`` and ``\r`` (a backslash and a letter),
  everything else as it is.
- ``.parquet``: nested values and types, see `tsumugu.data.parquet`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from datetime import date, time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from tsumugu.core.errors import InputError
from tsumugu.data.formats import file_format
from tsumugu.data.rows import listed
from tsumugu.data.target import Target

TEXT_FIELDS = ("generated_text", "summary_text", "translation_text", "answer", "label", "sequence", "text")


def open_writer(
    path: str | Path | None,
    *,
    format: str | None = None,
    input_path: str | Path | None = None,
    field: str | None = None,
) -> Writer:
    """A writer of rows, to be used in a ``with`` block. The target is checked at once and opened by the block.

    Args:
        path: a file; None or ``-`` is standard output, as JSON Lines unless `format` says otherwise.
        format: overrules the suffix: txt, jsonl, json, csv, tsv, parquet; the texts also as ``.gz``.
        input_path: the file that is read meanwhile, which must not be the target.
        field: the one column that a ``.txt`` file holds; guessed from the first row when left out.

    Raises:
        InputError: the format is unknown, the folder is not there, or the file may not be written.
    """
    to_stdout = path is None or str(path) == "-"
    place = None if to_stdout else Path(str(path))
    stream = place is None or (place.exists() and not place.is_file() and not place.is_dir())
    form = file_format(None if place is None else str(place), format, default="jsonl" if stream else None)
    if form.compression not in (None, "gz"):
        raise InputError(f".{form.compression} is read but not written", where=str(path), mend="write .gz, or none")
    if form.rows == "parquet" and stream:
        raise InputError("Parquet needs a file", where=None if place is None else str(place), mend="name a .parquet")
    return Writer(Target(place, compression=form.compression, input_path=input_path), form.rows, field)


class Writer:
    """Rows go in by `write`; the file has its name when the ``with`` block ends well, and is not there when not."""

    def __init__(self, target: Target, rows: str, field: str | None = None) -> None:
        self.name = target.name
        self.count = 0  # rows written
        self._target = target
        self._format = rows
        self._field = field
        self._encoder: _Encoder | None = None
        self._state: Any = None  # of a file that is gone on with

    def __enter__(self) -> Self:
        file = self._target.open()
        self._encoder = self._new_encoder(file)
        if self._state is not None:
            self._encoder.state = self._state
        return self

    def write(self, values: Mapping[str, Any]) -> None:
        """Write one row.

        Raises:
            InputError: a value cannot be kept in this format, the columns are others than before, the disk is full.
            BrokenPipeError: the reader of a stream went away.
        """
        if self._encoder is None:
            raise RuntimeError("a Writer writes inside its with block only")
        where = f"{self.name}, row {self.count + 1}"
        if not values:
            raise InputError("a row without columns cannot be written", where=where)
        with self._target.said_clearly():
            self._encoder.write(values, where)
        self._target.flush()
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        encoder, self._encoder = self._encoder, None
        if error is not None or encoder is None:
            if encoder is not None:
                encoder.abandon()
            self._target.abandon()
            return
        try:
            with self._target.said_clearly():
                encoder.finish()
        except BaseException:
            encoder.abandon()
            self._target.abandon()
            raise
        self._target.finish()

    def _new_encoder(self, file: BinaryIO) -> _Encoder:
        if self._format == "parquet":
            from tsumugu.data.parquet import ParquetEncoder

            return ParquetEncoder(file, self._target.folder)
        if self._format == "txt":
            return _TextEncoder(file, self._field)
        if self._format in ("csv", "tsv"):
            return _CsvEncoder(file, "\t" if self._format == "tsv" else ",")
        return _JsonEncoder(file, in_array=self._format == "json")


class _Encoder(Protocol):
    """Turns rows into the bytes of one format."""

    state: Any

    def write(self, values: Mapping[str, Any], where: str) -> None: ...

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


class _LineEncoder:
    """What the encoders of text share.

    Attributes:
        state: what an encoder must know of the rows before to go on after them, as JSON has it.
    """

    def __init__(self, file: BinaryIO, state: Any = None) -> None:
        self._file = file
        self.state = state

    def _put(self, text: str, where: str) -> None:
        try:
            self._file.write(text.encode())
        except UnicodeEncodeError as error:
            raise InputError("a text holds half of a surrogate pair, which is not Unicode", where=where) from error

    def finish(self) -> None:
        """Nothing is held back."""

    def abandon(self) -> None:
        """Nothing is held back."""


class _JsonEncoder(_LineEncoder):
    def __init__(self, file: BinaryIO, *, in_array: bool) -> None:
        super().__init__(file, "[\n" if in_array else None)
        self._in_array = in_array

    def write(self, values: Mapping[str, Any], where: str) -> None:
        text = _json(dict(values), where)
        if self._in_array:
            self._put(self.state + text, where)
            self.state = ",\n"
        else:
            self._put(text + "\n", where)

    def finish(self) -> None:
        if self._in_array:
            self._put("[]\n" if self.state == "[\n" else "\n]\n", "")


class _CsvEncoder(_LineEncoder):
    def __init__(self, file: BinaryIO, delimiter: str) -> None:
        super().__init__(file)
        self._text = io.StringIO(newline="")
        self._csv = csv.writer(self._text, delimiter=delimiter, lineterminator="\n")
        self._quoted = csv.writer(self._text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def write(self, values: Mapping[str, Any], where: str) -> None:
        header = self.state is None
        columns: list[str] = list(values) if self.state is None else self.state
        for name in values:
            if name not in columns:
                mend = "write .jsonl to keep rows of different columns"
                raise InputError(f"the first row has no column {name!r}", where=where, mend=mend)
        fields = [_field(values.get(name), f"{where}, column {name!r}") for name in columns]
        for each in (columns, fields) if header else (fields,):
            # Where the line end is \n the csv module leaves a lone \r without quotes.
            (self._quoted if any("\r" in field for field in each) else self._csv).writerow(each)
        line = self._text.getvalue()
        self._text.seek(0)
        self._text.truncate()
        self._put(line, where)
        self.state = columns


class _TextEncoder(_LineEncoder):
    def __init__(self, file: BinaryIO, field: str | None) -> None:
        super().__init__(file, field)

    def write(self, values: Mapping[str, Any], where: str) -> None:
        if self.state is None:
            self.state = _text_field(values, where)
        if self.state not in values:
            raise InputError(f"there is no column {self.state!r} (columns: {listed(values)})", where=where)
        text = _field(values[self.state], where)
        self._put(text.replace("\r", "\\r").replace("\n", "\\n") + "\n", where)


def _text_field(values: Mapping[str, Any], where: str) -> str:
    if len(values) == 1:
        return next(iter(values))
    for name in TEXT_FIELDS:
        if name in values:
            return name
    texts = [name for name, value in values.items() if isinstance(value, str)]
    if len(texts) == 1:
        return texts[0]
    what = f"a text file holds one column, and it is not clear which (columns: {listed(values)})"
    raise InputError(what, where=where, mend="write .jsonl or .csv to keep them all")


def _field(value: Any, where: str) -> str:
    """A value as a field of CSV or a line of text."""
    if isinstance(value, str):
        return value
    return "" if value is None else _json(value, where).removeprefix('"').removesuffix('"')


def _json(value: Any, where: str) -> str:
    """A value as one line of JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except (ValueError, TypeError, RecursionError) as error:
        try:
            return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
        except (ValueError, TypeError, RecursionError):
            raise InputError(f"a value cannot be written: {error}", where=where, mend=None) from error


def _plain(value: Any) -> Any:
    """What JSON has in place of `value`: lists for arrays and tensors, ISO 8601 for dates."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if callable(getattr(value, "tolist", None)):  # NumPy, PyTorch and JAX alike
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON; .parquet may keep it")


def _finite(value: Any) -> Any:
    """`value` with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return _finite(_plain(value))
