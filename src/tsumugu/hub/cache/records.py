"""What a scan saw, as frozen records. Nothing here touches the disk.

Two kinds of size appear everywhere and are never mixed:

- ``size``: bytes of payload as huggingface_hub counts them (a blob once per repo, links followed);
- ``disk``: apparent bytes of the files, links and folders themselves, as ``du -sb`` counts them: a symlink is as long
  as its target's name, a folder is what the file system says it is, and an inode with several hard links counts once,
  where it is met first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")


def quick(record: type[T]) -> Callable[..., T]:
    """A maker of a frozen record, several times as quick as its own constructor: a scan makes one for every file.

    A frozen dataclass with slots sets each field by way of `object`. Here a twin without frost is filled, and then made
    the record itself, which Python allows between classes with the same slots.
    """
    named = [(each.name, Any, field(default=each.default)) for each in fields(record)]  # type: ignore[arg-type]
    twin = make_dataclass(f"{record.__name__}Twin", named, slots=True)

    def make(*values: Any) -> T:
        made: T = twin(*values)
        made.__class__ = record
        return made

    return make


class Kind(StrEnum):
    """What bytes of a cache are. Every byte of a root has exactly one kind."""

    BLOB = "files"
    SHARED = "shared blobs"
    LINK = "links"
    FOLDER = "folders"
    REF = "refs"
    MARKER = "notes of absent files"
    LISTING = "listings and tags"
    INCOMPLETE = "incomplete downloads"
    LOCK = "locks"
    ORPHAN = "orphaned blobs"
    ORPHAN_SHARED = "unreferenced shared blobs"
    BROKEN = "broken links"
    DEAD_REF = "refs to missing revisions"
    TEMPORARY = "temporary files"
    TRASH = "trash of an interrupted deletion"
    RECORD = "records of tsumugu"
    STRAY = "files of no known kind"


HardLink = tuple[tuple[int, int], int, int]
"""A file with several hard links: its inode (device, number), how many links there are in all, its bytes."""

JUNK = frozenset(
    {Kind.INCOMPLETE, Kind.LOCK, Kind.ORPHAN, Kind.ORPHAN_SHARED, Kind.BROKEN, Kind.DEAD_REF, Kind.TEMPORARY}
)
"""Kinds that no loading of a model needs; `plan_gc` takes them."""


@dataclass(frozen=True, slots=True)
class Blob:
    """One stored payload.

    `path` is where the repo keeps it: a file of its ``blobs`` folder, or the file in the snapshot itself where symlinks
    are not supported. `disk` is what removing that path gives back when no other hard link and no other repo holds the
    payload. `is_link` says that `path` is itself a link, `shared` is the payload's path in the cache-wide store if it
    leads there. `outside` says that `path` is no place of this repo; then it is never removed.
    """

    path: str
    size: int
    accessed: float
    modified: float
    disk: int
    inode: tuple[int, int]
    links: int = 1
    shared: str | None = None
    is_link: bool = False
    outside: bool = False


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file of a revision: its name inside the revision (``/``-separated), its path, and the payload it leads to."""

    name: str
    path: str
    blob: Blob


new_blob = quick(Blob)
new_file = quick(CachedFile)


@dataclass(frozen=True, slots=True)
class Revision:
    """One snapshot. `disk` is its own folders, links and copies, without what lies in ``blobs`` or is hard-linked.

    In a cache that is not a hub cache, `disk` is everything below `path`.
    """

    commit: str
    path: str
    files: tuple[CachedFile, ...]
    refs: tuple[str, ...]
    size: int
    modified: float
    accessed: float
    disk: int
    is_link: bool = False


@dataclass(frozen=True, slots=True)
class Leftover:
    """A thing that belongs to no revision. `folder` is the repo's folder, or empty at the top of the cache."""

    kind: Kind
    path: str
    disk: int
    modified: float
    folder: str = ""
    links: int = 1
    inode: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Repo:
    """One repo, or one entry of a cache that is not a hub cache (then a revision is one of its sub-folders).

    `disk` is what ``du -sb path`` says. `extras` gives the bytes of refs and notes, by path inside the repo. `hard` has
    a line for every path in the repo whose file has other hard links, there or elsewhere. `problems` is empty exactly
    when huggingface_hub's scan accepts the repo. `unread` says that a part of it could not be read: then nobody knows
    what its revisions need, and it can only go as a whole.
    """

    type: str
    name: str
    path: str
    folder: str
    revisions: tuple[Revision, ...]
    size: int
    disk: int
    n_files: int
    accessed: float
    modified: float
    leftovers: tuple[Leftover, ...] = ()
    extras: Mapping[str, int] = field(default_factory=dict)
    hard: tuple[HardLink, ...] = ()
    problems: tuple[str, ...] = ()
    is_link: bool = False
    unread: bool = False

    @property
    def id(self) -> str:
        """``type/name``, the way huggingface_hub writes it."""
        return f"{self.type}/{self.name}"

    @property
    def refs(self) -> dict[str, Revision]:
        return {ref: revision for revision in self.revisions for ref in revision.refs}

    @property
    def blobs(self) -> dict[str, Blob]:
        """Every payload that a revision needs, by path."""
        return {each.blob.path: each.blob for revision in self.revisions for each in revision.files}


@dataclass(frozen=True, slots=True)
class Part:
    """How many things of one kind there are, and the bytes they take."""

    kind: Kind
    count: int
    disk: int


@dataclass(frozen=True, slots=True)
class CacheScan:
    """One cache, seen whole. The `disk` of all `parts` adds up to `disk`, and that to ``du -sb root``.

    `size` is the payload as huggingface_hub totals it. `unreadable` names what could not be looked into. `manifests`
    gives the bytes of the lists of links that lie beside shared payloads.
    """

    cache: str
    root: str
    repos: tuple[Repo, ...]
    leftovers: tuple[Leftover, ...]
    parts: tuple[Part, ...]
    size: int
    disk: int
    unreadable: tuple[str, ...]
    seconds: float
    manifests: Mapping[str, int] = field(default_factory=dict)

    @property
    def junk(self) -> tuple[Leftover, ...]:
        """Everything `plan_gc` may take, whatever its age."""
        everything = [*self.leftovers, *(each for repo in self.repos for each in repo.leftovers)]
        return tuple(each for each in everything if each.kind in JUNK)
