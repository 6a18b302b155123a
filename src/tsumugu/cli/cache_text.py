"""How caches are put into words: sizes, ages, names that are safe to print, and plain tables that line up.

Names come from folders that anybody may have written: control characters, line breaks and broken encodings in them are
shown as escapes. Columns are padded by the cells a terminal uses, so that East Asian names line up.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

from tsumugu.hub.cache import CacheScan, Outcome, Plan, Repo, Revision, last_used

if TYPE_CHECKING:
    from tsumugu.hub.cache.select import Row

_AGES = ((31557600, "year"), (2629800, "month"), (604800, "week"), (86400, "day"), (3600, "hour"), (60, "minute"))


def size_text(size: float) -> str:
    """Bytes in powers of 1000, as huggingface_hub and disks count: ``512 B``, ``1.2 kB``, ``34.5 GB``."""
    if size < 1000:
        return f"{int(size)} B"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        size /= 1000
        if size < 999.95 or unit == "PB":
            return f"{size:.1f} {unit}"
    return ""


def age_text(moment: float, now: float | None = None) -> str:
    """How long ago: ``3 days ago``."""
    seconds = (time.time() if now is None else now) - moment
    for length, word in _AGES:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {word}{'s' if count > 1 else ''} ago"
    return "just now"


def count_text(count: int, word: str, many: str | None = None) -> str:
    """``1 file``, ``2 files``."""
    return f"{count:,} {word if count == 1 else many or word + 's'}"


def printable(text: str) -> str:
    """A name without anything that could move a terminal's cursor or break a line."""
    if text.isprintable():
        return text
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in shown)


def fit(text: str, width: int) -> str:
    """A name in exactly `width` cells, cut with an ellipsis."""
    text = printable(text)
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def lines_of_table(headers: Sequence[str], table: Iterable[Sequence[str]], right: frozenset[int]) -> list[str]:
    """A table as lines: columns as wide as their widest cell, those in `right` pushed right, the last one ragged."""
    cells = [headers, *([printable(each) for each in row] for row in table)]
    widths = [max(cell_len(row[column]) for row in cells) for column in range(len(headers))]
    lines = []
    for row in cells:
        parts = []
        for column, (text, width) in enumerate(zip(row, widths, strict=True)):
            pad = " " * (width - cell_len(text))
            parts.append(pad + text if column in right else text + pad)
        lines.append("  ".join(parts).rstrip())
    return lines


def row_values(row: Row, cache: str) -> dict[str, Any]:
    """A repo or revision as plain values, for JSON and CSV. Times are seconds since 1970."""
    repo, revision = row
    thing: Repo | Revision = repo if revision is None else revision
    return {
        "cache": cache,
        "id": repo.id if revision is None else f"{repo.id}@{revision.commit}",
        "type": repo.type,
        "name": repo.name,
        "revision": None if revision is None else revision.commit,
        "size": thing.size,
        "disk": repo.disk if revision is None else None,
        "files": repo.n_files if revision is None else len(revision.files),
        "revisions": len(repo.revisions) if revision is None else None,
        "refs": sorted(repo.refs) if revision is None else list(revision.refs),
        "last_accessed": thing.accessed,
        "last_modified": thing.modified,
        "path": thing.path,
        "problems": list(repo.problems),
    }


def scan_values(scan: CacheScan) -> dict[str, Any]:
    """The totals of a cache as plain values."""
    return {
        "cache": scan.cache,
        "path": scan.root,
        "size": scan.size,
        "disk": scan.disk,
        "parts": {part.kind: {"count": part.count, "disk": part.disk} for part in scan.parts},
        "unreadable": list(scan.unreadable),
        "seconds": round(scan.seconds, 3),
    }


def plan_values(plan: Plan) -> dict[str, Any]:
    """A plan as plain values."""
    return {
        "verb": plan.verb,
        "cache": plan.cache,
        "root": plan.root,
        "freed": plan.freed,
        "revisions": plan.n_revisions,
        "steps": [{"act": step.act, "path": step.path, "disk": step.disk} for step in plan.steps],
        "kept": [{"path": each.path, "reason": each.reason} for each in plan.kept],
    }


