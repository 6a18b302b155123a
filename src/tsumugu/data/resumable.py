"""Rows of results into a file that goes on where it was stopped, however it was stopped.

While it grows the file is called ``.NAME.partial``, and ``.NAME.journal`` beside it says how much of it holds: how many
rows of the input are done, a digest of them, and for each file the bytes that belong to those rows. The journal is
replaced as a whole once these bytes are on the disk; what stands behind them is cut off when the work goes on. Text
formats can grow so; Parquet, packed files and streams are written anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from tsumugu.core.errors import InputError
from tsumugu.data.formats import file_format
from tsumugu.data.target import Target
from tsumugu.data.writers import Writer, open_writer

SECONDS = 1.0
"""Between two entries of the journal at least."""


def grows(path: Path) -> bool:
    """Whether what is written to `path` can go on after a stop."""
    if str(path) == "-" or (path.exists() and not path.is_file()):
        return False
    form = file_format(str(path))
    return form.compression is None and form.rows != "parquet"


class GrowingTarget(Target):
    """A file under another name until it is finished; `kept` of its bytes stay when it is abandoned."""

    def __init__(self, path: Path, *, input_path: str | Path | None = None) -> None:
        super().__init__(path, input_path=input_path)
        assert self.path is not None
        self.kept = 0
        self.unfinished = self.path.with_name(f".{self.path.name}.partial")

    def open(self) -> BinaryIO:
        with self.said_clearly():
            self._plain = os.fdopen(os.open(self.unfinished, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            try:
                self._hold(self._plain)
            except InputError:
                self._plain.close()
                raise
            self._partial = self.unfinished
            self._plain.truncate(self.kept)
            self._plain.seek(self.kept)
        return self._plain

    def _hold(self, file: BinaryIO) -> None:
        """Be the only one who writes; whoever dies holds nothing any more."""
        with contextlib.suppress(ImportError):  # Windows: there the file cannot be renamed while another has it open
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                mend = "wait until it is done, or choose another name"
                raise InputError("another process writes this file", where=self.name, mend=mend) from None
        if os.fstat(file.fileno()).st_size < self.kept:
            raise InputError("less is there than its journal says", where=self.name, mend="begin anew: --restart")

    def flushed(self) -> int:
        """Hand all bytes to the system; gives how many there are."""
        assert self._plain is not None
        with self.said_clearly():
            self._plain.flush()
            return self._plain.tell()

    def keep(self, size: int) -> None:
        """Bring what was handed over to the disk; `size` of it stays."""
        assert self._plain is not None
        with self.said_clearly():
            os.fsync(self._plain.fileno())
        self.kept = size

    def abandon(self) -> None:
        if self.kept:
            self._partial = None
        super().abandon()


class GrowingWriter(Writer):
    """A `Writer` that can go on after a stop."""

    def __init__(self, path: Path, *, input_path: str | Path | None = None) -> None:
        self.growing = GrowingTarget(path, input_path=input_path)
        super().__init__(self.growing, file_format(str(path)).rows)

    def go_on(self, entry: Mapping[str, Any]) -> None:
        """Go on after what `entry` says that there is."""
        self.growing.kept, self.count, self._state = entry["bytes"], entry["rows"], entry["state"]

    def entry(self) -> dict[str, Any]:
        """What there is by now."""
        assert self._encoder is not None
        return {"bytes": self.growing.flushed(), "rows": self.count, "state": self._encoder.state}


class Output:
    """A file of results, and perhaps a report of rows that have none, to be used in a ``with`` block.

    Args:
        path: where results go; None where they are shown only.
        report: where rows without results go.
        settings: what makes the results what they are; work goes on only with the same.
        restart: forget what was done before.
        input_path: the file that is read meanwhile.

    Attributes:
        done: rows of the input that are done for good, whatever happens.
        digest: of those rows.

    Raises:
        InputError: a file cannot be written, or other settings were at work before.
    """

    def __init__(
        self,
        path: Path | None,
        report: Path | None = None,
        *,
        settings: Mapping[str, Any],
        restart: bool = False,
        input_path: str | Path | None = None,
    ) -> None:
        paths = [each for each in (path, report) if each is not None]
        if len({each.resolve() for each in paths}) < len(paths):
            raise InputError("results and bad rows cannot be one file", where=str(path), mend="choose another name")
        self.done, self.digest = 0, ""
        self._settings = json.loads(json.dumps(settings, default=str))
        self._reports = report is not None
        self._writers: Sequence[Writer] = ()
        self._growing: list[GrowingWriter] = []
        self._journal: Path | None = None
        self._entry: dict[str, Any] | None = None
        self._written = 0.0
        self._stack = contextlib.ExitStack()
        if path is None or not all(map(grows, paths)):
            self._writers = [open_writer(each, input_path=input_path) for each in paths]
            return
        self._writers = self._growing = [GrowingWriter(each, input_path=input_path) for each in paths]
        place = path.resolve()
        self._journal = place.with_name(f".{place.name}.journal")
        found = None if restart else self._read(self._journal)
        if found is not None:
            self.done, self.digest = found["done"], found["digest"]
            for writer, entry in zip(self._growing, found["files"], strict=True):
                writer.go_on(entry)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for each in reversed(self._writers):  # the results get their name first: then the work is done
                stack.enter_context(each)
            self._stack = stack.pop_all()
        return self

    def write(self, values: Mapping[str, Any]) -> None:
        """A row with its result."""
        self._writers[0].write(values)

    def report(self, values: Mapping[str, Any]) -> None:
        """A row that has none, where there is a report."""
        if self._reports:
            self._writers[-1].write(values)

    def mark(self, done: int, digest: str) -> None:
        """So many rows of the input are done, and all that they gave is written."""
        if self._journal is None:
            return
        self._entry = {"done": done, "digest": digest, "files": [each.entry() for each in self._growing]}
        if time.monotonic() - self._written >= SECONDS:
            self._write()

    @property
    def keeps(self) -> int:
        """Rows of the input that will be done if the work stops now."""
        return self.done if self._entry is None else int(self._entry["done"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None and self._entry is not None:
            with contextlib.suppress(InputError, OSError):  # a full disk, which may be what went wrong
                self._write()
        self._stack.__exit__(kind, error, trace)
        if self._journal is not None and (error is None or not self.done):
            self._journal.unlink(missing_ok=True)

    def _read(self, journal: Path) -> dict[str, Any] | None:
        """What the journal says, if it is about these files."""
        results = self._growing[0].growing
        if not results.unfinished.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(journal.read_text("utf-8"))
            before, paths = found["settings"], [each["bytes"] for each in found["files"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot be read ({error})", where=str(journal), mend="begin anew: --restart") from None
        mend = "finish it with the same command, or begin anew: --restart"
        if len(paths) != len(self._growing):
            raise InputError("was left unfinished with another report of bad rows", where=results.name, mend=mend)
        for key in self._settings.keys() | before.keys():
            then, now = before.get(key), self._settings.get(key)
            if then != now:
                said = f"was left unfinished with {key} {then!r}, now {now!r}"
                raise InputError(said, where=results.name, mend=mend)
        return found

    def _write(self) -> None:
        assert self._journal is not None
        assert self._entry is not None
        for writer, mine in zip(self._growing, self._entry["files"], strict=True):
            writer.growing.keep(mine["bytes"])
        new = self._journal.with_name(f"{self._journal.name}.new")
        with new.open("w", encoding="utf-8") as file:
            json.dump({"settings": self._settings, **self._entry}, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._journal)
        self.done, self.digest = self._entry["done"], self._entry["digest"]
        self._written = time.monotonic()
