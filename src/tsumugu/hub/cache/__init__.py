"""The model caches of this machine, seen whole and cleaned safely: scan, plan, execute.

    seen = scan()                                   # the hub cache; scan("tsumugu") and others likewise
    plan = plan_delete(seen, choose(seen, find(seen, "org/name@main")))
    print(plan.freed)                               # bytes that come back; nothing has happened yet
    execute(plan)

Nothing outside a cache's root is ever touched, and a crash at any moment leaves a cache that huggingface_hub reads.
"""

from __future__ import annotations

from pathlib import Path

from tsumugu.hub.cache.collect import choose, last_used, plan_gc
from tsumugu.hub.cache.execute import Outcome, execute
from tsumugu.hub.cache.folders import SHAPES, scan_folders
from tsumugu.hub.cache.guard import check_root
from tsumugu.hub.cache.journal import read as read_journal
from tsumugu.hub.cache.locations import CACHES, Location, Setting, locate, locations
from tsumugu.hub.cache.plan import Act, Kept, Plan, Step, Target, plan_delete, plan_prune
from tsumugu.hub.cache.records import Blob, CachedFile, CacheScan, Kind, Leftover, Part, Repo, Revision
from tsumugu.hub.cache.scan import scan_hub
from tsumugu.hub.cache.select import find, rows

__all__ = [
    "CACHES",
    "Act",
    "Blob",
    "CacheScan",
    "CachedFile",
    "Kept",
    "Kind",
    "Leftover",
    "Location",
    "Outcome",
    "Part",
    "Plan",
    "Repo",
    "Revision",
    "Setting",
    "Step",
    "Target",
    "check_root",
    "choose",
    "execute",
    "find",
    "last_used",
    "locate",
    "locations",
    "plan_delete",
    "plan_gc",
    "plan_prune",
    "read_journal",
    "rows",
    "scan",
]


def scan(cache: str = "hub", root: str | Path | None = None) -> CacheScan:
    """See one cache whole. `root` overrides where the settings say it is.

    Raises InputError when there is no such folder, or when it is plainly no cache (`/`, a home folder).
    """
    kind = "hub" if cache == "legacy" else cache
    real = check_root(locate(cache).path if root is None else root, kind)
    return scan_folders(real, kind) if kind in SHAPES else scan_hub(real, cache=kind)
