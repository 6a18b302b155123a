"""How sharded checkpoints lie on disk: one safetensors file for each rank that wrote, and an index in JSON.

torch.distributed.checkpoint plans who writes what and which pieces a rank needs when it reads; its own files are
pickles, which may run code when they are opened, so these take their place.

Layout: `index.json` {"format", "files": {name: bytes}, "tensors": {name: {"shape", "dtype", "chunks": [{"file",
"offset", "shape"}]}}}; in a file, a chunk is called `name@offset`, such as `model.head.weight@128,0`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from tsumugu.checkpoints.atomic import said_clearly, sync
from tsumugu.checkpoints.entries import STORAGES, TensorEntry
from tsumugu.checkpoints.safetensors import INDEX_LIMIT, parse_json, read_safetensors, stays_inside
from tsumugu.checkpoints.source import DAMAGED, SourceFile
from tsumugu.checkpoints.write import write_safetensors
from tsumugu.core.errors import CheckpointError

INDEX, FORMAT = "index.json", "tsumugu-sharded-1"
WORDS = {form.torch_name: form.name for form in STORAGES.values()}


class Snapshot(StorageWriter):
    """Copies what this rank is to write, and writes it later."""

    def __init__(self) -> None:
        self.file = ""
        self.parts: dict[str, Tensor] = {}
        self.tensors: dict[str, Any] = {}

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [replace(plan, storage_data=f"rank-{rank:05}.safetensors") for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        self.file = plan.storage_data
        results = []
        for item in plan.items:
            part = planner.resolve_data(item)
            assert isinstance(part, Tensor)
            if part.numel():
                self.parts[_key(item.index.fqn, item.index.offset or ())] = part.detach().to("cpu", copy=True)
            results.append(WriteResult(item.index, part.nbytes, self.file))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files = {
            (each.index.fqn, tuple(each.index.offset or ())): each.storage_data for rank in results for each in rank
        }
        for name, about in metadata.state_dict_metadata.items():
            assert isinstance(about, TensorStorageMetadata)
            chunks = [
                {"file": files[name, tuple(each.offsets)], "offset": [*each.offsets], "shape": [*each.sizes]}
                for each in about.chunks
                if prod(each.sizes)
            ]
            word = WORDS[str(about.properties.dtype).removeprefix("torch.")]
            self.tensors[name] = {"shape": [*about.size], "dtype": word, "chunks": chunks}

    def write(self, folder: Path) -> None:
        """Write this rank's file, if it has a part in this."""
        if self.parts:
            write_safetensors(folder / self.file, self.parts)
        self.parts = {}

    def write_index(self, folder: Path) -> None:
        """Write what all ranks wrote where; the files are there."""
        named = sorted({chunk["file"] for each in self.tensors.values() for chunk in each["chunks"]})
        files = {name: (folder / name).stat().st_size for name in named}
        with said_clearly(folder / INDEX):
            text = json.dumps({"format": FORMAT, "files": files, "tensors": self.tensors}, ensure_ascii=False)
            (folder / INDEX).write_text(text + "\n", "utf-8")
            sync(folder / INDEX)

    def reset(self, checkpoint_id: Any = None) -> None:
        """The plan of each checkpoint is made anew."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing is written yet."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


@dataclass(frozen=True)
class Chunk:
    """A rectangular part of a tensor: where it begins, how large it is, and in which file it lies."""

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


class ShardedIndex:
    """What a sharded checkpoint holds, read from its index and checked: every number of every tensor is there once."""

    def __init__(self, folder: Path, tensors: dict[str, tuple[tuple[int, ...], torch.dtype, list[Chunk]]]) -> None:
        self.folder, self.tensors = folder, tensors

    @classmethod
    def read(cls, folder: Path) -> ShardedIndex:
        """Read and check `folder`'s index and the sizes of its files.

        Raises:
            CheckpointError: it is absent or damaged, or files that it names are.
        """
        path = folder / INDEX
        file = SourceFile(path)
        if file.size > INDEX_LIMIT:
            raise CheckpointError("is too large for an index", where=str(path))
        found = parse_json(file.read(0, file.size), path)
        if found.get("format") != FORMAT:
            raise CheckpointError(f"is no index of format {FORMAT}", where=str(path))
        try:
            for name, size in found["files"].items():
                actual = (folder / name).stat().st_size if stays_inside(name) else None
                if actual is None or actual != size:
                    raise CheckpointError(f"{name!r} is not the file that was written", where=str(path), mend=DAMAGED)
            tensors = {name: _described(about, found["files"]) for name, about in found["tensors"].items()}
            _fit(tensors, found["files"])
        except OSError as error:
            raise CheckpointError(f"a part cannot be read: {error}", where=str(path), mend=DAMAGED) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"does not describe its tensors ({error})", where=str(path), mend=DAMAGED) from error
        return cls(folder, tensors)

    def sizes(self, section: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of what lies in `section`, by the name in it."""
        start = f"{section}."
        return {
            name.removeprefix(start): (shape, dtype)
            for name, (shape, dtype, _) in self.tensors.items()
            if name.startswith(start)
        }

    def expect(self, wanted: Mapping[str, Tensor], sections: list[str]) -> None:
        """Compare names and shapes with those that are wanted.

        Raises:
            CheckpointError: they differ; it names some.
        """
        held = {name: shape for name, (shape, _, _) in self.tensors.items() if name.partition(".")[0] in sections}
        for names, what in ((wanted.keys() - held.keys(), "lacks"), (held.keys() - wanted.keys(), "has, unasked,")):
            if names:
                some = ", ".join(sorted(names)[:5])
                raise CheckpointError(f"{what} {len(names)} tensors: {some}", where=str(self.folder))
        for name, each in wanted.items():
            if held[name] != tuple(each.shape):
                shapes = f"{list(held[name])}, not {list(each.shape)}"
                raise CheckpointError(f"{name} has shape {shapes}", where=str(self.folder))


