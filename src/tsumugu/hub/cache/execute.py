# ruff: noqa: PTH110, PTH114, PTH115, PTH118, PTH119, PTH120
"""Carry out a plan so that a crash at any moment leaves a cache that huggingface_hub reads.

Everything that goes is first renamed into a trash folder of the same file system, each thing at once or not at all,
in the order refs, snapshots, notes, blobs. Only then is the trash emptied. The journal tells of it before and after.
What a crash leaves in the trash is removed by the next run; what it had not taken yet simply stays.

Every repo is read again just before its turn. Of a repo that changed meanwhile, no more goes than the plan named and no
blob that anything still links to.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from tsumugu.hub.cache import journal
from tsumugu.hub.cache.folders import read_entry
from tsumugu.hub.cache.guard import Guard, check_root
from tsumugu.hub.cache.layout import COMMIT, LOCK_SUFFIXES, LOCKS, MANIFEST_SUFFIX, STORE_LINK, TRASH
from tsumugu.hub.cache.locks import alone, files_in_use, hold, is_held, why_busy
from tsumugu.hub.cache.plan import Act, Draft, Kept, Plan, Step, Target, draft_repo, settle
from tsumugu.hub.cache.records import Repo
from tsumugu.hub.cache.scan import scan_repo


@dataclass(frozen=True, slots=True)
class Outcome:
    """What really went. `freed` may be less than the plan said, never more than it named."""

    run: str
    freed: int
    done: tuple[Step, ...]
    kept: tuple[Kept, ...]
    failed: tuple[Kept, ...]


def execute(plan: Plan, *, progress: Callable[[Step], None] | None = None) -> Outcome:
    """Remove what a plan names. Raises InputError for an unsafe root, HubError when another tsumugu is at work.

    A thing in use, being downloaded, changed or forbidden is listed in the outcome, and the rest goes on.
    """
    root = check_root(plan.root, plan.cache)
    with Guard(root, plan.cache) as guard:
        own = guard.own()
        guard.make_folders(f"{own}/{TRASH}")
        with alone(root, own):
            _finish_earlier(guard, own)
            run = _Run(guard, plan, own, progress)
            return run.carry_out()


def finish_earlier(root: str, cache: str) -> int:
    """Empty a trash that a crash left; how many runs were left there."""
    with Guard(check_root(root, cache), cache) as guard:
        own = guard.own()
        if not guard.names(f"{own}/{TRASH}"):
            return 0
        with alone(guard.root, own):
            return _finish_earlier(guard, own)


def _finish_earlier(guard: Guard, own: str) -> int:
    left = guard.names(f"{own}/{TRASH}")
    for run in left:
        failed = guard.remove(f"{own}/{TRASH}/{run}")
        journal.write(guard.root, own, {"event": "recovered", "run": run, "failed": failed})
    return len(left)


@dataclass(slots=True)
class _Run:
    guard: Guard
    plan: Plan
    own: str
    progress: Callable[[Step], None] | None
    name: str = field(default_factory=lambda: secrets.token_hex(6))
    done: list[Step] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    failed: list[Kept] = field(default_factory=list)
    number: int = 0

    @property
    def trash(self) -> str:
        return f"{self.own}/{TRASH}/{self.name}"

    def carry_out(self) -> Outcome:
        guard, plan = self.guard, self.plan
        steps = [{"act": each.act, "path": each.path, "disk": each.disk} for each in plan.steps]
        names = [
            {"id": each.id, "whole": each.whole, "commits": [] if each.whole else each.commits} for each in plan.targets
        ]
        begun = {"verb": plan.verb, "cache": plan.cache, "pid": os.getpid(), "freed": plan.freed}
        begun |= {"targets": names, "steps": steps}
        journal.write(guard.root, self.own, {"event": "begin", "run": self.name, **begun})
        guard.make_folders(self.trash)
        self.kept += plan.kept
        in_use = files_in_use(guard.root)
        for target in plan.targets:
            self.delete(target, in_use)
        for step in plan.loose:
            if step.act is Act.SHARED:
                self.sweep(step)
            else:
                self.delete_loose(step, in_use)
        freed = sum(step.disk for step in self.done)
        told = {"freed": freed, "done": [each.path for each in self.done]}
        told |= {name: [[each.path, each.reason] for each in getattr(self, name)] for name in ("kept", "failed")}
        journal.write(guard.root, self.own, {"event": "moved", "run": self.name, **told})
        self.failed += [Kept(line, "stays in the trash for now") for line in guard.remove(self.trash)]
        journal.write(guard.root, self.own, {"event": "end", "run": self.name})
        return Outcome(self.name, freed, tuple(self.done), tuple(self.kept), tuple(self.failed))

    def move(self, step: Step) -> str | None:
        """Rename one thing into the trash; its place there, or None when it is gone already or may not be moved."""
        self.number += 1
        place = f"{self.trash}/{self.number}"
        try:
            self.guard.rename(step.path, place)
        except FileNotFoundError:
            self.kept.append(Kept(step.path, "is gone already"))
            return None
        except OSError as error:
            self.failed.append(Kept(step.path, error.strerror or str(error)))
            return None
        return place

    def finish(self, step: Step) -> None:
        self.done.append(step)
        if self.progress is not None:
            self.progress(step)

    # Whole repos and revisions

    def delete(self, target: Target, in_use: dict[str, int]) -> None:
        root, is_hub = self.guard.root, self.plan.cache == "hub"
        reason = why_busy(root, target.folder, self.plan.cache)
        if reason is not None:
            self.kept.append(Kept(target.id, reason))
            return
        repo = scan_repo(root, target.folder) if is_hub else read_entry(root, self.plan.cache, target.folder)
        if repo is None:
            self.kept.append(Kept(target.id, "is gone already"))
            return
        commits = set(target.commits)
        going = [each for each in repo.revisions if each.commit in commits]
        files = [file.blob for each in going for file in each.files]
        used = {path for blob in files for path in (blob.path, blob.shared) if path in in_use}
        if used:
            path = min(each for each in used if each is not None)
            self.kept.append(Kept(target.id, f"is in use by process {in_use[path]}"))
            return
        whole = target.whole and len(going) == len(repo.revisions)
        if repo.unread and not whole:
            self.kept.append(Kept(target.id, "cannot be read in full; it can only go as a whole"))
            return
        draft = Draft(root)
        draft_repo(draft, repo, going, whole=whole)
        [steps] = settle([draft])
        # The plan's own figure stands where it has one: it knows of hard links in other repos that go as well.
        sizes = {step.path: step.disk for step in target.steps}
        inside = f"{target.folder}/"
        steps = tuple(
            Step(each.act, each.path, sizes.get(each.path, each.disk))
            for each in steps
            if each.path in sizes or (target.whole and each.path.startswith(inside))
        )
        if whole:
            self.delete_repo(repo, steps[0], target)
        else:
            self.delete_revisions(repo, steps)

    def delete_repo(self, repo: Repo, step: Step, target: Target) -> None:
        place = self.move(step)
        if place is None:
            return
        if self.plan.cache == "hub":
            # A download that began in the last moment is given everything back.
            known = {each.commit for each in repo.revisions}
            began = {each for each in self.guard.names(f"{place}/snapshots") if COMMIT.fullmatch(each)} - known
            busy = bool(began) or why_busy(self.guard.root, repo.folder) is not None
            if busy and self.guard.restore(place, step.path):
                self.kept.append(Kept(repo.id, "a download began just now"))
                return
        self.finish(step)
        for each in target.steps:
            if each.act is Act.LOCK:
                self.delete_lock(each)

    def delete_revisions(self, repo: Repo, steps: tuple[Step, ...]) -> None:
        root, guard = self.guard.root, self.guard
        blobs = [each for each in steps if each.act is Act.BLOB]
        lock_folder = f"{LOCKS}/{repo.folder}"
        if blobs:
            guard.make_folders(lock_folder)
        locks = [f"{root}/{lock_folder}/{each.path.rpartition('/')[2]}.lock" for each in blobs]
        places: dict[str, tuple[Step, str]] = {}
        with hold(locks) as busy:
            if busy is not None:
                self.kept.append(Kept(repo.id, "is being downloaded (a lock is held)"))
                return
            stuck: set[str] = set()
            for step in steps:
                if step.act is Act.REF:
                    self.delete_ref(step, repo, stuck)
                elif step.act is Act.REVISION:
                    commit = step.path.rpartition("/")[2]
                    if commit in stuck or self.move(step) is None:
                        continue
                    self.finish(step)
                elif step.act is Act.NOTE and self.move(step) is not None:
                    self.finish(step)
            needed = self.needed_blobs(repo.folder)
            for step in blobs:
                if needed is None or os.path.normpath(f"{root}/{step.path}") in needed:
                    self.kept.append(Kept(step.path, "another revision links to it"))
                    continue
                place = self.move(step)
                if place is not None:
                    places[os.path.normpath(f"{root}/{step.path}")] = (step, place)
                    with suppress(OSError):
                        guard.unlink(f"{lock_folder}/{step.path.rpartition('/')[2]}.lock")
            with suppress(OSError):
                guard.rmdir(lock_folder)
        # Whoever waited for a lock links to a blob that was there when it looked. It gets the blob back.
        needed = self.needed_blobs(repo.folder)
        for path in [*places] if needed is None else needed & places.keys():
            step, place = places.pop(path)
            if guard.restore(place, step.path):
                self.kept.append(Kept(step.path, "a download began just now"))
        for step, _ in places.values():
            self.finish(step)

    def delete_ref(self, step: Step, repo: Repo, stuck: set[str]) -> None:
        """Remove one ref. A commit that it still names goes into `stuck`: its snapshot must stay."""
        commit = repo.refs[step.path.removeprefix(f"{repo.folder}/refs/")].commit
        place = self.move(step)
        if place is None:
            if self.guard.exists(step.path):
                stuck.add(commit)
        elif self.guard.read(place).decode(errors="replace") != commit:
            self.guard.restore(place, step.path)
            self.kept.append(Kept(step.path, "names another revision by now"))
        else:
            self.finish(step)

    def needed_blobs(self, folder: str) -> set[str] | None:
        """Where links of a repo's snapshots lead now, whether anything is there or not; None if that cannot be read."""
        found: set[str] = set()
        waiting = [f"{self.guard.root}/{folder}/snapshots"]
        while waiting:
            try:
                with os.scandir(waiting.pop()) as entries:
                    for entry in entries:
                        if entry.is_symlink():
                            to = os.path.join(os.path.dirname(entry.path), os.readlink(entry.path))
                            found.add(os.path.normpath(to))
                        elif entry.is_dir():
                            waiting.append(entry.path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                return None
        return found

    # Things that belong to no revision

    def delete_lock(self, step: Step) -> None:
        """Remove a lock that nobody holds, while holding it, so that nobody can come to hold it meanwhile."""
        path = f"{self.guard.root}/{step.path}"
        if not step.path.endswith(LOCK_SUFFIXES):
            try:
                self.guard.rmdir(step.path)
                self.finish(step)
            except OSError:
                return
        elif os.path.islink(path) or not os.path.exists(path):
            return
        else:
            with hold([path]) as busy:
                if busy is not None:
                    self.kept.append(Kept(step.path, "is held"))
                elif self.move(step) is not None:
                    self.finish(step)

    def delete_loose(self, step: Step, in_use: dict[str, int]) -> None:
        if step.act is Act.LOCK:
            self.delete_lock(step)
            return
        root, path = self.guard.root, os.path.normpath(f"{self.guard.root}/{step.path}")
        folder, _, rest = step.path.partition("/")
        if path in in_use:
            self.kept.append(Kept(step.path, f"is in use by process {in_use[path]}"))
            return
        if self.plan.cache == "tsumugu" and is_held(f"{root}/locks/{os.path.basename(path)}.lock"):
            self.kept.append(Kept(step.path, "is being pulled (a lock is held)"))
            return
        if self.plan.cache != "hub" or not rest.startswith("blobs/"):
            if self.move(step) is not None:
                self.finish(step)
            return
        etag = rest.removeprefix("blobs/").split(".", 1)[0]
        lock = f"{root}/{LOCKS}/{folder}/{etag}.lock"
        if is_held(lock):
            self.kept.append(Kept(step.path, "is being downloaded (a lock is held)"))
        elif (needed := self.needed_blobs(folder)) is None or path in needed:
            self.kept.append(Kept(step.path, "a revision links to it by now"))
        else:
            place = self.move(step)
            if place is None:
                return
            needed = self.needed_blobs(folder)
            if (needed is None or path in needed) and self.guard.restore(place, step.path):
                self.kept.append(Kept(step.path, "a download began just now"))
            else:
                self.finish(step)

    def sweep(self, step: Step) -> None:
        """Remove a payload of the cache-wide store under its lock, if its own list of links agrees that none is left.

        Source: huggingface_hub 2.4, ``utils/_shared_blobs.py``: a missing list is never a reason to delete.
        """
        path = f"{self.guard.root}/{step.path}"
        manifest = f"{step.path}{MANIFEST_SUFFIX}"
        with hold([f"{path}.lock"]) as busy:
            if busy is not None:
                self.kept.append(Kept(step.path, "is being downloaded (a lock is held)"))
                return
            try:
                lines = self.guard.read(manifest, 1 << 24).decode().splitlines()
            except (OSError, ValueError):
                self.kept.append(Kept(step.path, "has no readable list of who links to it"))
                return
            name = step.path.rpartition("/")[2]
            if any(self.links_to(line, name) for line in lines):
                self.kept.append(Kept(step.path, "another repo links to it"))
                return
            if self.move(step) is not None:
                self.move(Step(Act.SHARED, manifest, 0))
                self.finish(step)

    def links_to(self, blob: str, name: str) -> bool:
        """Whether a repo's blob is a link to a payload of the store. What cannot be read counts as one."""
        if blob.startswith("/") or ".." in blob.split("/"):
            return False
        try:
            match = STORE_LINK.fullmatch(os.readlink(f"{self.guard.root}/{blob}"))
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL)
        return match is not None and match[2] == name
