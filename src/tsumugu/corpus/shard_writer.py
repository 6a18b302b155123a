"""Writing shards: documents are appended, and what is committed survives a kill at any moment.

A shard is two files. ``shard-00000.bin`` holds the token ids of its documents one after another, without special
tokens; ``shard-00000.idx`` holds where each document begins and ends, and how many bytes of text it had. While a shard
is open, ``shard-00000.docs`` collects what the index will be made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tsumugu.checkpoints.atomic import new_file, sync

SHARD_TOKENS = 1 << 27
"""Tokens in a shard, about: 256 MiB of 16-bit ids."""
_PIECE = 1 << 24  # bytes read at once for a checksum


@dataclass(frozen=True)
class Shard:
    """What corpus.json says of a shard.

    Attributes:
        name: of its files, without the suffix.
        documents, tokens: how many it holds.
        bytes: of the documents' text in UTF-8.
        sha256, index_sha256: of the .bin and the .idx file.
    """

    name: str
    documents: int
    tokens: int
    bytes: int
    sha256: str
    index_sha256: str


def shard_name(number: int) -> str:
    """The name of a shard's files, without the suffix."""
    return f"shard-{number:05d}"


def ids_type(vocab_size: int) -> np.dtype[Any]:
    """The type of the ids on disk: 16 bits where they are enough."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def tidy(folder: Path) -> None:
    """Remove from a finished folder what an unfinished one needs to go on."""
    for each in folder.glob("shard-*.docs"):
        each.unlink()


class ShardWriter:
    """Appends documents to shards in a folder.

    Args:
        folder: is there already.
        dtype: of the ids, see `ids_type`.
        shard_tokens: a document that would make a shard longer begins the next one; no document is cut.
        state: what `commit` gave when the folder was last left; what was written after it is forgotten.
    """

    def __init__(
        self,
        folder: Path,
        dtype: np.dtype[Any],
        *,
        shard_tokens: int = SHARD_TOKENS,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder, self._dtype, self._limit = folder, dtype, shard_tokens
        self._closed = [Shard(**each) for each in (state or {}).get("closed", [])]
        self._documents: int = (state or {}).get("documents", 0)  # of the open shard
        self._tokens: int = (state or {}).get("tokens", 0)
        self._bin, self._docs = self._open(".bin"), self._open(".docs")
        self._bin.truncate(self._tokens * dtype.itemsize)
        self._docs.truncate(self._documents * 16)
        self._bin.seek(0, os.SEEK_END)
        self._docs.seek(0, os.SEEK_END)

    def add(self, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> None:
        """Append documents of one token or more.

        Args:
            ids: those of all documents, one after another.
            lengths: the tokens of each.
            sizes: the bytes that the text of each has.
        """
        ends = np.concatenate([[0], np.cumsum(lengths)])
        at = 0
        while at < len(lengths):
            room = self._limit - self._tokens
            stop = int(np.searchsorted(ends, ends[at] + room, side="right")) - 1
            if stop <= at and self._documents:
                self._close_shard()
                self._bin, self._docs = self._open(".bin", new=True), self._open(".docs", new=True)
                continue
            stop = max(stop, at + 1)
            self._bin.write(np.ascontiguousarray(ids[ends[at] : ends[stop]], self._dtype).data)
            self._docs.write(np.ascontiguousarray(np.stack([lengths[at:stop], sizes[at:stop]], axis=1), "<i8").data)
            self._documents += stop - at
            self._tokens += int(ends[stop] - ends[at])
            at = stop

    def commit(self) -> dict[str, Any]:
        """Bring everything to the disk; give the state from which another writer can go on, as plain JSON values."""
        for file in (self._bin, self._docs):
            file.flush()
            os.fsync(file.fileno())
        return {
            "closed": [asdict(each) for each in self._closed],
            "documents": self._documents,
            "tokens": self._tokens,
        }

    def finish(self) -> list[Shard]:
        """Close the last shard; `tidy` then removes what only an unfinished folder needs."""
        if self._documents:
            self._close_shard()
        else:
            self.close()
            self._path(".bin").unlink()
        sync(self._folder)
        return self._closed

    def close(self) -> None:
        """Let go of the files, finished or not. What a full disk did not take is lost; it was not committed."""
        for file in (self._bin, self._docs):
            with contextlib.suppress(OSError):
                file.close()

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{shard_name(len(self._closed))}{suffix}"

    def _open(self, suffix: str, *, new: bool = False) -> BinaryIO:
        path = self._path(suffix)
        return path.open("w+b" if new or not path.exists() else "r+b")

    def _close_shard(self) -> None:
        self.commit()
        self._docs.seek(0)
        pairs = np.frombuffer(self._docs.read(), "<i8").reshape(-1, 2)
        self.close()
        offsets = np.zeros(len(pairs) + 1, "<i8")
        np.cumsum(pairs[:, 0], out=offsets[1:])
        with new_file(self._path(".idx")) as partial, partial.open("wb") as file:
            file.write(offsets.data)
            file.write(np.ascontiguousarray(pairs[:, 1]).data)
        self._closed.append(
            Shard(
                name=shard_name(len(self._closed)),
                documents=self._documents,
                tokens=self._tokens,
                bytes=int(pairs[:, 1].sum()),
                sha256=checksum(self._path(".bin")),
                index_sha256=checksum(self._path(".idx")),
            )
        )
        self._documents = self._tokens = 0
