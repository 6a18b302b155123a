"""Parquet files: rows out of row groups that are streamed, rows into row groups of bounded size.

Source: Apache Parquet format, file metadata and row groups; read and written by pyarrow.
"""

from __future__ import annotations

import bisect
import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tsumugu.core.errors import InputError
from tsumugu.data.rows import Row, require_columns
from tsumugu.data.sources import Source

_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 4096
_GROUP_ROWS = 1000


def parquet_rows(source: Source, columns: Sequence[str] | None) -> Iterator[Row]:
    """The rows of a Parquet file; see `read_rows`."""
    with _opened(source) as file:
        names = file.schema_arrow.names
        twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
        if twice is not None:
            raise InputError(f"two columns have the name {twice!r}", where=source.name)
        wanted = None if columns is None else list(columns)
        if wanted is not None:
            require_columns(wanted, names, source.name)
            names = wanted
        number = 0
        for batch in file.iter_batches(_batch_rows(file.metadata), columns=wanted, use_threads=False):
            lists = [_values(batch.column(name), name, source, number) for name in names]
            for values in zip(*lists, strict=True) if names else ():
                number += 1
                yield Row(number, dict(zip(names, values, strict=True)), source.name)


def parquet_count(source: Source) -> int | None:
    """The number of rows that the footer states."""
    with _opened(source) as file:
        count: int = file.metadata.num_rows
        return count if count >= 0 else None


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[Any]:
    try:
        with pq.ParquetFile(source.path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        said = str(error).partition("\n")[0].rstrip(".")
        mend = "it may be cut short or broken: copy or download it again"
        raise InputError(f"cannot be read as Parquet ({said})", where=source.name, mend=mend) from error


def _batch_rows(metadata: Any) -> int:
    """How many rows to hold at once, so that they are about 16 MiB."""
    most = 1
    for at in range(metadata.num_row_groups):
        group = metadata.row_group(at)
        most = max(most, group.total_byte_size // max(group.num_rows, 1))
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // most))


def _values(column: Any, name: str, source: Source, before: int) -> list[Any]:
    """A column of a batch as Python values. Parquet does not promise that its texts are UTF-8."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise
        values = []
        for number, raw in enumerate(column.cast(pa.large_binary()).to_pylist(), start=before + 1):
            try:
                values.append(None if raw is None else raw.decode("utf-8", source.errors))
            except UnicodeDecodeError as error:
                raise InputError(
                    f"byte 0x{raw[error.start]:02x} at offset {error.start} of the value is not UTF-8",
                    where=f"{source.row(number)}, column {name!r}",
                    mend="pass --encoding-errors replace",
                ) from error
    except ValueError as error:  # such as a time too fine for datetime
        where = f"{source.row(before + 1)} or later, column {name!r}"
        raise InputError(f"a value cannot be read: {error}", where=where) from error
    return values


class ParquetEncoder:
    """Rows into a Parquet file, a row group at a time; nested values are kept.

    The types are those of the values. When later rows need wider ones (numbers after nulls, fractions after integers,
    new columns, new fields of an object), what is written so far is written anew with them.

    Args:
        file: open for reading and writing.
        folder: where the rows may be kept while they are written anew.
    """

    def __init__(self, file: BinaryIO, folder: Path) -> None:
        self._file = file
        self._folder = folder
        self.state: Any = None  # it never goes on
        self._writer: Any = None
        self._schema = pa.schema([])
        self._held: list[Mapping[str, Any]] = []
        self._weight = 0
        self._name = ""  # of the file, for messages
        self._before = 0  # rows that are written

    def write(self, values: Mapping[str, Any], where: str) -> None:
        """Hold a row until a row group is full."""
        self._name = where.rpartition(", ")[0]
        self._held.append({name: _storable(value) for name, value in values.items()})
        self._weight += sum(map(_weight, values.values()))
        if len(self._held) >= _GROUP_ROWS or self._weight > _BATCH_BYTES:
            self._write_group()

    def finish(self) -> None:
        """Write what is held, and the footer."""
        if self._held or self._writer is None:
            self._write_group()
        self._writer.close()

    def abandon(self) -> None:
        """Let go of what is held; the file is about to vanish."""
        if self._writer is not None:
            with contextlib.suppress(OSError, ValueError, pa.ArrowException):
                self._writer.close()
            self._writer.is_open = False  # or it tries again, and complains, when it is collected

    def _write_group(self) -> None:
        names = dict.fromkeys([*self._schema.names, *(name for row in self._held for name in row)])
        found = [(name, self._type_of(name)) for name in names]
        schema = self._schema
        for name, kind in found:
            schema = self._widened(schema, name, kind)
        if self._writer is None or schema != self._schema:
            self._begin(schema)
        self._writer.write_table(_table(self._held, schema))
        self._before += len(self._held)
        self._held, self._weight = [], 0

    def _type_of(self, name: str) -> Any:
        """The type of the held values of a column."""
        values = [row.get(name) for row in self._held]
        try:
            return pa.array(values).type
        except _UNFIT as error:
            # The first row that does not go with those before it.
            at = bisect.bisect_left(range(len(values)), True, key=lambda last: not _fits(values[: last + 1]))
            raise InputError(
                f"the value does not go with the column ({error})",
                where=f"{self._name}, row {self._before + at + 1}, column {name!r}",
                mend="write .jsonl to keep values of different kinds",
            ) from error

    def _widened(self, schema: Any, name: str, kind: Any) -> Any:
        """`schema` with room for values of a type in a column."""
        try:
            return pa.unify_schemas([schema, pa.schema([(name, kind)])], promote_options="permissive")
        except pa.ArrowException as error:
            raise InputError(
                f"{kind} does not go with {schema.field(name).type} in the rows before",
                where=f"{self._name}, row {self._before + 1} or later, column {name!r}",
                mend="write .jsonl to keep values of different kinds",
            ) from error

    def _begin(self, schema: Any) -> None:
        """Start the file, with the rows that it has already."""
        with contextlib.ExitStack() as stack:
            earlier: Any = None
            if self._writer is not None:
                self._writer.close()
                self._writer = None
                self._file.flush()
                self._file.seek(0)
                copy = stack.enter_context(tempfile.TemporaryFile(dir=self._folder))
                shutil.copyfileobj(self._file, copy, 1 << 20)
                self._file.seek(0)
                self._file.truncate()
                earlier = stack.enter_context(pq.ParquetFile(copy, pre_buffer=False))
            try:
                self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
            except pa.ArrowException as error:
                raise InputError(f"Parquet cannot keep these columns ({error})", where=self._name) from error
            self._schema = schema
            if earlier is not None:
                for at in range(earlier.num_row_groups):
                    self._writer.write_table(_table(earlier.read_row_group(at).to_pylist(), schema))


_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError)


def _table(rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _fits(values: list[Any]) -> bool:
    try:
        pa.array(values)
    except _UNFIT:
        return False
    return True


def _storable(value: Any) -> Any:
    """Arrays of one dimension as they are, with their type; of more as lists of them; tensors as lists."""
    if isinstance(value, np.ndarray):
        return value if value.ndim == 1 else [_storable(each) for each in value] if value.ndim else value.item()
    if isinstance(value, str | bytes | int | float | list | dict | np.generic) or value is None:
        return value
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def _weight(value: Any) -> int:
    """About how many bytes a value takes."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple) and value:
        return len(value) * (8 + _weight(value[0]))
    if isinstance(value, Mapping):
        return sum(map(_weight, value.values()))
    return int(getattr(value, "nbytes", 8))
