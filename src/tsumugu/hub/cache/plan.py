# ruff: noqa: PTH118
"""What a deletion would take, and the bytes that would come back. Making a plan changes nothing.

A blob goes only when no other revision of its repo links to it, and counts once. A file with several hard links gives
its bytes back only when all of them go. A payload of the cache-wide store goes with the last repo that links to it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tsumugu.hub.cache.records import Blob, CacheScan, HardLink, Kind, Leftover, Repo, Revision


class Act(StrEnum):
    """What kind of thing a step removes."""

    REPO = "repo"
    REVISION = "revision"
    REF = "ref"
    NOTE = "note"
    BLOB = "blob"
    FILE = "file of a revision"
    SHARED = "shared blob"
    LOCK = "lock"
    LEFTOVER = "leftover"


@dataclass(frozen=True, slots=True)
class Step:
    """One path that goes, relative to the root and ``/``-separated, and the bytes that this gives back."""

    act: Act
    path: str
    disk: int


@dataclass(frozen=True, slots=True)
class Target:
    """What goes of one repo. `whole` when nothing of it stays."""

    id: str
    folder: str
    commits: tuple[str, ...]
    whole: bool
    steps: tuple[Step, ...]

    @property
    def disk(self) -> int:
        return sum(step.disk for step in self.steps)


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that was asked for and is left alone, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All that would go. `freed` is exact for the cache as scanned; executing looks again and may only take less."""

    verb: str
    cache: str
    root: str
    targets: tuple[Target, ...]
    loose: tuple[Step, ...] = ()
    kept: tuple[Kept, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*(step for target in self.targets for step in target.steps), *self.loose)

    @property
    def freed(self) -> int:
        return sum(step.disk for step in self.steps)

    @property
    def n_revisions(self) -> int:
        return sum(len(target.commits) for target in self.targets)

    @property
    def n_whole(self) -> int:
        return sum(target.whole for target in self.targets)


@dataclass(slots=True)
class Draft:
    """Steps in the making: bytes that surely come back, and hard links that give theirs back only together."""

    root: str
    steps: list[tuple[Act, str, int, tuple[HardLink, ...]]] = field(default_factory=list)

    def add(self, act: Act, path: str, disk: int, hard: Iterable[HardLink] = ()) -> None:
        inside = path[len(self.root) + 1 :].replace(os.sep, "/")
        self.steps.append((act, inside, disk, tuple(hard)))

    def add_blob(self, act: Act, blob: Blob, path: str | None = None) -> None:
        is_hard = blob.links > 1
        hard = [(blob.inode, blob.links, blob.disk)] if is_hard else []
        self.add(act, path or blob.path, 0 if is_hard else blob.disk, hard)

    def add_leftover(self, each: Leftover) -> None:
        is_hard = each.links > 1 and each.kind in (Kind.ORPHAN, Kind.INCOMPLETE, Kind.TEMPORARY, Kind.LOCK)
        hard = [(each.inode, each.links, each.disk)] if is_hard and each.inode[1] else []
        act = Act.LOCK if each.kind is Kind.LOCK else Act.LEFTOVER
        self.add(act, each.path, 0 if hard else each.disk, hard)


def settle(drafts: Sequence[Draft]) -> list[tuple[Step, ...]]:
    """The steps of each draft. A hard-linked file's bytes are put where the last of its links goes."""
    going = Counter(inode for draft in drafts for *_, hard in draft.steps for inode, _, _ in hard)
    met: Counter[tuple[int, int]] = Counter()
    settled = []
    for draft in drafts:
        steps = []
        for act, path, disk, hard in draft.steps:
            for inode, links, size in hard:
                met[inode] += 1
                disk += size if met[inode] == going[inode] >= links else 0
            steps.append(Step(act, path, disk))
        settled.append(tuple(steps))
    return settled


