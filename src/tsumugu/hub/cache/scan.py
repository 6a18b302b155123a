# ruff: noqa: PTH112, PTH114, PTH116, PTH123
"""Read a whole hub cache in one pass: every folder listed once, every file looked at once.

What bounds it is the kernel: a repo of two revisions with three files each takes about fifty system calls. Hence plain
strings instead of `Path`, and no second look at anything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace

from tsumugu.hub.cache.layout import (
    IGNORED,
    LOCKS,
    MANIFEST_SUFFIX,
    OWN,
    PROBE_FILES,
    ROOT_TEMPORARY,
    STORE,
    STORE_MARKER,
    STORE_MARKER_TEXT,
    TAG,
    TRASH,
    XET_HASH,
    parse_folder,
)
from tsumugu.hub.cache.records import CacheScan, Kind, Leftover, Repo
from tsumugu.hub.cache.repo import read_repo
from tsumugu.hub.cache.walk import Walk, collector_at_rest, leftover

SHOWN_STRAYS = 1000
"""Strays at the top that get a record of their own; the rest are only counted, so that a million cost no memory."""


def scan_hub(root: str, *, cache: str = "hub") -> CacheScan:
    """Everything below `root`, a real path. Unreadable places and corrupted repos are reported, never fatal."""
    walk, leftovers = Walk(root), list[Leftover]()
    has_store = is_store(f"{root}/{STORE}")
    with collector_at_rest():
        repos = list(_top(walk, leftovers, has_store))
    store_size, manifests = 0, dict[str, int]()
    if has_store:
        used = {blob.shared for repo in repos for blob in repo.blobs.values() if blob.shared is not None}
        store_size = _store(walk, used, leftovers, manifests)
    payload = {
        each.blob.path: each.blob.size
        for repo in walk.mixed
        if not repo.problems
        for revision in repo.revisions
        for each in revision.files
        if each.blob.shared is None
    }
    scan = walk.finish(cache, repos, leftovers, walk.size + sum(payload.values()) + store_size)
    return replace(scan, manifests=manifests)


def scan_repo(root: str, folder: str) -> Repo | None:
    """One repo of a hub cache as it is now; None when it is not there (any more)."""
    parsed, path = parse_folder(folder), f"{root}/{folder}"
    if parsed is None or not os.path.isdir(path):
        return None
    store = is_store(f"{root}/{STORE}")
    return read_repo(Walk(root), path, folder, *parsed, has_store=store, is_link=os.path.islink(path))


def is_store(path: str) -> bool:
    """Whether a folder is huggingface_hub's store of shared payloads, by its marker."""
    try:
        marker = os.lstat(f"{path}/{STORE_MARKER}")
        if not stat.S_ISDIR(os.lstat(path).st_mode) or not stat.S_ISREG(marker.st_mode) or marker.st_size > 16:
            return False
        with open(f"{path}/{STORE_MARKER}", encoding="utf-8") as handle:
            return handle.read(16) == STORE_MARKER_TEXT
    except (OSError, ValueError):
        return False


def _top(walk: Walk, leftovers: list[Leftover], has_store: bool) -> Iterator[Repo]:
    walk.add(Kind.FOLDER, os.stat(walk.root))
    for entry in walk.stream(walk.root):
        found = walk.look(entry)
        if found is None:
            continue
        name, is_folder = entry.name, stat.S_ISDIR(found.st_mode)
        parsed = parse_folder(name)
        if parsed is not None and (is_folder or walk.is_folder(entry)):
            try:
                at, link = entry.path, not is_folder
                yield read_repo(walk, at, name, *parsed, has_store=has_store, is_link=link, top=found)
            except OSError as error:
                walk.unreadable.append(f"{entry.path}: {error.strerror or error}")
        elif is_folder and name == LOCKS:
            walk.add(Kind.FOLDER, found)
            _locks(walk, entry.path, leftovers)
        elif is_folder and name == OWN:
            count_own(walk, entry.path, found)
        elif is_folder and name == STORE and has_store:
            walk.add(Kind.FOLDER, found)
        elif not is_folder and (name == TAG or name in IGNORED):
            walk.add(Kind.LISTING, found)
        else:
            _stray(walk, entry, found, leftovers)


