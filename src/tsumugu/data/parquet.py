"""Parquet files: rows out of row groups that are streamed, rows into row groups of bounded size.

Source: Apache Parquet format, file metadata and row groups; read and written by pyarrow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

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
        if columns is not None:
            require_columns(columns, names, source.name)
            names = list(columns)
        number = 0
        for batch in file.iter_batches(_batch_rows(file.metadata), columns=names, use_threads=False):
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
        said = str(error).partition("\n")[0]
        raise InputError(
            f"the Parquet file is broken or cut short ({said})", where=source.name, mend="copy or download it again"
        ) from error


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
    return values


class ParquetEncoder:
    """Rows into a Parquet file, a row group at a time.

    The types of the columns are those of the first row group (1,000 rows); nested values are kept.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writer: Any = None
        self._held: list[dict[str, Any]] = []
        self._first = ""

    def write(self, values: Mapping[str, Any], where: str) -> None:
        """Hold a row until a row group is full."""
        if not self._held:
            self._first = where
        self._held.append(dict(values))
        if len(self._held) >= _GROUP_ROWS:
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

    def _write_group(self) -> None:
        schema = None if self._writer is None else self._writer.schema
        try:
            table = pa.Table.from_pylist(self._held, schema=schema)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise InputError(f"the rows from here on do not fit the columns: {error}", where=self._first) from error
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._held = []
