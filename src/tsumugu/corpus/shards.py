"""A prepared corpus: a folder of token ids that is mapped into memory and read in any order.

The folder holds ``corpus.json`` (counts, checksums, where the text came from and how it was cleaned), the shards (see
`shard_writer`), ``tokenizer/``, ``token_bytes.npy``, ``report.json``, and perhaps ``validation/``, a corpus of its own
with the documents that are held back. It is untrusted: sizes and offsets are checked when it is opened, ids and
checksums by `Corpus.verify`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tsumugu.checkpoints.atomic import sync, temporary
from tsumugu.core.errors import InputError
from tsumugu.corpus.shard_writer import SHARD_TOKENS, Shard, ShardWriter, checksum, ids_type, shard_name, tidy
from tsumugu.corpus.token_bytes import token_bytes, vocabulary_size
from tsumugu.text.files import read_json, write_json

if TYPE_CHECKING:
    from tsumugu.text.tokenizer import Tokenizer

FORMAT, VERSION = "tsumugu corpus", 1
VALIDATION = "validation"
_OPEN_SHARDS = 256  # mapped at a time: each holds a file handle
_LARGEST_VOCABULARY = 1 << 28
_CHUNK = 1 << 24  # ids looked at in one go

Progress = Callable[[int, int], None]
"""Told how many bytes are done, and how many there are."""


class Corpus:
    """The documents of a prepared folder, as token ids.

    Attributes:
        path: the folder.
        documents, tokens, bytes: how many; bytes are those of the text in UTF-8.
        characters: of the text; None where the corpus was not made from text.
        vocab_size: every id is below it.
        dtype: of the ids.
        checksum: stands for the ids, their order and the tokenizer; equal for equal data, wherever it was prepared.
        settings, sources: how the text was cleaned and where it came from.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], shards: Sequence[Shard]) -> None:
        self.path = path
        self.documents: int = about["documents"]
        self.tokens: int = about["tokens"]
        self.bytes: int = about["bytes"]
        self.characters: int | None = about["characters"]
        self.vocab_size: int = about["vocab_size"]
        self.dtype = np.dtype(about["dtype"]).newbyteorder("<")
        self.checksum: str = about["checksum"]
        self.settings: dict[str, Any] = about["settings"]
        self.sources: list[dict[str, Any]] = about["sources"]
        self.shards = tuple(shards)
        self._about = about
        self._first = np.cumsum([0, *(each.documents for each in shards)])
        self._offsets, self.document_bytes = self._read_indices()
        self._mapped = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._map)

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open a prepared folder. Only the indices are read.

        Raises:
            InputError: it is no prepared corpus, or a file is missing, cut short, or contradicts the others.
        """
        path = Path(path)
        if not (path / "corpus.json").is_file():
            mend = "make one with tsumugu prepare"
            raise InputError("this is no prepared corpus", where=str(path), mend=mend)
        about = read_json(path / "corpus.json", required=True)
        return cls(path, about, _checked(path, about))

    def __len__(self) -> int:
        return self.documents

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus.open, (self.path,)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The tokens of each document, `[documents]`; none has no token."""
        return np.diff(self._offsets)

    def document(self, number: int) -> npt.NDArray[np.integer]:
        """The ids of a document, `[tokens]`: a read-only view of the shard, without special tokens."""
        if not 0 <= number < self.documents:
            raise IndexError(f"document {number} of {self.documents}")
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        begin = self._offsets[self._first[shard]]
        ids = self._mapped(shard)
        return ids[self._offsets[number] - begin : self._offsets[number + 1] - begin]

    @cached_property
    def token_bytes(self) -> npt.NDArray[np.int32]:
        """How many UTF-8 bytes of text each id stands for, `[vocab_size]`."""
        path = self.path / "token_bytes.npy"
        try:
            if path.stat().st_size > 4 * self.vocab_size + 4096:
                raise ValueError("it is longer than the vocabulary")
            sizes: npt.NDArray[np.int32] = np.load(path, allow_pickle=False)
            if sizes.dtype != np.int32 or sizes.shape != (self.vocab_size,) or (sizes < 0).any():
                raise ValueError("it does not fit the vocabulary")
        except (OSError, ValueError, EOFError) as error:
            raise _broken(path, f"cannot be used ({error})") from None
        sizes.flags.writeable = False
        return sizes

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        from tsumugu.text.tokenizer import Tokenizer

        return Tokenizer.from_folder(self.path / "tokenizer")

    @cached_property
    def source_report(self) -> dict[str, Any]:
        """report.json: what was read, what was dropped and why; empty when there is none."""
        return read_json(self.path / "report.json")

    @cached_property
    def validation(self) -> Corpus | None:
        """The documents that are held back, when there are any."""
        folder = self.path / VALIDATION
        return Corpus.open(folder) if (folder / "corpus.json").is_file() else None

    def verify(self, progress: Progress | None = None) -> None:
        """Read everything and compare it with its checksums; the held-back documents too.

        Raises:
            InputError: a file is not what was prepared, or an id is outside of the vocabulary.
        """
        total, done = sum(each.tokens for each in self.shards) * self.dtype.itemsize, 0
        if tokenizer_checksum(self.path / "tokenizer") != self._about["tokenizer"]:
            raise _broken(self.path / "tokenizer", "is not the tokenizer that made the ids")
        if checksum(self.path / "token_bytes.npy") != self._about["token_bytes"]:
            raise _broken(self.path / "token_bytes.npy", "has changed since it was prepared")
        if _whole_checksum(self._about, self.shards) != self.checksum:
            raise _broken(self.path / "corpus.json", "contradicts its own checksum")
        for number, shard in enumerate(self.shards):
            for suffix, wanted in ((".bin", shard.sha256), (".idx", shard.index_sha256)):
                if checksum(self.path / f"{shard.name}{suffix}") != wanted:
                    raise _broken(self.path / f"{shard.name}{suffix}", "has changed since it was prepared")
            ids = self._mapped(number)
            for start in range(0, len(ids), _CHUNK):
                greatest = int(ids[start : start + _CHUNK].max())
                if greatest >= self.vocab_size:
                    what = f"id {greatest} is outside of the vocabulary of {self.vocab_size}"
                    raise _broken(self.path / f"{shard.name}.bin", what)
            done += len(ids) * self.dtype.itemsize
            if progress is not None:
                progress(done, total)
        if self.validation is not None:
            self.validation.verify(progress)

    def _read_indices(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where each document begins, over all shards, `[documents + 1]`, and the bytes of each, `[documents]`."""
        offsets = np.zeros(self.documents + 1, np.int64)
        sizes = np.zeros(self.documents, np.int64)
        begin = 0
        for shard, first in zip(self.shards, self._first[:-1], strict=True):
            path = self.path / f"{shard.name}.idx"
            numbers = np.fromfile(path, "<i8")
            if len(numbers) != 2 * shard.documents + 1:
                raise _broken(path, "is cut short")
            starts, own = numbers[: shard.documents + 1], numbers[shard.documents + 1 :]
            if starts[0] != 0 or starts[-1] != shard.tokens or (starts[1:] <= starts[:-1]).any():
                raise _broken(path, "its offsets do not ascend from the shard's start to its end")
            if (own < 0).any() or int(own.sum()) != shard.bytes:
                raise _broken(path, "its bytes contradict corpus.json")
            offsets[first : first + shard.documents + 1] = starts + begin
            sizes[first : first + shard.documents] = own
            begin += shard.tokens
        sizes.flags.writeable = False
        return offsets, sizes

    def _map(self, number: int) -> npt.NDArray[np.integer]:
        path = self.path / f"{self.shards[number].name}.bin"
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        ids = np.frombuffer(mapped, self.dtype)
        if len(ids) != self.shards[number].tokens:
            raise _broken(path, "has changed since it was opened")
        return ids


def write_corpus(
    target: str | Path,
    documents: Iterable[tuple[Sequence[int] | npt.NDArray[Any], int]],
    tokenizer: Tokenizer,
    *,
    shard_tokens: int = SHARD_TOKENS,
    settings: Mapping[str, Any] | None = None,
    sources: Sequence[Mapping[str, Any]] = (),
) -> Corpus:
    """Write documents that are token ids already. The folder appears whole or not at all.

    Args:
        target: a folder that is not there yet.
        documents: the ids of each, and how many bytes its text has.
        tokenizer: the one that made the ids.

    Raises:
        InputError: the folder is there, a document is empty or has an id that the tokenizer lacks, or there is none.
    """
    target = Path(target).absolute()
    if target.exists():
        raise InputError("the folder is there already", where=str(target), mend="choose another name")
    scratch = temporary(target)
    scratch.mkdir()
    size = vocabulary_size(tokenizer)
    writer = ShardWriter(scratch, ids_type(size), shard_tokens=shard_tokens)
    try:
        for number, (ids, n_bytes) in enumerate(documents):
            row = np.asarray(ids, np.int64)
            if not len(row) or row.min() < 0 or row.max() >= size:
                what = "has no token" if not len(row) else "has an id outside of the vocabulary"
                raise InputError(what, where=f"document {number}")
            writer.add(row, np.array([len(row)]), np.array([n_bytes]))
        seal(scratch, writer.finish(), tokenizer, settings=settings or {}, sources=sources)
        tidy(scratch)
        scratch.rename(target)
        sync(target.parent)
    finally:
        writer.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return Corpus.open(target)


def seal(
    folder: Path,
    shards: Sequence[Shard],
    tokenizer: Tokenizer,
    *,
    settings: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]] = (),
    characters: int | None = None,
    report: Mapping[str, Any] | None = None,
) -> None:
    """Write beside finished shards all that makes a folder a corpus; corpus.json comes last.

    Raises:
        InputError: there is no document.
    """
    if not shards:
        raise InputError("there is no document", where="documents")
    save_tokenizer(tokenizer, folder / "tokenizer")
    sizes = token_bytes(tokenizer)
    with (folder / "token_bytes.npy").open("wb") as file:
        np.lib.format.write_array(file, sizes, allow_pickle=False)
    sync(folder / "token_bytes.npy")
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "documents": sum(each.documents for each in shards),
        "tokens": sum(each.tokens for each in shards),
        "bytes": sum(each.bytes for each in shards),
        "characters": characters,
        "dtype": ids_type(len(sizes)).name,
        "vocab_size": len(sizes),
        "tokenizer": tokenizer_checksum(folder / "tokenizer"),
        "token_bytes": checksum(folder / "token_bytes.npy"),
        "shards": [asdict(each) for each in shards],
        "sources": list(sources),
        "settings": dict(settings),
    }
    about["checksum"] = _whole_checksum(about, shards)
    if report is not None:
        write_json(folder / "report.json", report)
    write_json(folder / "corpus.json", about)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Save a tokenizer into a folder that then holds nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save(folder)


def tokenizer_checksum(folder: Path) -> str:
    """A checksum over the names and contents of all files of a saved tokenizer."""
    files = sorted((each.relative_to(folder).as_posix(), each) for each in folder.rglob("*") if each.is_file())
    return hashlib.sha256("".join(f"{checksum(path)}  {name}\n" for name, path in files).encode()).hexdigest()


def _whole_checksum(about: Mapping[str, Any], shards: Sequence[Shard]) -> str:
    said = [FORMAT, VERSION, about["dtype"], about["vocab_size"], about["tokenizer"], about["token_bytes"]]
    parts = [*said, *(each for shard in shards for each in (shard.sha256, shard.index_sha256))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


_COUNTS = ("documents", "tokens", "bytes", "vocab_size")
_TEXTS = ("tokenizer", "token_bytes", "checksum")


def _checked(path: Path, about: Mapping[str, Any]) -> list[Shard]:
    """The shards, when corpus.json is well formed, agrees with itself and with the sizes of the files."""
    where = path / "corpus.json"
    if about.get("format") != FORMAT:
        raise _broken(where, "does not describe a corpus")
    if about.get("version") != VERSION:
        mend = f"this tsumugu reads version {VERSION}: prepare the corpus again"
        raise InputError(f"the corpus is of version {about.get('version')!r}", where=str(where), mend=mend)
    listed, characters = about.get("shards"), about.get("characters")
    if (
        not all(_is_count(about.get(name)) for name in _COUNTS)
        or not all(isinstance(about.get(name), str) for name in _TEXTS)
        or not (characters is None or _is_count(characters))
        or not isinstance(about.get("settings"), dict)
        or not isinstance(about.get("sources"), list)
        or not isinstance(listed, list)
        or not 0 < about["vocab_size"] <= _LARGEST_VOCABULARY
        or about.get("dtype") != ids_type(about["vocab_size"]).name
    ):
        raise _broken(where, "is not what tsumugu prepare writes")
    shards = [_shard(each, where) for each in listed]
    for name in ("documents", "tokens", "bytes"):
        if sum(getattr(each, name) for each in shards) != about[name]:
            raise _broken(where, f"its shards do not add up to {about[name]} {name}")
    width = np.dtype(about["dtype"]).itemsize
    for number, shard in enumerate(shards):
        if shard.name != shard_name(number):
            raise _broken(where, f"shard {number} has the wrong name")
        for suffix, size in ((".bin", shard.tokens * width), (".idx", 8 * (2 * shard.documents + 1))):
            file = path / f"{shard.name}{suffix}"
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                raise _broken(file, "is missing" if found is None else f"has {found} bytes instead of {size}")
    return shards


def _shard(values: Any, where: Path) -> Shard:
    names = {each.name for each in fields(Shard)}
    if not isinstance(values, dict) or set(values) != names:
        raise _broken(where, "a shard is not described as tsumugu prepare does")
    counts = all(_is_count(values[name]) for name in ("documents", "tokens", "bytes"))
    hashes = all(re.fullmatch(r"[0-9a-f]{64}", str(values[name])) for name in ("sha256", "index_sha256"))
    if not (counts and hashes and values["documents"] and values["tokens"]):
        raise _broken(where, "a shard is not described as tsumugu prepare does")
    return Shard(**values)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _broken(path: Path, what: str) -> InputError:
    return InputError(what, where=str(path), mend="copy the corpus again, or prepare it again")
