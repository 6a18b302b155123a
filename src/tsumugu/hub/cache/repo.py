# ruff: noqa: PTH115, PTH116, PTH118, PTH119
"""Read one repo of a hub cache.

It lists every folder once and looks at every file once. A link costs a ``readlink`` only: its length is that of its
target, and the payload it leads to was seen in ``blobs`` already. Plain strings instead of `Path`: it is a hot loop.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from tsumugu.hub.cache.layout import BLOB_TEMPORARY, IGNORED, INCOMPLETE_SUFFIX, REF_TEMPORARY, STORE_LINK
from tsumugu.hub.cache.records import Blob, CachedFile, Kind, Leftover, Repo, Revision, new_blob, new_file
from tsumugu.hub.cache.walk import Walk, leftover


def read_repo(
    walk: Walk,
    path: str,
    folder: str,
    type: str,
    name: str,
    *,
    has_store: bool,
    is_link: bool = False,
    top: os.stat_result | None = None,
) -> Repo:
    """The repo at `path`; its bytes are added to `walk`. Raises OSError when it is gone.

    `top` is what ``lstat`` says of `path`, if it was asked already. A repo that is itself a link is read, as
    huggingface_hub reads it, but no byte behind the link is of this cache.
    """
    reader = _Reader(Walk(walk.root) if is_link else walk, path, folder, has_store)
    top = os.stat(path) if top is None or is_link else top
    reader.disk = walk.add(Kind.LINK, os.lstat(path)) if is_link else walk.add(Kind.FOLDER, top)
    unread_before = len(reader.walk.unreadable)
    own, hard_before = reader.disk, len(reader.walk.hard)
    reader.read()
    used = {each.blob.path: each.blob for revision in reader.revisions for each in revision.files}
    unread = reader.walk.unreadable[unread_before:]
    reader.count_blobs(used, all_known=not unread)
    if unread:
        reader.problems += [f"cannot be read: {each}" for each in unread]
    else:
        reader.check_refs(top.st_mtime)
    if is_link:
        walk.unreadable += unread
    blobs, hard = used.values(), tuple(reader.walk.hard[hard_before:])
    repo = Repo(
        type=type,
        name=name,
        path=path,
        folder=folder,
        revisions=tuple(reader.revisions),
        size=sum([blob.size for blob in blobs]),
        disk=own if is_link else reader.disk + sum({inode: size for inode, _, size in hard}.values()),
        n_files=len(used),
        accessed=max([blob.accessed for blob in blobs], default=top.st_atime),
        modified=max([blob.modified for blob in blobs], default=top.st_mtime),
        leftovers=() if is_link else tuple(reader.leftovers),
        extras=reader.extras,
        hard=() if is_link else hard,
        problems=tuple(reader.problems),
        is_link=is_link,
        unread=bool(unread),
    )
    if reader.elsewhere or has_store:
        walk.mixed.append(repo)
    elif not reader.problems:
        walk.size += repo.size
    return repo


@dataclass(slots=True)
class _Reader:
    walk: Walk
    path: str
    folder: str
    has_store: bool
    blobs: dict[str, Blob] = field(default_factory=dict)
    elsewhere: dict[str, Blob | None] = field(default_factory=dict)
    refs: dict[str, list[str]] = field(default_factory=dict)
    revisions: list[Revision] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    extras: dict[str, int] = field(default_factory=dict)
    disk: int = 0

    def read(self) -> None:
        walk, snapshots, inside = self.walk, None, True
        for entry in walk.entries(self.path):
            found = walk.look(entry)
            if found is None:
                continue
            name, is_folder = entry.name, stat.S_ISDIR(found.st_mode)
            if name == "snapshots" and walk.is_folder(entry):
                self.disk += walk.add(Kind.FOLDER if is_folder else Kind.LINK, found)
                snapshots, inside = entry.path, is_folder
            elif name == "blobs" and is_folder:
                self.disk += walk.add(Kind.FOLDER, found)
                self.read_blobs(entry.path)
            elif name == "refs" and is_folder:
                self.disk += walk.add(Kind.FOLDER, found)
                self.read_refs(entry.path)
            elif name in (".no_exist", "trees") and is_folder:
                self.disk += walk.add(Kind.FOLDER, found)
                self.read_notes(entry.path, name, Kind.MARKER if name == ".no_exist" else Kind.LISTING)
            else:
                if name == "refs":
                    self.problems.append("refs is not a folder")
                self.disk += walk.add(Kind.STRAY, found) + (walk.tree(entry.path, Kind.STRAY) if is_folder else 0)
        if snapshots is None:
            self.problems.append("has no snapshots folder")
        else:
            self.read_snapshots(snapshots, inside)

    def read_blobs(self, path: str) -> None:
        walk, blobs = self.walk, self.blobs
        for entry in walk.entries(path):
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            name, mode = entry.name, found.st_mode
            if name.endswith(INCOMPLETE_SUFFIX) or (name[0] in ".t" and BLOB_TEMPORARY.fullmatch(name)):
                kind = Kind.INCOMPLETE if name.endswith(INCOMPLETE_SUFFIX) else Kind.TEMPORARY
                self.disk += walk.add(kind, found)
                inner = walk.tree(entry.path, kind) if stat.S_ISDIR(mode) else 0
                self.disk += inner
                disk = found.st_size + inner
                self.leftovers.append(leftover(kind, entry.path, found, folder=self.folder, disk=disk))
            elif stat.S_ISLNK(mode):
                self.disk += walk.add(Kind.LINK, found)
                blob = self.linked_blob(entry.path, found)
                if blob is not None:
                    blobs[name] = blob
                else:
                    self.leftovers.append(leftover(Kind.BROKEN, entry.path, found, folder=self.folder))
            elif stat.S_ISDIR(mode):
                self.disk += walk.add(Kind.STRAY, found) + walk.tree(entry.path, Kind.STRAY)
            else:
                size = found.st_size
                blobs[name] = new_blob(
                    entry.path,
                    size,
                    found.st_atime,
                    found.st_mtime,
                    size,
                    (found.st_dev, found.st_ino),
                    found.st_nlink,
                )

    def linked_blob(self, path: str, link: os.stat_result) -> Blob | None:
        """A blob that is a link: into the shared store, or to a place that is not this repo's. None when broken."""
        try:
            found, target = os.stat(path), os.readlink(path)
        except OSError:
            return None
        shared = STORE_LINK.fullmatch(target) if self.has_store else None
        store_path = f"{self.walk.root}/blobs/{shared[1]}/{shared[2]}" if shared else None
        return Blob(
            path,
            found.st_size,
            found.st_atime,
            found.st_mtime,
            link.st_size,
            (link.st_dev, link.st_ino),
            link.st_nlink,
            shared=store_path,
            is_link=True,
        )

    def read_refs(self, path: str) -> None:
        walk, waiting = self.walk, [(path, "")]
        while waiting:
            at, prefix = waiting.pop()
            for entry in walk.entries(at):
                found = walk.look(entry)
                if found is None:
                    continue
                name = prefix + entry.name
                if stat.S_ISDIR(found.st_mode):
                    self.disk += walk.add(Kind.FOLDER, found)
                    waiting.append((entry.path, f"{name}/"))
                    continue
                size = walk.add(Kind.REF, found)
                self.disk += size
                self.extras[f"refs/{name}"] = size
                if entry.name in IGNORED or walk.is_folder(entry):
                    continue
                commit = self.read_ref(entry.path)
                if commit is not None:
                    self.refs.setdefault(commit, []).append(name)

    def read_ref(self, path: str) -> str | None:
        """What a ref says, as written. Only the beginning is read: a commit is 40 letters long."""
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            try:
                return os.read(handle, 4096).decode()
            finally:
                os.close(handle)
        except (OSError, ValueError) as error:
            self.problems.append(f"the ref {os.path.basename(path)!r} cannot be read: {error}")
            return None

    def read_notes(self, path: str, part: str, kind: Kind) -> None:
        """``.no_exist`` and ``trees``: small notes of each revision, kept apart so that they can go with it."""
        for entry in self.walk.entries(path):
            found = self.walk.look(entry)
            if found is not None:
                size = self.walk.add(kind, found)
                size += self.walk.tree(entry.path, kind) if stat.S_ISDIR(found.st_mode) else 0
                self.disk += size
                self.extras[f"{part}/{entry.name}"] = size

    def read_snapshots(self, path: str, inside: bool) -> None:
        """All revisions. What lies behind a link is read, as huggingface_hub reads it, but counts as nothing."""
        for entry in self.walk.entries(path):
            found = self.walk.look(entry)
            if found is None:
                continue
            if stat.S_ISDIR(found.st_mode) or self.walk.is_folder(entry):
                self.revisions.append(self.read_revision(entry, found, inside))
                self.disk += self.revisions[-1].disk
            else:
                self.disk += self.walk.add(Kind.STRAY, found) if inside else 0
                if entry.name not in IGNORED:
                    self.problems.append(f"snapshots holds a file, {entry.name!r}")

    def read_revision(self, top: os.DirEntry[str], found: os.stat_result, inside: bool) -> Revision:
        walk, blobs = self.walk, self.blobs
        is_link = not stat.S_ISDIR(found.st_mode)
        disk = walk.add(Kind.LINK if is_link else Kind.FOLDER, found) if inside else 0
        is_link = is_link or not inside
        files: list[CachedFile] = []
        links, links_size = 0, 0
        waiting = [(top.path, "", "../../blobs/")]
        while waiting:
            at, prefix, up = waiting.pop()
            for entry in walk.entries(at):
                if entry.is_symlink():
                    try:
                        target = os.readlink(entry.path)
                    except OSError:
                        continue
                    if os.sep != "/":
                        target = target.replace(os.sep, "/")
                    size = len(target) if target.isascii() else len(os.fsencode(target))
                    links += 1
                    links_size += size
                    blob = blobs.get(target[len(up) :]) if target.startswith(up) else None
                    if blob is None and not walk.is_folder(entry):
                        path = os.path.normpath(os.path.join(at, target))
                        blob = self.find_blob(path)
                        if blob is None:
                            self.break_link(entry, top.name, path, size, count=not is_link)
                            links, links_size = links - 1, links_size - size
                            disk += 0 if is_link else size
                    if blob is not None:
                        files.append(new_file(prefix + entry.name, entry.path, blob))
                    continue
                inner = walk.look(entry)
                if inner is None:
                    continue
                if stat.S_ISDIR(inner.st_mode):
                    waiting.append((entry.path, f"{prefix}{entry.name}/", f"../{up}"))
                    disk += 0 if is_link else walk.add(Kind.FOLDER, inner)
                    continue
                disk += 0 if is_link else walk.add(Kind.BLOB, inner)
                inode = (inner.st_dev, inner.st_ino)
                size, seen, changed = inner.st_size, inner.st_atime, inner.st_mtime
                blob = new_blob(entry.path, size, seen, changed, size, inode, inner.st_nlink, None, False, is_link)
                files.append(new_file(prefix + entry.name, entry.path, blob))
        if not is_link:
            walk.add_many(Kind.LINK, links, links_size)
            disk += links_size
        payload = {each.blob.path: each.blob for each in files}.values()
        return Revision(
            commit=top.name,
            path=top.path,
            files=tuple(files),
            refs=tuple(sorted(self.refs.get(top.name, ()))),
            size=sum([blob.size for blob in payload]),
            modified=max([blob.modified for blob in payload], default=found.st_mtime),
            accessed=max([blob.accessed for blob in payload], default=found.st_atime),
            disk=disk,
            is_link=is_link,
        )

    def find_blob(self, path: str) -> Blob | None:
        """The payload of a link that does not lead straight into ``blobs``. Its bytes are not this repo's."""
        home, name = os.path.split(path)
        if home == os.path.join(self.path, "blobs") and name in self.blobs:
            return self.blobs[name]
        if path not in self.elsewhere:
            try:
                found = os.stat(path)
            except OSError:
                self.elsewhere[path] = None
            else:
                inode = (found.st_dev, found.st_ino)
                size, seen, changed = found.st_size, found.st_atime, found.st_mtime
                self.elsewhere[path] = Blob(path, size, seen, changed, 0, inode, found.st_nlink, outside=True)
        return self.elsewhere[path]

    def break_link(self, entry: os.DirEntry[str], commit: str, path: str, size: int, *, count: bool) -> None:
        """Note a link without a payload. It may go only if it leads into ``blobs``: another disk may come back."""
        self.problems.append(f"revision {commit[:12]}: the link {entry.name!r} leads nowhere")
        if count:
            self.walk.add_many(Kind.BROKEN, 1, size)
            found = self.walk.look(entry)
            if found is not None and path.startswith(os.path.join(self.path, "blobs", "")) and _is_gone(path):
                self.leftovers.append(leftover(Kind.BROKEN, entry.path, found, folder=self.folder))

    def count_blobs(self, used: dict[str, Blob], *, all_known: bool) -> None:
        """Add the payloads. If all revisions are known, those that none of them needs are orphans."""
        walk, count, total = self.walk, 0, 0
        for blob in self.blobs.values():
            needed = blob.path in used or not all_known
            is_file = not blob.is_link
            if is_file and blob.links == 1 and needed:
                count += 1
                total += blob.disk
            elif is_file:
                self.disk += walk.add_inode(Kind.BLOB if needed else Kind.ORPHAN, blob.inode, blob.links, blob.disk)
            if not needed:
                self.leftovers.append(
                    Leftover(Kind.ORPHAN, blob.path, blob.disk, blob.modified, self.folder, blob.links, blob.inode)
                )
        walk.add_many(Kind.BLOB, count, total)
        self.disk += total

    def check_refs(self, modified: float) -> None:
        """A ref to a revision that is not here makes huggingface_hub's scan give the repo up."""
        known = {revision.commit for revision in self.revisions}
        for commit, names in self.refs.items():
            if commit in known:
                continue
            for name in names:
                size = self.extras.get(f"refs/{name}", 0)
                self.leftovers.append(Leftover(Kind.DEAD_REF, f"{self.path}/refs/{name}", size, modified, self.folder))
                is_temporary = REF_TEMPORARY.fullmatch(name) is not None
                self.problems.append(
                    f"the ref {name!r} "
                    + ("was left half-written" if is_temporary else "names a revision that is not here")
                )


def _is_gone(path: str) -> bool:
    """Whether nothing is there, as opposed to something that may not be looked at."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