def _stray(walk: Walk, entry: os.DirEntry[str], found: os.stat_result, leftovers: list[Leftover]) -> None:
    is_folder = stat.S_ISDIR(found.st_mode)
    is_probe = (
        is_folder
        and ROOT_TEMPORARY.fullmatch(entry.name) is not None
        and {each.name for each in walk.entries(entry.path)} <= PROBE_FILES
    )
    kind = Kind.TEMPORARY if is_probe else Kind.STRAY
    walk.add(kind, found)
    disk = found.st_size + (walk.tree(entry.path, kind) if is_folder else 0)
    if is_probe or len(leftovers) < SHOWN_STRAYS:
        leftovers.append(leftover(kind, entry.path, found, disk=disk))


def _locks(walk: Walk, path: str, leftovers: list[Leftover]) -> None:
    for entry in walk.entries(path):
        found = walk.look(entry)
        if found is None:
            continue
        if not stat.S_ISDIR(found.st_mode):
            walk.add(Kind.LOCK, found)
            leftovers.append(leftover(Kind.LOCK, entry.path, found))
        elif entry.name == OWN:
            count_own(walk, entry.path, found)
        else:
            walk.add(Kind.FOLDER, found)
            leftovers.append(leftover(Kind.LOCK, entry.path, found, folder=entry.name))
            for each in walk.entries(entry.path):
                inner = walk.look(each)
                if inner is None:
                    continue
                walk.add(Kind.LOCK, inner)
                if stat.S_ISDIR(inner.st_mode):
                    walk.tree(each.path, Kind.LOCK)
                else:
                    leftovers.append(leftover(Kind.LOCK, each.path, inner, folder=entry.name))


def count_own(walk: Walk, path: str, found: os.stat_result) -> None:
    """Our own folder: the journal, and whatever an interrupted deletion left in the trash."""
    walk.add(Kind.RECORD, found)
    for entry in walk.entries(path):
        inner = walk.look(entry)
        if inner is None:
            continue
        walk.add(Kind.RECORD, inner)
        if stat.S_ISDIR(inner.st_mode):
            walk.tree(entry.path, Kind.TRASH if entry.name == TRASH else Kind.RECORD)


def _store(walk: Walk, used: set[str], leftovers: list[Leftover], manifests: dict[str, int]) -> int:
    """The cache-wide store of shared payloads; the bytes of payload in it, whether a repo links to them or not."""
    size = 0
    for prefix in walk.entries(f"{walk.root}/{STORE}"):
        found = walk.look(prefix)
        if found is None:
            continue
        if not stat.S_ISDIR(found.st_mode):
            walk.add(Kind.LISTING, found)
            continue
        walk.add(Kind.FOLDER, found)
        for entry in walk.entries(prefix.path):
            inner = walk.look(entry)
            if inner is None:
                continue
            is_payload = stat.S_ISREG(inner.st_mode) and XET_HASH.fullmatch(entry.name) is not None
            if is_payload and entry.name.startswith(prefix.name):
                size += inner.st_size
                kind = Kind.SHARED if entry.path in used else Kind.ORPHAN_SHARED
                walk.add(kind, inner)
                if kind is Kind.ORPHAN_SHARED:
                    leftovers.append(leftover(kind, entry.path, inner))
            elif stat.S_ISDIR(inner.st_mode):
                walk.add(Kind.STRAY, inner)
                walk.tree(entry.path, Kind.STRAY)
            elif entry.name.endswith(MANIFEST_SUFFIX):
                manifests[entry.path] = walk.add(Kind.LISTING, inner)
            else:
                walk.add(Kind.LOCK if ".lock" in entry.name else Kind.STRAY, inner)
    return size
