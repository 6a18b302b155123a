"""Where compiled models lie: in tsumugu's cache home, by the content of what they were compiled from. Loads no torch.

- ``compiled/<key>/``: one graph with its weights and `model.json`; complete, or not there at all
- ``compiled/known/<name>.json``: which key a source had when it was last seen, with its files' sizes and times, so that
  an unchanged checkpoint is not read again to find it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsumugu import __version__
from tsumugu.core.errors import InputError
from tsumugu.hub.home import home

RECORD = "model.json"
WEIGHTS, GRAPH, ENCODER = "weights.bin", "graph.onnx", "encoder.onnx"
"""The two files of a graph; and that of what is read once, where another graph asks it at each step."""
COMPILER = 8
"""Counted up whenever graphs change that are made of the same checkpoint."""
PIECE = 1 << 22
ROOM = 10.0
"""Gigabytes that compiled models take together, unless `ROOM_VARIABLE` says otherwise."""
ROOM_VARIABLE = "TSUMUGU_COMPILED_GB"
CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".npz", ".json", ".pt", ".pth")


@dataclass(frozen=True)
class Request:
    """What is to be compiled.

    Attributes:
        path: a folder or a file of weights.
        task: a head, or a task, as it was asked for; None for the checkpoint's own.
        quantize: None, "auto", "int8" or "int4".
        group: numbers that share a scale; 0 for what suits each matrix.
        engine: what will run it: onnx or native.
    """

    path: Path
    task: str | None = None
    quantize: str | None = None
    group: int = 0
    engine: str = "onnx"

    def files(self) -> list[Path]:
        """The files that the result depends on."""
        if self.path.is_file():
            return [self.path]
        return sorted(each for each in self.path.iterdir() if each.suffix in CHECKPOINT_SUFFIXES and each.is_file())

    @property
    def name(self) -> str:
        """What was asked for, in a few letters."""
        asked = [COMPILER, __version__, str(self.path.resolve()), self.task, self.quantize, self.group, self.engine]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def compiled() -> Path:
    """The folder of compiled models."""
    return home() / "compiled"


def find(request: Request) -> Path | None:
    """The compiled form of an unchanged checkpoint that was seen before; only names, sizes and times are looked at.

    That it was asked for is noted, for `make_room`, as the time of its record.
    """
    try:
        known = json.loads(_known(request).read_text("utf-8"))
        folder = compiled() / known["key"]
        if known["files"] == _stamps(request.files()) and (folder / RECORD).is_file():
            with suppress(OSError):  # a cache that cannot be written to can be read from
                os.utime(folder / RECORD)
            return folder
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def key_of(request: Request, options: Sequence[Any]) -> str:
    """The name of the compiled form: of all files' content, and of what else it depends on.

    Reading takes about a second for each gigabyte.
    """
    digest = hashlib.sha256(json.dumps([COMPILER, __version__, *options]).encode())
    buffer = bytearray(PIECE)
    view = memoryview(buffer)
    for path in request.files():
        digest.update(f"\n{path.name}\n".encode())
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(view[:count])
    return digest.hexdigest()[:32]


def remember(request: Request, key: str) -> None:
    """Note the key of a source, for `find`."""
    _note(request, {"key": key})


def room() -> int:
    """How many bytes compiled models may take together.

    Raises:
        InputError: the environment says something else than a number of gigabytes.
    """
    asked = os.environ.get(ROOM_VARIABLE, "").strip() or ROOM
    with suppress(ValueError, OverflowError):
        if (limit := int(float(asked) * 1e9)) >= 0:
            return limit
    raise InputError(f"{asked!r} is no number of gigabytes", where=ROOM_VARIABLE, mend=f"give one, such as {ROOM:g}")


def make_room(key: str, limit: int) -> None:
    """Remove the compiled models that have lain unused for longest, until all take `limit` bytes at most.

    `compiled/<key>` stays, however large it is. Each of the others is made again when it is next wanted.
    """
    found = []
    for record in compiled().glob(f"[!.]*/{RECORD}"):  # a hidden folder is somebody's work
        with suppress(OSError):  # another process makes room, too
            size = sum(each.stat().st_size for each in record.parent.iterdir())
            found.append((record.parent.name != key, -record.stat().st_mtime_ns, size, record.parent))
    total = 0
    for other, _, size, folder in sorted(found):
        if other and total + size > limit:
            _remove(folder)
        else:
            total += size


def remember_refusal(request: Request, why: str) -> None:
    """Note that a source has no form for this engine, for `refusal`."""
    _note(request, {"refused": why})


def refusal(request: Request) -> str | None:
    """Why an unchanged checkpoint that was seen before has no form for this engine; None where nothing is known."""
    try:
        known = json.loads(_known(request).read_text("utf-8"))
        return str(known["refused"]) if known["files"] == _stamps(request.files()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(request: Request, what: dict[str, str]) -> None:
    path = _known(request)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(what | {"files": _stamps(request.files())}), "utf-8")
    partial.replace(path)


@contextmanager
def new_folder(key: str) -> Iterator[Path]:
    """A folder to compile into; it becomes `compiled/<key>` when the block ends well, and vanishes when not.

    What a killed process left of an earlier attempt is removed first; the lock is held by the caller.
    """
    partial, final = compiled() / f".{key}.partial", compiled() / key
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for each in partial.iterdir():
            with each.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(key: str) -> Iterator[None]:
    """Alone at work on `key`; another process waits."""
    from filelock import FileLock

    locks = home() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"compiled-{key}.lock"):
        yield


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write down beside a compiled model what it is."""
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """What is written down beside a compiled model."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))
    return record


def _remove(folder: Path) -> None:
    """Take a compiled model away, at once for whoever looks for it, with the notes that name it."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        folder.rename(gone)
    except OSError:  # gone already, or open elsewhere on a system that minds
        return
    shutil.rmtree(gone, ignore_errors=True)
    for path in (compiled() / "known").glob("*.json"):
        with suppress(OSError, ValueError, AttributeError):
            if json.loads(path.read_text("utf-8")).get("key") == folder.name:
                path.unlink()


def _known(request: Request) -> Path:
    return compiled() / "known" / f"{request.name}.json"


def _stamps(files: Sequence[Path]) -> list[list[Any]]:
    return [[path.name, stat.st_size, stat.st_mtime_ns] for path in files for stat in (path.stat(),)]
