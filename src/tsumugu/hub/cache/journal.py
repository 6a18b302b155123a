"""What was deleted, when, and by which command: one JSON object a line, written and synced before anything moves."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tsumugu.hub.cache.layout import JOURNAL, LOCKS, OWN


def write(root: str, own: str, record: dict[str, Any]) -> None:
    """Append one record and wait until it is on the disk. A torn last line of an earlier crash is closed first."""
    moment = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": moment, **record}, ensure_ascii=True) + "\n"
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(f"{root}/{own}/{JOURNAL}", flags, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size:
            os.lseek(handle, size - 1, os.SEEK_SET)
            if os.read(handle, 1) != b"\n":
                line = "\n" + line
        data = line.encode()
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def read(root: str) -> Iterator[dict[str, Any]]:
    """All whole records of a cache, oldest first. Lines that a crash tore are passed over."""
    for own in (f"{LOCKS}/{OWN}", OWN):
        path = Path(root, own, JOURNAL)
        if not path.is_file():
            continue
        with path.open("rb") as handle:
            for line in handle:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and "event" in record:
                    yield record