def _described(about: Mapping[str, Any], files: Mapping[str, int]) -> tuple[tuple[int, ...], torch.dtype, list[Chunk]]:
    shape = _sizes(about["shape"])
    dtype = getattr(torch, STORAGES[about["dtype"]].torch_name)
    chunks = [Chunk(each["file"], _sizes(each["offset"]), _sizes(each["shape"])) for each in about["chunks"]]
    for each in chunks:
        if each.file not in files or len(each.offset) != len(shape) or len(each.shape) != len(shape):
            raise ValueError("a chunk does not belong")
        if any(start + size > whole for start, size, whole in zip(each.offset, each.shape, shape, strict=True)):
            raise ValueError("a chunk leaves its tensor")
    if sum(prod(each.shape) for each in chunks) != prod(shape) or _overlap(chunks):
        raise ValueError("chunks do not make up their tensor")
    return shape, dtype, chunks


def _overlap(chunks: list[Chunk]) -> bool:
    """Whether two of them share a number. Looks from each at those only that begin before it ends."""
    open_ones: list[Chunk] = []
    for each in sorted(chunks, key=lambda each: each.offset):
        if not each.shape:
            return len(chunks) > 1
        open_ones = [other for other in open_ones if other.offset[0] + other.shape[0] > each.offset[0]]
        if any(_touch(each, other) for other in open_ones):
            return True
        open_ones.append(each)
    return False


def _touch(one: Chunk, other: Chunk) -> bool:
    edges = zip(one.offset, one.shape, other.offset, other.shape, strict=True)
    return all(start < end + size and end < start + length for start, length, end, size in edges)


def _fit(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype, list[Chunk]]], files: Mapping[str, int]) -> None:
    """Refuse an index by whose word a file holds more than its bytes, before memory is made for it."""
    held = dict.fromkeys(files, 0)
    for _, dtype, chunks in tensors.values():
        for each in chunks:
            held[each.file] += prod(each.shape) * dtype.itemsize
    for name, size in held.items():
        if size > files[name]:
            raise ValueError(f"more is said to be in {name} than its size")


def _sizes(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not all(type(each) is int and each >= 0 for each in given):
        raise ValueError("expected sizes")
    return tuple(given)


class Reader(StorageReader):
    """Reads the pieces that a rank needs, from the mapped files of all that wrote."""

    def __init__(self, index: ShardedIndex) -> None:
        self.index = index
        self._files: dict[str, dict[str, TensorEntry]] = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tensors: dict[str, Any] = {}
        where: dict[MetadataIndex, str] = {}
        for name, (shape, dtype, chunks) in self.index.tensors.items():
            parts = [ChunkStorageMetadata(torch.Size(each.offset), torch.Size(each.shape)) for each in chunks]
            tensors[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), parts)
            where |= {MetadataIndex(name, each.offset): each.file for each in chunks}
        return Metadata(tensors, storage_data=where)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._where = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            stored = item.storage_index
            entry = self._entry(self._where[stored], _key(stored.fqn, stored.offset or ()))
            piece = entry.read()
            for dim, (start, size) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                piece = piece.narrow(dim, start, size)
            target = planner.resolve_tensor(item).detach()
            target.copy_(piece)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _entry(self, file: str, key: str) -> TensorEntry:
        if file not in self._files:
            self._files[file], _ = read_safetensors(self.index.folder / file)
        entry = self._files[file].get(key)
        if entry is None:
            raise CheckpointError(f"{key} is not in {file}", where=str(self.index.folder), mend=DAMAGED)
        name, _, _ = key.rpartition("@")
        _, dtype, chunks = self.index.tensors[name]
        expected = next(each for each in chunks if _key(name, each.offset) == key)
        if entry.shape != expected.shape or entry.dtype != dtype:
            raise CheckpointError(f"{key} is not as the index says", where=str(self.index.folder), mend=DAMAGED)
        return entry

    def reset(self, checkpoint_id: Any = None) -> None:
        """Each reader reads one checkpoint."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def _key(name: str, offset: Any) -> str:
    """What a chunk is called in its file."""
    return f"{name}@{','.join(map(str, offset))}"
