"""Reading the small files beside a tokenizer, and writing files whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tsumugu.core.errors import CheckpointError

MAX_BYTES = 1 << 30


def read_text(path: Path) -> str:
    """A UTF-8 file as text, line ends as they are.

    Raises:
        CheckpointError: it is larger than any tokenizer, or not UTF-8.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{size} bytes are too many for a tokenizer file", where=str(path))
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"not UTF-8 (byte {error.start})", where=str(path), mend="fetch the file again") from None


def read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """A JSON object; {} when the file is not there and not required."""
    if not required and not path.is_file():
        return {}
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"not valid JSON ({error})", where=str(path), mend="fetch the file again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"expected a JSON object, found {type(data).__name__}", where=str(path))
    return data


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 file as `write_bytes` does."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file through a temporary name in its folder; a failure leaves what was there."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path, data: Any) -> Path:
    """Write JSON as the Hub's files have it: indented by two, other scripts as themselves."""
    return write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
