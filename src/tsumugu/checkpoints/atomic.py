"""Files that appear whole or not at all: a temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from tsumugu.core.errors import CheckpointError

TOUCHED = 0o666


def temporary(path: Path) -> Path:
    """A name beside `path` that nobody else uses, hidden from listings."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextlib.contextmanager
def said_clearly(path: Path) -> Iterator[None]:
    """Turn what goes wrong in writing to `path` into one clear error.

    The gguf package reports a full disk as a short write, without the system's reason.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else _system_reason(str(error))
        full = "No space left" in reason or "File too large" in reason or " requested and " in reason
        mend = "make room on the disk; nothing was left behind" if full else "nothing was left behind"
        raise CheckpointError(f"cannot be written: {reason}", where=str(path), mend=mend) from error


def _system_reason(text: str) -> str:
    """The system's own words in what safetensors says: "Error while serializing: I/O error: … (os error 28)"."""
    return re.sub(r"^.*I/O error: (.*?)(?: \(os error \d+\))?$", r"\1", text)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends well, and vanishes when not."""
    partial = temporary(path)
    with said_clearly(path):
        try:
            partial.touch(TOUCHED, exist_ok=False)
            mode = partial.stat().st_mode  # what the user's umask leaves; a library may write a file of its own mode
            yield partial
            partial.chmod(mode)
            sync(partial)
            partial.replace(path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the system write a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
