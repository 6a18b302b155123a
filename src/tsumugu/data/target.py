"""Where results go: a file that appears whole or not at all, or a stream."""

from __future__ import annotations

import contextlib
import gzip
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from tsumugu.core.errors import InputError


class Target:
    """A place to write bytes to, checked when it is made and opened when it is entered.

    A regular file is written under a temporary name beside it, and takes its name at a clean exit, after its bytes are
    on the disk. After an exception the temporary file is gone, and what had the name before is untouched. Standard
    output, devices and pipes are written to directly.
    """

    def __init__(self, path: Path | None, *, compression: str | None = None, input_path: str | Path | None = None):
        self.name = "standard output" if path is None else str(path)
        self.path = path
        self.is_stream = path is None
        self._compression = compression
        self._partial: Path | None = None
        self._plain: BinaryIO | None = None
        self._packed: BinaryIO | None = None
        if path is not None:
            with self.said_clearly():
                self._check(path, input_path)

    def _check(self, path: Path, input_path: str | Path | None) -> None:
        try:
            found = path.stat()
        except FileNotFoundError:
            self.path = path = path.resolve()  # a link to a file that is not there yet
            if not path.parent.is_dir():
                mend = f"make it first: mkdir -p {path.parent}"
                raise InputError(f"there is no folder {path.parent}", where=self.name, mend=mend) from None
        else:
            if stat.S_ISDIR(found.st_mode):
                raise InputError("this is a folder", where=self.name, mend="name a file in it")
            self.is_stream = not stat.S_ISREG(found.st_mode)
            if not self.is_stream:
                self.path = path.resolve()  # a link goes on pointing to the file
            if input_path is not None and not self.is_stream and _same(path, input_path):
                raise InputError("the output is the input file", where=self.name, mend="choose another name")
            if not os.access(path, os.W_OK):
                raise InputError("the file may not be written (permission denied)", where=self.name)
        if not self.is_stream and not os.access(cast(Path, self.path).parent, os.W_OK | os.X_OK):
            raise InputError("its folder may not be written (permission denied)", where=self.name)

    @property
    def folder(self) -> Path:
        """Where the file is, and where there is room for it."""
        return Path() if self.path is None else self.path.parent

    def open(self) -> BinaryIO:
        """Open the target; returns what to write to."""
        with self.said_clearly():
            if self.path is None:
                if sys.stdout is None:
                    raise InputError("standard output is closed", mend="name a file with --output")
                sys.stdout.flush()
                self._plain = sys.stdout.buffer
            elif self.is_stream:
                self._plain = self.path.open("wb")
            else:
                # Short: the name and what is added to it must fit where the name alone does.
                partial = self.path.with_name(f".{self.path.name[:40]}.{secrets.token_hex(4)}.partial")
                self._plain = partial.open("x+b")
                self._partial = partial
            if self._compression is not None:
                packed = gzip.GzipFile("", "wb", fileobj=self._plain, mtime=0)
                self._packed = cast(BinaryIO, packed)
                return self._packed
            return self._plain

    def flush(self) -> None:
        """Hand on what a reader of a stream waits for; a file needs none."""
        if self.is_stream and self._plain is not None:
            with self.said_clearly():
                (self._packed or self._plain).flush()

    def finish(self) -> None:
        """Bring everything to the disk, and give the file its name."""
        try:
            with self.said_clearly():
                if self._packed is not None:
                    self._packed.close()
                assert self._plain is not None
                self._plain.flush()
                if self._partial is None or self.path is None:
                    if self.path is not None:
                        self._plain.close()
                    return
                os.fsync(self._plain.fileno())
                self._plain.close()
                with contextlib.suppress(FileNotFoundError):
                    self._partial.chmod(stat.S_IMODE(self.path.stat().st_mode))
                self._partial.replace(self.path)
                self._partial = None
                _sync_folder(self.path.parent)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self.path is not None and self._plain is not None:
            _drop(self._plain)
        if self._packed is not None:
            with contextlib.suppress(OSError, ValueError):
                self._packed.close()
        if self._partial is not None:
            with contextlib.suppress(OSError):
                self._partial.unlink()
            self._partial = None

    @contextlib.contextmanager
    def said_clearly(self) -> Iterator[None]:
        """Turn what the system says of this target into an InputError. A reader that went away is not an error."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            full = "No space left" in reason or "quota exceeded" in reason or "too large" in reason
            kept = "" if self.is_stream else "nothing was left behind"
            mend = "; ".join(each for each in ("make room on the disk" if full else "", kept) if each)
            raise InputError(f"cannot be written: {reason}", where=self.name, mend=mend or None) from error


def _same(path: Path, other: str | Path) -> bool:
    if str(other) == "-":
        return False
    try:
        return path.samefile(other)
    except (OSError, ValueError):
        return False


def _drop(file: BinaryIO) -> None:
    """Close a file that may hold bytes it cannot write any more, and let them go."""
    with contextlib.suppress(OSError, ValueError):
        getattr(file, "raw", file).close()


def _sync_folder(folder: Path) -> None:
    """Have the system write the folder's list of names to the disk, where systems can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
