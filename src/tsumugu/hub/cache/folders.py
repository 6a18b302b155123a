# ruff: noqa: PTH116
"""The caches that are plain folders: xet, datasets, assets, and tsumugu's own.

They are shown in the same shape as a hub cache, so that everything else works on them unchanged: an entry is a `Repo`,
its sub-folders are its revisions, and every file is its own payload, as in a hub cache without links.

Sources: huggingface_hub 2.4 (``utils/_cache_assets.py``: library/namespace/subfolder; xet: one folder a server, with
``chunk-cache``, ``shard-cache``, ``staging``); datasets (``<owner>___<name>/<config>/<version>/<hash>`` and
``downloads``).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from tsumugu.hub.cache.layout import IGNORED, OWN, TAG
from tsumugu.hub.cache.records import Blob, CachedFile, CacheScan, Kind, Leftover, Repo, Revision
from tsumugu.hub.cache.scan import SHOWN_STRAYS, count_own
from tsumugu.hub.cache.walk import Walk, collector_at_rest, leftover


@dataclass(frozen=True, slots=True)
class Shape:
    """Where entries lie in a cache, which folders beside them hold what, and what stands for a slash in a name."""

    type: str
    entries: str = ""
    partial: str | None = None
    locks: str | None = None
    notes: str | None = None
    compiled: str | None = None
    libraries: str | None = None
    lock_files: bool = False
    slash: str | None = None


SHAPES = {
    "xet": Shape("xet"),
    "datasets": Shape("prepared", lock_files=True, slash="___"),
    "assets": Shape("asset"),
    "tsumugu": Shape(
        "pypi",
        entries="models/pypi",
        partial="partial",
        locks="locks",
        notes="terms",
        compiled="compiled",
        libraries="native",
    ),
}
KNOWN = "known"
"""Beside compiled models: which checkpoint became which."""
WHOLE = "all"
"""The name of the only revision of an entry that has no sub-folders."""


def scan_folders(root: str, cache: str) -> CacheScan:
    """Everything below the root of a cache that is no hub cache."""
    walk, shape = Walk(root), SHAPES[cache]
    leftovers: list[Leftover] = []
    repos: list[Repo] = []
    with collector_at_rest():
        walk.add(Kind.FOLDER, os.stat(root))
        _look_into(walk, shape, root, "", repos, leftovers)
    payload = {file.blob.inode: file.blob.size for repo in repos for each in repo.revisions for file in each.files}
    return walk.finish(cache, repos, leftovers, sum(payload.values()))


def read_entry(root: str, cache: str, folder: str) -> Repo | None:
    """One entry as it is now; None when it is gone."""
    path = f"{root}/{folder}"
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return _entry(Walk(root), SHAPES[cache], path, folder, found) if stat.S_ISDIR(found.st_mode) else None


def _look_into(walk: Walk, shape: Shape, path: str, prefix: str, repos: list[Repo], leftovers: list[Leftover]) -> None:
    for entry in walk.entries(path):
        found = walk.look(entry)
        if found is None:
            continue
        name = f"{prefix}{entry.name}"
        is_folder = stat.S_ISDIR(found.st_mode)
        if is_folder and name == OWN:
            count_own(walk, entry.path, found)
        elif is_folder and shape.entries.startswith(f"{name}/"):
            walk.add(Kind.FOLDER, found)
            _look_into(walk, shape, entry.path, f"{name}/", repos, leftovers)
        elif is_folder and shape.entries == name:
            walk.add(Kind.FOLDER, found)
            for each in walk.entries(entry.path):
                inner = walk.look(each)
                if inner is not None and stat.S_ISDIR(inner.st_mode):
                    repos.append(_entry(walk, shape, each.path, f"{name}/{each.name}", inner))
                elif inner is not None:
                    _loose(walk, Kind.STRAY, each, inner, leftovers)
        elif is_folder and name == shape.compiled:
            walk.add(Kind.FOLDER, found)
            _compiled(walk, shape, entry.path, repos, leftovers)
        elif is_folder and name in (shape.partial, shape.locks):
            walk.add(Kind.FOLDER, found)
            kind = Kind.INCOMPLETE if name == shape.partial else Kind.LOCK
            for each in walk.entries(entry.path):
                inner = walk.look(each)
                if inner is not None:
                    _loose(walk, kind, each, inner, leftovers)
        elif is_folder and name in (shape.notes, shape.libraries):
            walk.add(Kind.LISTING, found)
            walk.tree(entry.path, Kind.LISTING)
        elif is_folder and not shape.entries:
            repos.append(_entry(walk, shape, entry.path, name, found))
        elif not is_folder and (name == TAG or name in IGNORED):
            walk.add(Kind.LISTING, found)
        elif not is_folder and shape.lock_files and name.endswith(".lock"):
            _loose(walk, Kind.LOCK, entry, found, leftovers)
        else:
            _loose(walk, Kind.STRAY, entry, found, leftovers)


def _compiled(walk: Walk, shape: Shape, path: str, repos: list[Repo], leftovers: list[Leftover]) -> None:
    """Models compiled for a quick engine, each a folder; notes of where they came from; what a killed one left."""
    for each in walk.entries(path):
        found = walk.look(each)
        if found is None:
            continue
        if not stat.S_ISDIR(found.st_mode):
            _loose(walk, Kind.STRAY, each, found, leftovers)
        elif each.name == KNOWN:
            walk.add(Kind.LISTING, found)
            walk.tree(each.path, Kind.LISTING)
        elif each.name.startswith("."):
            _loose(walk, Kind.INCOMPLETE, each, found, leftovers)
        else:
            repos.append(_entry(walk, shape, each.path, f"{shape.compiled}/{each.name}", found))


def _loose(walk: Walk, kind: Kind, entry: os.DirEntry[str], found: os.stat_result, into: list[Leftover]) -> None:
    walk.add(kind, found)
    inner = walk.tree(entry.path, kind) if stat.S_ISDIR(found.st_mode) else 0
    if kind is not Kind.STRAY or len(into) < SHOWN_STRAYS:
        into.append(leftover(kind, entry.path, found, disk=found.st_size + inner))


def _entry(walk: Walk, shape: Shape, path: str, folder: str, top: os.stat_result) -> Repo:
    hard_before = len(walk.hard)
    disk = walk.add(Kind.FOLDER, top)
    revisions: list[Revision] = []
    loose: list[CachedFile] = []
    for entry in walk.entries(path):
        found = walk.look(entry)
        if found is None:
            continue
        if stat.S_ISDIR(found.st_mode):
            revisions.append(_revision(walk, entry.path, entry.name, found))
            disk += revisions[-1].disk
        else:
            disk += walk.add(Kind.BLOB, found)
            loose.append(_file(entry.path, entry.name, found))
    if loose and not revisions:
        revisions.append(_as_revision(path, WHOLE, loose, disk, top))
    hard = tuple(walk.hard[hard_before:])
    blobs = {file.blob.inode: file.blob for each in revisions for file in each.files}.values()
    own = shape.compiled is not None and folder.startswith(f"{shape.compiled}/")
    name = folder.removeprefix(f"{shape.compiled if own else shape.entries}/")
    return Repo(
        type="compiled" if own else shape.type,
        name=name.replace(shape.slash, "/") if shape.slash else name,
        path=path,
        folder=folder,
        revisions=tuple(revisions),
        size=sum(blob.size for blob in blobs),
        disk=disk + sum({inode: size for inode, _, size in hard}.values()),
        n_files=len(blobs),
        accessed=max((blob.accessed for blob in blobs), default=top.st_atime),
        modified=max((blob.modified for blob in blobs), default=top.st_mtime),
        hard=hard,
    )


def _revision(walk: Walk, path: str, name: str, top: os.stat_result) -> Revision:
    disk, files, waiting = walk.add(Kind.FOLDER, top), list[CachedFile](), [(path, "")]
    while waiting:
        at, prefix = waiting.pop()
        for entry in walk.entries(at):
            found = walk.look(entry)
            if found is None:
                continue
            if stat.S_ISDIR(found.st_mode):
                disk += walk.add(Kind.FOLDER, found)
                waiting.append((entry.path, f"{prefix}{entry.name}/"))
            else:
                disk += walk.add(Kind.BLOB, found)
                files.append(_file(entry.path, prefix + entry.name, found))
    return _as_revision(path, name, files, disk, top)


def _file(path: str, name: str, found: os.stat_result) -> CachedFile:
    size, inode = found.st_size, (found.st_dev, found.st_ino)
    return CachedFile(name, path, Blob(path, size, found.st_atime, found.st_mtime, size, inode, found.st_nlink))


def _as_revision(path: str, name: str, files: list[CachedFile], disk: int, top: os.stat_result) -> Revision:
    blobs = {file.blob.inode: file.blob for file in files}.values()
    return Revision(
        commit=name,
        path=path,
        files=tuple(files),
        refs=(),
        size=sum(blob.size for blob in blobs),
        modified=max((blob.modified for blob in blobs), default=top.st_mtime),
        accessed=max((blob.accessed for blob in blobs), default=top.st_atime),
        disk=disk,
    )
