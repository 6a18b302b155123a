"""Blocks of documents: what a worker gets, and from where reading goes on after the last one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.corpus.documents import Document, Reading, read_documents
from tsumugu.corpus.inputs import TextSource

BLOCK_BYTES = 1 << 20
BLOCK_DOCUMENTS = 4096


@dataclass(frozen=True)
class Position:
    """A place between two documents.

    Attributes:
        source: the number of the source.
        documents: how many of its documents lie before.
        digest: stands for the texts of these; so a source that is mended further on may be gone on with.
    """

    source: int = 0
    documents: int = 0
    digest: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"source": self.source, "documents": self.documents, "digest": self.digest}


@dataclass
class Block:
    """Documents that are worked on together. Where a block ends depends on the documents alone.

    Attributes:
        texts: in UTF-8.
        places: where each stands.
        sources: the number of the source of each.
        end: from where to read on.
        size: bytes in all.
    """

    texts: list[bytes] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    end: Position = field(default_factory=Position)
    size: int = 0


def read_blocks(
    sources: Sequence[TextSource], reading: Reading, start: Position, *, spool: Path | None = None
) -> Iterator[Block]:
    """The blocks from `start` on.

    Raises:
        InputError: a source cannot be read, or has changed before `start`; the documents of the block that is not full
            then are not lost: they are read again.
    """
    block = Block()
    for number in range(start.source, len(sources)):
        documents = read_documents(sources[number], reading, spool=spool)
        digest, taken = hashlib.blake2b(digest_size=16), 0
        if number == start.source and start.documents:
            taken = _skip(documents, start, digest, sources[number])
        for document in documents:
            text = document.text.encode()
            taken += 1
            _count(digest, text)
            block.texts.append(text)
            block.places.append(document.where)
            block.sources.append(number)
            block.size += len(text)
            if block.size >= BLOCK_BYTES or len(block.texts) >= BLOCK_DOCUMENTS:
                block.end = Position(number, taken, digest.hexdigest())
                yield block
                block = Block()
    if block.texts:
        block.end = Position(len(sources), 0, "")
        yield block


def _skip(documents: Iterator[Document], start: Position, digest: Any, source: TextSource) -> int:
    taken = 0
    for document in islice(documents, start.documents):
        taken += 1
        _count(digest, document.text.encode())
    if taken < start.documents or digest.hexdigest() != start.digest:
        what = f"has changed in its first {start.documents} documents since the preparation began"
        raise InputError(what, where=source.name, mend="start anew with --force")
    return taken


def _count(digest: Any, text: bytes) -> None:
    digest.update(len(text).to_bytes(8, "little"))
    digest.update(text)


def check_unchanged(before: Sequence[Any], sources: Sequence[TextSource], position: Mapping[str, Any]) -> None:
    """Raise InputError when a source that was read to its end is not the one that it was.

    Args:
        before: what `TextSource.state` gave for each source when it was read.
        position: a `Position` as plain values.
    """
    for number in range(min(position["source"] + (position["documents"] > 0), len(before))):
        name, *rest = before[number] or (None,)
        source = sources[number] if number < len(sources) else None
        now = source.state() if source is not None else None
        mend = "put it back, or start anew with --force"
        if source is None or (now is not None and now[0] != name):
            found = "missing" if source is None else f"now {source.name}"
            raise InputError(f"source {number + 1} is {found}", where=name or "the inputs", mend=mend)
        if number < position["source"] and now is not None and list(now[1:]) != rest:
            raise InputError("has changed since it was read", where=source.name, mend=mend)