def plan_delete(
    scan: CacheScan, selected: Mapping[str, Iterable[str]], *, verb: str = "delete", kept: Sequence[Kept] = ()
) -> Plan:
    """The plan that removes revisions: their commits by the repo's folder name. A repo without any other goes whole.

    An empty collection of commits takes a repo that holds no revision at all.
    """
    drafts, shapes, kept = list[Draft](), list[tuple[Repo, tuple[str, ...], bool]](), list(kept)
    repos = {repo.folder: repo for repo in scan.repos}
    store = _StoreUse(scan)
    locks: dict[str, list[Leftover]] = {}
    for each in scan.leftovers:
        if each.kind is Kind.LOCK and each.folder:
            locks.setdefault(each.folder, []).append(each)
    for folder, wanted in selected.items():
        repo, commits = repos[folder], set(wanted)
        going = [each for each in repo.revisions if each.commit in commits]
        whole = len(going) == len(repo.revisions)
        if repo.is_link and not whole:
            kept.append(Kept(folder, "is a link out of the cache; only the link as a whole can go"))
            continue
        if repo.unread and not whole:
            kept.append(Kept(repo.id, "cannot be read in full; it can only go as a whole"))
            continue
        draft = Draft(scan.root)
        draft_repo(draft, repo, going, whole=whole)
        if whole:
            # The folder of the locks goes last, when it is empty.
            for each in sorted(locks.get(folder, ()), key=lambda each: -len(each.path)):
                draft.add_leftover(each)
        store.take(repo, going)
        drafts.append(draft)
        shapes.append((repo, tuple(each.commit for each in going), whole))
    loose = Draft(scan.root)
    for path, blob in store.unneeded():
        loose.add(Act.SHARED, path, blob.size + scan.manifests.get(f"{path}.refs", 0))
    settled = settle([*drafts, loose])
    return Plan(
        verb=verb,
        cache=scan.cache,
        root=scan.root,
        targets=tuple(
            Target(repo.id, repo.folder, commits, whole, steps)
            for (repo, commits, whole), steps in zip(shapes, settled, strict=False)
        ),
        loose=settled[-1],
        kept=tuple(kept),
    )


def draft_repo(draft: Draft, repo: Repo, going: Sequence[Revision], *, whole: bool) -> None:
    """Add the steps that remove revisions of one repo, in the order in which they must be done.

    First the refs, then the snapshots, then the notes on them, last the blobs: whatever interrupts this, no ref names a
    missing snapshot and no link of a snapshot leads nowhere.
    """
    if whole:
        hard_once = sum({inode: size for inode, _, size in repo.hard}.values())
        draft.add(Act.REPO, repo.path, repo.disk - hard_once, repo.hard)
        return
    commits = {each.commit for each in going}
    staying = {file.blob.path for each in repo.revisions if each.commit not in commits for file in each.files}
    for revision in going:
        for ref in revision.refs:
            draft.add(Act.REF, f"{repo.path}/refs/{ref}", repo.extras.get(f"refs/{ref}", 0))
    blobs: dict[str, Blob] = {}
    for revision in going:
        inside = revision.path + os.sep
        copies = [each.blob for each in revision.files if each.blob.path.startswith(inside) and not revision.is_link]
        hard = [(blob.inode, blob.links, blob.disk) for blob in copies if blob.links > 1]
        draft.add(Act.REVISION, revision.path, revision.disk, hard)
        for note in (f".no_exist/{revision.commit}", f"trees/{revision.commit}.json"):
            if note in repo.extras:
                draft.add(Act.NOTE, f"{repo.path}/{note}", repo.extras[note])
        own = os.path.join(repo.path, "blobs", "")
        for file in revision.files:
            blob = file.blob
            if blob.path not in staying and blob.path.startswith(own) and not blob.outside:
                blobs[blob.path] = blob
    for blob in blobs.values():
        draft.add_blob(Act.BLOB, blob)


class _StoreUse:
    """Which repos' blobs lead to which payload of the cache-wide store."""

    def __init__(self, scan: CacheScan) -> None:
        self._links: dict[str, set[str]] = {}
        self._payload: dict[str, Blob] = {}
        self._going: set[str] = set()
        for repo in scan.repos:
            for path, blob in repo.blobs.items():
                if blob.shared is not None:
                    self._links.setdefault(blob.shared, set()).add(path)
                    self._payload[blob.shared] = blob

    def take(self, repo: Repo, going: Sequence[Revision]) -> None:
        if not self._links:
            return
        commits = {each.commit for each in going}
        staying = {file.blob.path for each in repo.revisions if each.commit not in commits for file in each.files}
        self._going |= {file.blob.path for each in going for file in each.files} - staying

    def unneeded(self) -> Iterable[tuple[str, Blob]]:
        for path, links in self._links.items():
            if links <= self._going:
                yield path, self._payload[path]


def plan_prune(scan: CacheScan) -> Plan:
    """Take every revision that no ref names: those that a newer download of the same branch left behind."""
    chosen = {
        repo.folder: [each.commit for each in repo.revisions if not each.refs]
        for repo in scan.repos
        if not repo.is_link and any(not each.refs for each in repo.revisions)
    }
    return plan_delete(scan, chosen if scan.cache == "hub" else {}, verb="prune")
