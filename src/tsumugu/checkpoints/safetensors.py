"""Reading safetensors: one file, or shards named by an index.

The `safetensors` package opens the file first and so checks the header: its length, that offsets lie in the file and
leave neither gap nor overlap, that type, shape and length agree. Positions are then taken from the same header.

Source: the safetensors format, "Format" section of the project's README; `model.safetensors.index.json` as written by
huggingface_hub (`metadata`, `weight_map`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tsumugu.checkpoints.entries import STORAGES, TensorEntry
from tsumugu.checkpoints.source import DAMAGED, Region, SourceFile
from tsumugu.core.errors import CheckpointError

HEADER_LIMIT = 100_000_000
INDEX_LIMIT = 100_000_000

Contents = tuple[dict[str, TensorEntry], dict[str, Any]]


def read_safetensors(path: Path) -> Contents:
    """The tensors and the text metadata of one safetensors file.

    Raises:
        CheckpointError: the file is cut short, damaged, or lies about itself.
    """
    from safetensors import SafetensorError, safe_open

    file = SourceFile(path)
    length = int.from_bytes(file.read(0, 8), "little") if file.size >= 8 else -1
    if not 0 <= length <= min(file.size - 8, HEADER_LIMIT):
        raise CheckpointError("is not a safetensors file, or is cut short", where=str(path), mend=DAMAGED)
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"its header does not hold ({error})", where=str(path), mend=DAMAGED) from error
    header = parse_json(file.read(8, length), path)
    metadata = header.pop("__metadata__", None) or {}
    entries = {name: _entry(name, fields, file, 8 + length) for name, fields in header.items()}
    return entries, dict(metadata)


def _entry(name: str, fields: dict[str, Any], file: SourceFile, start: int) -> TensorEntry:
    where = f"{file.path}: {name}"
    form = STORAGES.get(fields["dtype"])
    if form is None:
        raise CheckpointError(f"type {fields['dtype']} is not supported", where=where)
    shape = tuple(int(size) for size in fields["shape"])
    first, last = fields["data_offsets"]
    if first < 0 or last - first != form.nbytes(prod(shape)) or start + last > file.size:
        raise CheckpointError("type, shape and position do not agree", where=where, mend=DAMAGED)
    return TensorEntry(name, shape, form, Region(file, start + first, last - first), origin=str(file.path))


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """A JSON object of an untrusted file, in which no key stands twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"is not valid JSON ({error})", where=str(path)) from error
    if not isinstance(parsed, dict):
        raise CheckpointError("is not a JSON object", where=str(path))
    return parsed


def read_sharded(index: Path, read: Callable[[Path], Contents]) -> Contents:
    """The tensors of all shards that an index names.

    A tensor that several shards hold is taken from the shard that the index says.

    Args:
        index: `*.index.json` beside its shards.
        read: reads one shard.

    Raises:
        CheckpointError: a shard's name leaves the folder, a shard or a tensor is absent, or nothing says which of two
            tensors of one name is meant.
    """
    listed = _weight_map(index)
    shards = shards_of(index, listed)
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        raise CheckpointError(
            f"{len(absent)} of {len(shards)} shards are absent: {', '.join(absent[:5])}",
            where=str(index),
            mend="fetch the rest of the checkpoint",
        )
    tensors: dict[str, TensorEntry] = {}
    metadata: dict[str, Any] = {}
    for shard in shards:
        found, about = read(index.parent / shard)
        metadata.update(about)
        for name, entry in found.items():
            if listed.get(name, shard) != shard:
                continue
            if name in tensors:
                raise CheckpointError(f"tensor {name!r} is in two shards and not in the index", where=str(index))
            tensors[name] = entry
    lost = sorted(listed.keys() - tensors.keys())
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors are not in the shards that the index names: {', '.join(lost[:5])}",
            where=str(index),
            mend=DAMAGED,
        )
    return tensors, metadata


def shards_of(index: Path, listed: Mapping[str, str] | None = None) -> list[str]:
    """The names of the shards that an index names, checked to stay in its folder."""
    return sorted(set((_weight_map(index) if listed is None else listed).values()))


def _weight_map(index: Path) -> Mapping[str, str]:
    file = SourceFile(index)
    if file.size > INDEX_LIMIT:
        raise CheckpointError("is too large for an index", where=str(index))
    listed = parse_json(file.read(0, file.size), index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError("has no weight_map from tensor names to files", where=str(index))
    for shard in set(listed.values()):
        if not stays_inside(shard):
            raise CheckpointError(f"shard name {shard!r} leaves the folder", where=str(index))
    return listed


def stays_inside(name: str) -> bool:
    """Whether an untrusted relative name stays in its folder, by POSIX and by Windows rules.

    Links are not followed: in the hub's cache every file is a link to a blob elsewhere.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    drive = PureWindowsPath(name).drive
    return bool(parts) and not drive and "\0" not in name and parts[0] != "/" and ".." not in parts
