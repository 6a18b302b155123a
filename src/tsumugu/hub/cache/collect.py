"""What nothing needs any more: the plan of ``gc``, and the plans that bring a cache down to a number or a size."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping

from tsumugu.hub.cache.locks import FRESH, is_held
from tsumugu.hub.cache.plan import Act, Draft, Kept, Plan, Step, plan_delete, settle
from tsumugu.hub.cache.records import JUNK, CacheScan, Kind, Leftover, Repo, Revision

DAY = 86400.0


def plan_gc(
    scan: CacheScan,
    *,
    older_than: float = DAY,
    kinds: Collection[Kind] = JUNK,
    keep_last: int | None = None,
    max_size: int | None = None,
    now: float | None = None,
) -> Plan:
    """Take leftovers at least `older_than` seconds old that nobody holds; then, if asked, whole revisions and repos.

    `keep_last` keeps that many revisions of each repo: those a ref names first, then the newest; one that a ref names
    is never taken, even beyond the number. `max_size` takes whole repos, least recently used first, until the cache's
    `disk` is at most that.
    """
    now = time.time() if now is None else now
    chosen = dict(_beyond_last(scan, keep_last)) if keep_last is not None else {}
    kept: list[Kept] = []
    draft = Draft(scan.root)
    for each in scan.junk:
        if each.kind in kinds and now - each.modified >= older_than and _is_ours_to_take(scan, each):
            if each.kind is Kind.ORPHAN_SHARED:
                draft.add(Act.SHARED, each.path, each.disk + scan.manifests.get(f"{each.path}.refs", 0))
            else:
                draft.add_leftover(each)
    loose = settle([draft])[0]
    plan = plan_delete(scan, chosen, verb="gc", kept=kept)
    if max_size is not None:
        junk = sum(step.disk for step in loose)
        for repo in least_recently_used(scan.repos):
            if scan.disk - plan.freed - junk <= max_size:
                break
            if repo.is_link or now - repo.modified < FRESH:
                continue
            chosen[repo.folder] = [each.commit for each in repo.revisions]
            plan = plan_delete(scan, chosen, verb="gc", kept=kept)
    gone = {target.folder for target in plan.targets if target.whole}
    inside = {step.path for step in plan.steps}
    rest = tuple(step for step in loose if step.path not in inside and step.path.partition("/")[0] not in gone)
    return Plan(plan.verb, plan.cache, plan.root, plan.targets, in_order((*plan.loose, *rest)), plan.kept)


def _is_ours_to_take(scan: CacheScan, each: Leftover) -> bool:
    if each.kind is not Kind.LOCK:
        return True
    if scan.cache != "hub":
        return not is_held(each.path)
    if each.path.endswith((".lock", ".soft")):
        return not is_held(each.path)
    return True


def in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Links before the blobs they lead to, shared payloads last, and a folder of locks after the locks in it."""
    steps = list(steps)
    return tuple(sorted(steps, key=lambda step: (step.act is Act.LOCK, step.act is Act.SHARED, -step.path.count("/"))))


def _beyond_last(scan: CacheScan, keep: int) -> Iterable[tuple[str, list[str]]]:
    for repo in scan.repos:
        if repo.is_link:
            continue
        ranked = sorted(repo.revisions, key=lambda each: (bool(each.refs), each.modified), reverse=True)
        beyond = [each.commit for each in ranked[keep:] if not each.refs]
        if beyond:
            yield repo.folder, beyond


def least_recently_used(repos: Iterable[Repo]) -> list[Repo]:
    """Repos by their last use, the longest unused first. A download counts as a use."""
    return sorted(repos, key=lambda repo: (last_used(repo), repo.id))


def last_used(thing: Repo | Revision) -> float:
    """When a thing was last read or written; disks that do not record reading give the time of the download."""
    return max(thing.accessed, thing.modified)


def choose(scan: CacheScan, chosen: Iterable[tuple[Repo, Revision | None]]) -> Mapping[str, list[str]]:
    """Repos (with None) and revisions as the selection that `plan_delete` wants."""
    wanted: dict[str, list[str]] = {}
    for repo, revision in chosen:
        commits = [each.commit for each in repo.revisions] if revision is None else [revision.commit]
        wanted.setdefault(repo.folder, []).extend(commits)
    return wanted
