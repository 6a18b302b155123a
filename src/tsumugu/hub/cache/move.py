# ruff: noqa: PTH100, PTH101, PTH102, PTH104, PTH108, PTH112, PTH114, PTH115, PTH116, PTH118, PTH119, PTH120, PTH121, PTH123, PTH211
"""Move a cache to another folder, another disk included, so that it is whole in one place at every moment.

1. Copy into ``NEW.moving``, file by file (temporary name, sync, rename), links as links, hard links as hard links.
2. Compare every byte, after the system was told to forget the copies it still holds in memory.
3. Switch: rename ``NEW.moving`` to ``NEW``, at once or not at all.
4. Only then rename the old folder to ``OLD.moved``, leave a link if asked, and remove it.

A move that was interrupted goes on where it stopped: what is copied already is not copied again, and whatever a
download added to the old place meanwhile is taken along. On one and the same disk a single rename does it all.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tsumugu.core.errors import HubError, InputError
from tsumugu.hub.cache.guard import Guard, check_root
from tsumugu.hub.cache.layout import LOCKS, OWN, TRASH
from tsumugu.hub.cache.locks import alone, why_busy
from tsumugu.hub.cache.records import Kind
from tsumugu.hub.cache.walk import Walk

_PIECE = 1 << 20
_PART = ".tsumugu-part"


@dataclass(frozen=True, slots=True)
class MovePlan:
    """From where to where, and the bytes to copy; none when a `rename` will do.

    `resumes` says that an earlier move stopped half-way, `switched` that it stopped after the new place had taken over.
    `link` says that a link shall stay at the old place.
    """

    cache: str
    old: str
    new: str
    disk: int
    link: bool
    resumes: bool
    rename: bool = False
    switched: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """What was moved: files (links included) and their bytes."""

    files: int
    bytes: int


def plan_move(
    old: str | Path, new: str | Path, cache: str = "hub", *, link: bool = False, copy: bool = False
) -> MovePlan:
    """Check that a move can be done. `copy` copies even where a rename would do.

    Raises InputError when a place will not do, or the new disk is too full.
    """
    target = Path(os.path.abspath(Path(new).expanduser()))
    target = Path(os.path.realpath(target.parent)) / target.name
    given = Path(os.path.abspath(Path(old).expanduser()))
    state = _read_state(target)
    if state is not None and state["old"] != str(given) and state["old"] != os.path.realpath(given):
        raise InputError(f"an earlier move from {state['old']} is unfinished here", where=str(target))
    staged = Path(_staged(str(target)))
    if state is not None:
        old_place = state["old"]
        gone = not os.path.lexists(old_place) or os.path.islink(old_place)
        if Path(_aside(old_place)).is_dir() or (gone and target.is_dir() and not staged.exists()):
            return MovePlan(cache, old_place, str(target), 0, link, resumes=True, switched=True)
    root = check_root(given, cache)
    if given.is_symlink():
        raise InputError(
            "is a link, which would lead nowhere", where=str(given), mend=f"move what it leads to: --dir {root}"
        )
    for place in (staged, Path(_aside(root))):
        if state is None and os.path.lexists(place):
            raise InputError("is in the way of the move", where=str(place), mend="move it or choose another place")
    if target == Path(root) or Path(root) in target.parents or target in Path(root).parents:
        raise InputError("one folder lies inside the other", where=str(target), mend="choose a place apart from it")
    if state is None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            "is there already and not empty", where=str(target), mend="choose a folder that does not exist"
        )
    walk = Walk(root)
    walk.tree(root, Kind.BLOB)
    disk = walk.sizes[Kind.BLOB]
    near = target.parent
    while not near.exists():
        near = near.parent
    if not copy and state is None and near.stat().st_dev == os.stat(root).st_dev and not _has_full_links(root):
        return MovePlan(cache, root, str(target), 0, link, resumes=False, rename=True)
    copied = Walk(str(staged))
    copied.tree(str(staged), Kind.BLOB)
    needed = disk - copied.sizes[Kind.BLOB]
    free = shutil.disk_usage(near).free
    if needed > free and state is None:
        raise InputError(f"the disk has {free:,} bytes free, and {needed:,} are needed", where=str(near))
    if walk.unreadable:
        raise InputError("cannot be read, so it cannot be copied", where=walk.unreadable[0])
    return MovePlan(cache, root, str(target), disk, link, resumes=state is not None)


def move_cache(plan: MovePlan, *, progress: Callable[[int], None] | None = None) -> Moved:
    """Carry out a move, or the rest of one. Raises HubError while something is being downloaded into the old place."""
    mover = _Mover(plan, progress or (lambda size: None))
    if plan.rename:
        return mover.rename()
    state = _state_path(plan.new)
    if not plan.switched:
        state.parent.mkdir(parents=True, exist_ok=True)
        _write_synced(state, json.dumps({"old": plan.old, "new": plan.new}).encode())
        with Guard(plan.old, plan.cache) as guard:
            own = guard.own()
            guard.make_folders(f"{own}/{TRASH}")
            with alone(plan.old, own):
                mover.bring_over()
                mover.check_idle()
        Path(plan.old).rename(_aside(plan.old))
    if plan.link and not os.path.lexists(plan.old):
        Path(plan.old).symlink_to(plan.new, target_is_directory=True)
    mover.remove_old()
    state.unlink()
    return Moved(mover.files, mover.bytes)


@dataclass(slots=True)
class _Mover:
    plan: MovePlan
    progress: Callable[[int], None]
    files: int = 0
    bytes: int = 0
    twins: dict[tuple[int, int], str] = field(default_factory=dict)

    def rename(self) -> Moved:
        """The whole move on one disk: at once or not at all."""
        plan = self.plan
        self.check_idle()
        walk = Walk(plan.old)
        walk.tree(plan.old, Kind.BLOB)
        Path(plan.new).parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            Path(plan.new).rmdir()
        Path(plan.old).rename(plan.new)
        _sync_folder(str(Path(plan.new).parent))
        if plan.link:
            Path(plan.old).symlink_to(plan.new, target_is_directory=True)
        return Moved(walk.counts[Kind.BLOB], walk.sizes[Kind.BLOB])

    def bring_over(self) -> None:
        """Copy and compare until a whole pass finds nothing to copy; then switch."""
        plan, staged = self.plan, _staged(self.plan.new)
        self.check_idle()
        target = (
            plan.new if Path(plan.new).is_dir() and not Path(staged).exists() and any(os.scandir(plan.new)) else staged
        )
        # Once switched, the new place may have got files of its own, and nothing is taken away there any more.
        mirror = target == staged
        self.copy_all(target, mirror=mirror)
        self.compare_all(target)
        while self.copy_all(target, mirror=mirror, count=False):
            self.compare_all(target, count=False)
        if target == staged:
            with suppress(FileNotFoundError):
                Path(plan.new).rmdir()
            Path(staged).rename(plan.new)
            _sync_folder(str(Path(plan.new).parent))

    def check_idle(self) -> None:
        if self.plan.cache != "hub":
            return
        for entry in os.scandir(self.plan.old):
            reason = why_busy(self.plan.old, entry.name) if "--" in entry.name else None
            if reason is not None:
                raise HubError(f"{entry.name} {reason}", where=self.plan.old, mend="move again when it is done")

    def entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """Everything below the old folder, folders before what is in them, by path relative to it."""
        waiting = [""]
        while waiting:
            at = waiting.pop()
            for entry in sorted(os.scandir(os.path.join(self.plan.old, at)), key=lambda each: each.name):
                path = os.path.join(at, entry.name)
                if path in _not_moved():
                    continue
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield path, found
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(path)

    def copy_all(self, target: str, *, mirror: bool, count: bool = True) -> int:
        """Copy what is not there yet, and take away what the old place no longer has; how many files were copied."""
        copied, folders, wanted = 0, list[tuple[str, os.stat_result]](), {""}
        Path(target).mkdir(parents=True, exist_ok=True)
        for path, found in self.entries():
            wanted.add(path)
            source, place = os.path.join(self.plan.old, path), os.path.join(target, path)
            if stat.S_ISDIR(found.st_mode):
                if not os.path.isdir(place) or os.path.islink(place):
                    _remove(place)
                    os.mkdir(place)
                folders.append((place, found))
                continue
            fresh = self.copy(source, place, found)
            copied += fresh
            if count:
                self.files += 1
                self.bytes += found.st_size
                self.progress(found.st_size)
        for at, _, names in os.walk(target, topdown=False) if mirror else ():
            for name in names:
                if os.path.relpath(os.path.join(at, name), target) not in wanted:
                    _remove(os.path.join(at, name))
                    copied += 1
            inside = os.path.relpath(at, target)
            if inside != "." and inside not in wanted:
                _remove(at)
        for place, found in reversed(folders):
            os.chmod(place, stat.S_IMODE(found.st_mode))
            os.utime(place, ns=(found.st_atime_ns, found.st_mtime_ns))
            _sync_folder(place)
        return copied

    def copy(self, source: str, place: str, found: os.stat_result) -> bool:
        """Copy one file or link unless its copy is there already; whether it was copied."""
        if stat.S_ISLNK(found.st_mode):
            goal = self.goal(source)
            if os.path.islink(place) and os.readlink(place) == goal:
                return False
            _remove(place)
            os.symlink(goal, place)
            return True
        if not stat.S_ISREG(found.st_mode):
            raise InputError("is no file, link or folder, and cannot be moved", where=source)
        inode = (found.st_dev, found.st_ino)
        twin = self.twins.get(inode) if found.st_nlink > 1 else None
        with suppress(FileNotFoundError):
            there = os.lstat(place)
            same = (there.st_size, there.st_mtime_ns) == (found.st_size, found.st_mtime_ns)
            if stat.S_ISREG(there.st_mode) and same and (twin is None or os.path.samefile(twin, place)):
                self.twins[inode] = place
                return False
        _remove(place)
        if twin is not None:
            os.link(twin, place)
            return True
        part = f"{place[: len(place) - len(os.path.basename(place))]}{_PART}"
        _remove(part)
        with open(source, "rb") as reader, open(part, "xb") as writer:
            shutil.copyfileobj(reader, writer, _PIECE)
            writer.flush()
            os.chmod(part, stat.S_IMODE(found.st_mode))
            os.utime(part, ns=(found.st_atime_ns, found.st_mtime_ns))
            os.fsync(writer.fileno())
        os.rename(part, place)
        self.twins[inode] = place
        return True

    def goal(self, source: str) -> str:
        """Where a link leads. One that names the old root in full is made to name the new one."""
        goal = os.readlink(source)
        inside = f"{self.plan.old}/"
        return self.plan.new + goal[len(self.plan.old) :] if goal.startswith(inside) else goal

    def compare_all(self, target: str, *, count: bool = True) -> None:
        """Read both sides in full. A copy that differs is removed, so that the next run copies it anew."""
        for path, found in self.entries():
            source, place = os.path.join(self.plan.old, path), os.path.join(target, path)
            if stat.S_ISLNK(found.st_mode):
                equal = os.path.islink(place) and os.readlink(place) == self.goal(source)
            elif stat.S_ISDIR(found.st_mode):
                equal = os.path.isdir(place)
            else:
                equal = _same_bytes(source, place, found)
            if not equal:
                _remove(place)
                raise HubError("the copy differs from the original", where=place, mend="run the same move again")
            if count:
                self.progress(found.st_size)

    def remove_old(self) -> None:
        aside = Path(_aside(self.plan.old))
        if not aside.exists():
            return
        stuck: list[str] = []

        def note(call: object, path: str, error: object) -> None:
            # Folders that forbid it are opened up; whatever else stands in the way is told at the end.
            with suppress(OSError):
                os.chmod(os.path.dirname(path), 0o700)
                os.unlink(path)
                return
            stuck.append(path)

        shutil.rmtree(aside, onerror=note)
        if aside.exists():
            shutil.rmtree(aside, ignore_errors=True)
        if aside.exists():
            raise HubError("the cache is moved, but the old copy cannot be removed", where=str(aside), mend="remove it")


def _has_full_links(root: str) -> bool:
    """Whether a link names the root in full, so that a rename would break it."""
    for at, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = os.path.join(at, name)
            if os.path.islink(path) and os.readlink(path).startswith(f"{root}/"):
                return True
    return False


def _not_moved() -> frozenset[str]:
    own = (f"{LOCKS}/{OWN}", OWN)
    return frozenset(f"{each}/{name}" for each in own for name in ("lock", TRASH))


def _same_bytes(source: str, place: str, found: os.stat_result) -> bool:
    try:
        with open(source, "rb") as left, open(place, "rb") as right:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(right.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while True:
                piece = left.read(_PIECE)
                if piece != right.read(_PIECE):
                    return False
                if not piece:
                    break
        os.utime(place, ns=(found.st_atime_ns, found.st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def _remove(path: str) -> None:
    """Remove a half-made copy, which only ever lies below the new place."""
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return


def _staged(new: str) -> str:
    return f"{new}.moving"


def _aside(old: str) -> str:
    return f"{old}.moved"


def _state_path(new: str | Path) -> Path:
    return Path(f"{new}.moving.json")


def _read_state(new: Path) -> dict[str, str] | None:
    try:
        state = json.loads(_state_path(new).read_text(encoding="utf-8"))
        return {"old": str(state["old"]), "new": str(state["new"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None


def _write_synced(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    part.rename(path)
    _sync_folder(str(path.parent))


def _sync_folder(path: str) -> None:
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(handle)
