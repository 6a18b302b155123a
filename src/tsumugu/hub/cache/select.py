"""Words that choose: filters (``size>1GB``), orders (``size:asc``), names of repos and revisions (``a/b@main``)."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.hub.cache.collect import last_used
from tsumugu.hub.cache.records import CacheScan, Repo, Revision

Row = tuple[Repo, Revision | None]
"""A line of a listing: a repo, or one revision of it."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40, "pi": 1 << 50}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "mo": 2629800.0, "y": 31557600.0}
_FILTER = re.compile(r"\s*([a-z]+)\s*(>=|<=|!=|==|=|>|<)\s*(.+?)\s*", re.IGNORECASE)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
FILTERS = ("size", "accessed", "modified", "type", "name", "refs", "files")
ORDERS = {"size": True, "accessed": True, "modified": True, "name": False, "files": True, "type": False}
"""What can be sorted by, and whether the largest comes first."""


def parse_size(text: str) -> int:
    """``500MB``, ``1.5G`` (powers of 1000, as huggingface_hub), ``2GiB`` (powers of 1024), ``123`` in bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?\s*", text, re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise InputError("is no size", where=repr(text), mend="write 500MB, 1.5GB or 2GiB")
    unit = match[2].lower()
    return int(Decimal(match[1]) * (_BINARY[f"{unit}i"] if match[3] else _UNITS[unit]))


def parse_age(text: str) -> float:
    """``90s``, ``15m``, ``12h``, ``30d``, ``2w``, ``6mo``, ``1y`` in seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|d|w|mo|y)\s*", text, re.IGNORECASE)
    if match is None:
        raise InputError("is no span of time", where=repr(text), mend="write 15m, 12h, 30d, 2w, 6mo or 1y")
    return float(match[1]) * _SECONDS[match[2].lower()]


def compile_filter(text: str, now: float) -> Callable[[Row], bool]:
    """The test that a filter word means. Spans of time are ages: ``accessed>30d`` is not used for 30 days."""
    match = _FILTER.fullmatch(text)
    if match is None:
        raise InputError("is no filter", where=repr(text), mend="write size>1GB, accessed>30d or type=model")
    key, sign, value = match[1].lower(), match[2], match[3]
    if key not in FILTERS:
        raise InputError(f"there is no {key!r} to filter by", where=repr(text), mend=did_you_mean(key, FILTERS))
    compare = _COMPARE[sign]
    if key == "size":
        size = parse_size(value)
        return lambda row: compare((row[1] or row[0]).size, size)
    if key == "files":
        count = parse_size(value)
        return lambda row: compare(row[0].n_files if row[1] is None else len(row[1].files), count)
    if key in ("accessed", "modified"):
        age = parse_age(value)
        if key == "modified":
            return lambda row: compare(now - (row[1] or row[0]).modified, age)
        return lambda row: compare(now - last_used(row[1] or row[0]), age)
    if sign not in ("=", "==", "!="):
        raise InputError(f"{key} has no order", where=repr(text), mend=f"write {key}={value}")
    wanted, equal, low = value, sign != "!=", value.lower()
    if key == "type":
        return lambda row: (row[0].type.lower() == low) == equal
    if key == "name":
        return lambda row: (low in row[0].id.lower()) == equal
    return lambda row: (wanted in (row[0].refs if row[1] is None else row[1].refs)) == equal


def rows(
    scan: CacheScan, *, filters: Sequence[str] = (), sort: str = "size", revisions: bool = False, now: float
) -> list[Row]:
    """The repos (or revisions) of a scan that pass every filter, in order."""
    tests = [compile_filter(each, now) for each in filters]
    found: Iterable[Row] = (
        ((repo, each) for repo in scan.repos for each in repo.revisions)
        if revisions
        else ((repo, None) for repo in scan.repos)
    )
    return order([row for row in found if all(test(row) for test in tests)], sort)


def order(found: list[Row], sort: str) -> list[Row]:
    """Rows by ``KEY``, ``KEY:asc`` or ``KEY:desc``; ties by name."""
    key, _, direction = sort.lower().partition(":")
    if key not in ORDERS or direction not in ("", "asc", "desc"):
        raise InputError("is no order", where=repr(sort), mend=did_you_mean(key, ORDERS) + " (KEY:asc or KEY:desc)")
    backwards = ORDERS[key] if not direction else direction == "desc"
    by: dict[str, Callable[[Row], float | str]] = {
        "size": lambda row: (row[1] or row[0]).size,
        "accessed": lambda row: last_used(row[1] or row[0]),
        "modified": lambda row: (row[1] or row[0]).modified,
        "files": lambda row: row[0].n_files if row[1] is None else len(row[1].files),
        "name": lambda row: row[0].name.casefold(),
        "type": lambda row: row[0].type,
    }
    found = sorted(found, key=lambda row: (row[0].id.casefold(), row[1].commit if row[1] else ""))
    return sorted(found, key=by[key], reverse=backwards)


def find(scan: CacheScan, text: str) -> list[Row]:
    """What a name means: ``org/name``, ``model/org/name``, a repo's folder, any of them ``@REV``, or a commit alone.

    REV is a ref, a commit, or the beginning of one (four letters or more). Raises InputError when nothing or more than
    one thing is meant.
    """
    name, at, wanted = text.strip().rpartition("@")
    if not at:
        name, wanted = wanted, ""
    lowered = name.lower()
    repos = [each for each in scan.repos if lowered in (each.id.lower(), each.folder.lower())]
    repos = repos or [each for each in scan.repos if each.name.lower() == lowered]
    if len(repos) > 1:
        ids = " or ".join(each.id for each in repos)
        raise InputError("could mean several repos", where=repr(text), mend=f"write {ids}")
    if not repos:
        if not at and (alone := [(r, v) for r in scan.repos for v in r.revisions if is_commit(v, lowered)]):
            if len(alone) > 1:
                raise InputError("is the beginning of several revisions", where=repr(text), mend="write more of it")
            return list(alone)
        known = [each.id for each in scan.repos] + [each.name for each in scan.repos]
        raise InputError("is not in the cache", where=repr(text), mend=did_you_mean(name, known) if known else None)
    repo = repos[0]
    if not at:
        return [(repo, None)]
    exact = [each for each in repo.revisions if wanted in (each.commit, *each.refs)]
    found = exact or [each for each in repo.revisions if is_commit(each, wanted.lower())]
    if len(found) != 1:
        what = "is the beginning of several revisions" if found else f"{repo.id} has no such revision"
        known = [*repo.refs, *(each.commit[:12] for each in repo.revisions)]
        raise InputError(what, where=repr(text), mend=f"there are {', '.join(known[:12])}")
    return [(repo, found[0])]


def is_commit(revision: Revision, beginning: str) -> bool:
    """Whether a revision's commit begins so; fewer than four letters say nothing."""
    return len(beginning) >= 4 and revision.commit.lower().startswith(beginning)
