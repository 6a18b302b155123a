"""A file that labelled rows are added to one by one: each is on the disk before the next is asked for."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from tsumugu.core.errors import InputError
from tsumugu.data.json_stream import parse_object
from tsumugu.data.sources import LONGEST_ROW, Source, find_source


class LabelFile:
    """JSON Lines that grow by whole rows, to be used in a ``with`` block. What a kill left of a row is cut off.

    Args:
        path: the file; made if need be.
        answer: the column of the labels: `label` or `entities`.

    Attributes:
        texts: of the rows that are there, in order.

    Raises:
        InputError: it cannot be written, another process writes it, or it holds other rows.
    """

    def __init__(self, path: str | Path, answer: str) -> None:
        self.path, self.answer = Path(path), answer
        if self.path.suffix.lower() not in (".jsonl", ".ndjson"):
            raise InputError("labels are written as JSON Lines", where=str(path), mend="name a .jsonl file")
        if not self.path.parent.is_dir():
            raise InputError(f"there is no folder {self.path.parent}", where=str(path), mend="make it first")
        self.texts: list[str] = []
        self._starts: list[int] = []  # of each row, in bytes
        self._file: int | None = None

    def __enter__(self) -> Self:
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self._hold(self._file)
            for start, row in self._rows():
                self._starts.append(start)
                self.texts.append(row["text"])
        except OSError as error:
            self.__exit__()
            raise InputError(error.strerror or str(error), where=str(self.path)) from None
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row, whole and to the disk.

        Raises:
            InputError: the disk is full; the file is as it was.
        """
        assert self._file is not None
        start = os.lseek(self._file, 0, os.SEEK_END)
        data = (json.dumps(dict(row), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, start)
            raise InputError(f"cannot be written: {error.strerror}", where=str(self.path)) from error
        self._starts.append(start)
        self.texts.append(row["text"])

    def undo(self) -> dict[str, Any] | None:
        """Take the last row out again; gives it, or None where there is none."""
        if not self._starts or self._file is None:
            return None
        start = self._starts.pop()
        self.texts.pop()
        os.lseek(self._file, start, os.SEEK_SET)
        with os.fdopen(os.dup(self._file), "rb") as file:
            row: dict[str, Any] = json.loads(file.read())
        os.ftruncate(self._file, start)
        os.fsync(self._file)
        return row

    def _hold(self, file: int) -> None:
        with contextlib.suppress(ImportError):  # Windows
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError("another process labels into this file", where=str(self.path)) from None

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows that are there, with the byte where each begins; a last line without its end is cut off."""
        assert self._file is not None
        if not os.fstat(self._file).st_size:
            return
        source: Source = find_source(self.path, "jsonl")
        with os.fdopen(os.dup(self._file), "rb") as file:
            start = number = 0
            while line := file.readline(LONGEST_ROW):
                number += 1
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, start)
                    return
                row = parse_object(line.decode("utf-8", "replace"), source, source.line(number))
                if not isinstance(row.get("text"), str) or self.answer not in row:
                    mend = "choose another --output"
                    raise InputError(f"is no row with text and {self.answer}", where=source.line(number), mend=mend)
                yield start, row
                start += len(line)