def outcome_values(outcome: Outcome) -> dict[str, Any]:
    """What was done as plain values."""
    told: dict[str, Any] = {"run": outcome.run, "freed": outcome.freed, "done": [each.path for each in outcome.done]}
    for name, group in (("kept", outcome.kept), ("failed", outcome.failed)):
        told[name] = [{"path": each.path, "reason": each.reason} for each in group]
    return told


def lines_of_scan(scan: CacheScan, shown: Sequence[Row], now: float) -> list[str]:
    """The table of a cache, one line a repo or revision."""
    by_revision = any(revision is not None for _, revision in shown)
    headers = ["ID", *(["REVISION"] if by_revision else []), "SIZE", "FILES", "LAST USED", "CHANGED", "REFS", "PATH"]
    table = []
    for repo, revision in shown:
        thing: Repo | Revision = repo if revision is None else revision
        refs = sorted(repo.refs) if revision is None else revision.refs
        name = repo.id + (" (damaged)" if repo.problems else "") + (" (link)" if repo.is_link else "")
        table.append(
            [
                name,
                *([revision.commit[:12] if revision else ""] if by_revision else []),
                size_text(thing.size),
                str(repo.n_files if revision is None else len(revision.files)),
                age_text(last_used(thing), now),
                age_text(thing.modified, now),
                ",".join(refs) or "-",
                thing.path,
            ]
        )
    at = 2 if by_revision else 1
    return lines_of_table(headers, table, frozenset({at, at + 1}))


def lines_of_parts(scan: CacheScan) -> list[str]:
    """What the bytes of a cache are, and their sum, which is what ``du -sb`` says."""
    table = [[str(part.kind), f"{part.count:,}", size_text(part.disk)] for part in scan.parts]
    table.append(["in all", "", f"{size_text(scan.disk)} ({scan.disk:,} bytes)"])
    return ["  " + line for line in lines_of_table(["", "", ""], table, frozenset({1}))[1:]]


def lines_of_trouble(scan: CacheScan, limit: int = 10) -> list[str]:
    """Damaged repos and unreadable places, the first of them by name."""
    told = [f"{repo.id}: {problem}" for repo in scan.repos for problem in repo.problems]
    told += [f"cannot be read: {place}" for place in scan.unreadable]
    more = [f"… and {len(told) - limit:,} more"] if len(told) > limit else []
    return [printable(each) for each in told[:limit]] + more


def lines_of_plan(plan: Plan, limit: int = 20) -> list[str]:
    """What a plan would take, for somebody about to say yes."""
    lines = []
    for target in plan.targets[:limit]:
        named = ", ".join(each[:12] for each in target.commits[:4]) + (", …" if len(target.commits) > 4 else "")
        what = "the whole repo" if target.whole else f"{count_text(len(target.commits), 'revision')} ({named})"
        lines.append(printable(f"  {target.id}: {what}, {size_text(target.disk)}"))
    if len(plan.targets) > limit:
        lines.append(f"  … and {len(plan.targets) - limit:,} more")
    if plan.loose:
        lines.append(f"  {count_text(len(plan.loose), 'leftover')}, {size_text(sum(s.disk for s in plan.loose))}")
    lines += [printable(f"  left alone: {each.path} {each.reason}") for each in plan.kept[:limit]]
    return lines


def lines_of_outcome(outcome: Outcome, limit: int = 20) -> list[str]:
    """What did not go, and why."""
    told = [f"left alone: {each.path} {each.reason}" for each in outcome.kept]
    told += [f"failed: {each.path}: {each.reason}" for each in outcome.failed]
    more = [f"… and {len(told) - limit:,} more"] if len(told) > limit else []
    return [printable(each) for each in told[:limit]] + more
