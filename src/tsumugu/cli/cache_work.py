"""The work behind ``tsumugu cache``: which caches are meant, what is asked before anything goes, what is told after."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tsumugu.cli.cache_text import (
    count_text,
    lines_of_outcome,
    lines_of_plan,
    outcome_values,
    plan_values,
    printable,
    size_text,
)
from tsumugu.core.errors import InputError, TsumuguError
from tsumugu.hub.cache import (
    CacheScan,
    Kind,
    Plan,
    check_root,
    execute,
    locate,
    locations,
    plan_delete,
    read_journal,
    rows,
)
from tsumugu.hub.cache import scan as scan_cache
from tsumugu.hub.cache.select import Row, compile_filter, find, order


def places() -> list[dict[str, Any]]:
    """Every cache as plain values, with its size, or the reason why it has none."""
    found = []
    for each in locations():
        disk, state = None, "not there yet"
        if Path(each.path).exists():
            try:
                disk, state = scan_cache(each.cache, each.path).disk, "there"
            except TsumuguError as error:
                state = str(error)
        found.append(
            {
                "cache": each.cache,
                "path": each.path,
                "real": each.real,
                "purpose": each.purpose,
                "chosen_by": each.chosen_by,
                "variable": each.variable,
                "disk": disk,
                "state": state,
                "settings": [
                    {"name": one.name, "value": one.value, "path": one.path, "chosen": one.chosen}
                    for one in each.settings
                ],
            }
        )
    return found


def scans(cache: str | None, dir: Path | None) -> list[CacheScan]:
    """The caches that are meant. One that was named must exist; otherwise those that do."""
    if dir is not None:
        return [scan_cache(cache or "hub", dir)]
    if cache is not None:
        return [scan_cache(cache)]
    found, roots = [], set[str]()
    for each in locations():
        if each.real not in roots and Path(each.real).is_dir():
            roots.add(each.real)
            try:
                found.append(scan_cache(each.cache))
            except InputError as error:
                print(f"tsumugu: the {each.cache} cache is passed over: {error}", file=sys.stderr)
    return found


def check_words(filters: Sequence[str], sort: str) -> None:
    """Raise InputError for a filter or an order that means nothing, before anything is read."""
    for each in filters:
        compile_filter(each, 0.0)
    order([], sort)


def plans_for(seen: Sequence[CacheScan], ids: Sequence[str], filters: Sequence[str]) -> list[Plan]:
    """The plans that take what ids and filters mean. Raises InputError for an id that means nothing."""
    import time

    chosen: dict[str, dict[str, list[str]]] = {}

    def add(scan: CacheScan, row: Row) -> None:
        repo, revision = row
        commits = [each.commit for each in repo.revisions] if revision is None else [revision.commit]
        chosen.setdefault(scan.root, {}).setdefault(repo.folder, []).extend(commits)

    for name in _names(ids):
        scan, found = _find_in(seen, name)
        for row in found:
            add(scan, row)
    if filters:
        now = time.time()
        for scan in seen:
            for row in rows(scan, filters=filters, now=now):
                add(scan, row)
    return [plan_delete(scan, chosen[scan.root]) for scan in seen if scan.root in chosen]


def _names(ids: Sequence[str]) -> Iterator[str]:
    for each in ids:
        if each != "-":
            yield each
            continue
        for line in sys.stdin:
            if words := line.split():
                yield words[0]


def _find_in(seen: Sequence[CacheScan], name: str) -> tuple[CacheScan, list[Row]]:
    errors: list[InputError] = []
    hits: list[tuple[CacheScan, list[Row]]] = []
    for scan in seen:
        try:
            hits.append((scan, find(scan, name)))
        except InputError as error:
            errors.append(error)
    if len(hits) > 1:
        ids = " or ".join(f"--cache {scan.cache}" for scan, _ in hits)
        raise InputError("is in several caches", where=repr(name), mend=f"add {ids}")
    if hits:
        return hits[0]
    helpful = [error for error in errors if "is not in the cache" not in error.what or "did you mean" in str(error)]
    if helpful or errors:
        raise (helpful or errors)[0]
    raise InputError("there is no cache yet", mend="tsumugu cache where lists the places")


def empty_trash(seen: Sequence[CacheScan]) -> None:
    """Finish what interrupted deletions left in the trash, and say so."""
    from tsumugu.hub.cache.execute import finish_earlier

    for scan in seen:
        left = sum(part.disk for part in scan.parts if part.kind is Kind.TRASH)
        if left and finish_earlier(scan.root, scan.cache):
            told = f"{scan.cache} cache: {size_text(left)} that an interrupted deletion had put aside came back."
            print(told, file=sys.stderr)


def choose_by_hand(seen: Sequence[CacheScan], sort: str, *, disable_tui: bool, edit: bool) -> list[Plan] | None:
    """Let somebody choose in the browser or in a text file. None when nothing shall go."""
    if disable_tui:
        from tsumugu.cli.cache_list import edit_list

        return edit_list(seen, sort, edit=edit)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(
            "nothing says what to delete, and there is no terminal to choose in",
            mend="name repos, give a --filter, or use --disable-tui",
        )
    from tsumugu.cli.cache_browser import browse

    return browse(seen, sort)


def carry_out(plans: Sequence[Plan], *, yes: bool, dry_run: bool, as_json: bool) -> bool:
    """Show plans, ask, and execute them; whether anything went."""
    plans = [plan for plan in plans if plan.steps or plan.kept]
    freed = sum(plan.freed for plan in plans)
    count = sum(plan.n_revisions for plan in plans)
    things = sum(len(plan.steps) for plan in plans)
    if as_json and dry_run:
        print(json.dumps({"dry_run": True, "freed": freed, "plans": [plan_values(plan) for plan in plans]}, indent=2))
        return False
    if not as_json:
        for plan in plans:
            print(f"{plan.cache} cache, {printable(plan.root)}")
            print("\n".join(lines_of_plan(plan)))
    if not things:
        if as_json:
            print(json.dumps({"freed": 0, "outcomes": []}))
        else:
            print("There is nothing to delete.")
        return False
    if not as_json:
        leftovers = sum(len(plan.loose) for plan in plans)
        parts = [count_text(count, "revision")] * bool(count) + [count_text(leftovers, "leftover")] * bool(leftovers)
        print(
            f"{' and '.join(parts) or count_text(things, 'thing')} counting for {size_text(freed)} ({freed:,} bytes)."
        )
    if dry_run:
        print("Dry run: nothing was deleted.")
        return False
    if not yes and not _agreed("Delete?"):
        print("Nothing was deleted.", file=sys.stderr)
        return False
    outcomes = [execute(plan) for plan in plans]
    total = sum(each.freed for each in outcomes)
    if as_json:
        print(json.dumps({"freed": total, "outcomes": [outcome_values(each) for each in outcomes]}, indent=2))
    else:
        print(f"Deleted; {size_text(total)} ({total:,} bytes) came back.")
    for each in outcomes:
        for line in lines_of_outcome(each):
            print(line, file=sys.stderr)
    if any(each.failed for each in outcomes):
        raise TsumuguError(
            f"{sum(len(each.failed) for each in outcomes)} things could not be deleted", mend="the lines above say why"
        )
    return True


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise InputError("nothing was deleted, for nobody is there to be asked", mend="add --yes, or --dry-run to look")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def verify(
    cache: str | None, dir: Path | None, ids: Sequence[str], *, repair: bool, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Hash payloads, tell what is damaged, and repair if asked. Raises TsumuguError when damage stays."""
    from tsumugu.cli.console import progress
    from tsumugu.hub.cache.verify import plan_repair
    from tsumugu.hub.cache.verify import verify as check

    seen = [each for each in scans(cache, dir) if cache is not None or each.cache in ("hub", "tsumugu")]
    chosen: dict[str, list[Any]] = {}
    for name in _names(ids):
        scan, found = _find_in(seen, name)
        chosen.setdefault(scan.root, []).extend(repo for repo, _ in found)
    reports = []
    with progress(quiet=as_json) as display:
        for scan in seen:
            repos = chosen.get(scan.root, []) if ids else list(scan.repos)
            task = display.add_task(f"hashing the {scan.cache} cache", total=max(1, sum(each.size for each in repos)))
            reports.append((scan, check(scan, repos, progress=partial(display.advance, task))))
    damaged = [each for _, report in reports for each in report.damaged]
    if as_json:
        told = [
            {
                "cache": scan.cache,
                "checked": report.checked,
                "bytes": report.bytes,
                "unknown": len(report.unknown),
                "damaged": [
                    {"repo": each.repo, "path": each.path, "expected": each.expected, "found": each.found,
                     "files": list(each.files)}
                    for each in report.damaged
                ],
            }
            for scan, report in reports
        ]  # fmt: skip
        print(json.dumps({"caches": told}, indent=2))
    else:
        for scan, report in reports:
            good = report.checked - len(report.damaged)
            print(
                f"{scan.cache} cache: {good:,} of {count_text(report.checked, 'file')} good"
                f" ({size_text(report.bytes)} read), {len(report.unknown):,} of unknown hash"
            )
        for each in damaged:
            print(printable(f"  damaged: {each.repo}: {', '.join(each.files[:3])}: {each.path}"))
    if not damaged:
        return
    if repair:
        plans = [plan_repair(scan, report) for scan, report in reports if report.damaged]
        if carry_out(plans, yes=yes, dry_run=dry_run, as_json=as_json) and not as_json:
            print("The next use of these models downloads what is missing.")
        return
    raise TsumuguError(
        f"{count_text(len(damaged), 'file')} of the cache {'is' if len(damaged) == 1 else 'are'} damaged",
        mend="tsumugu cache verify --repair lets them be downloaded again",
    )


def move(new: Path, cache: str, dir: Path | None, *, link: bool, yes: bool) -> None:
    """Move a cache, showing how far it is, and tell how to make programs find it."""
    from tsumugu.cli.console import progress
    from tsumugu.hub.cache.locations import profile_line
    from tsumugu.hub.cache.move import move_cache, plan_move

    place = locate(cache)
    plan = plan_move(dir or Path(place.path), new, cache, link=link)
    print(f"{cache} cache: {printable(plan.old)} -> {printable(plan.new)}")
    if plan.rename:
        print("Both places are on one disk: a single rename moves it, and no byte is copied.")
    if plan.resumes:
        print("An earlier move stopped half-way; it goes on.")
    if not yes and not _agreed("Move?"):
        print("Nothing was moved.", file=sys.stderr)
        return
    with progress() as display:
        task = display.add_task("copying and comparing", total=max(1, 2 * plan.disk))
        done = move_cache(plan, progress=lambda size: display.advance(task, size))
    how = "by a rename" if plan.rename else "and compared every byte"
    print(f"Moved {count_text(done.files, 'file')}, {size_text(done.bytes)}, {how}.")
    line, where = profile_line(place.variable, plan.new)
    if link:
        print(f"A link at {printable(plan.old)} leads to the new place. To do without it, put this line into {where}:")
    else:
        print(f"Programs still look in the old place. Put this line into {where}:")
    print(f"  {line}")


def journal(cache: str | None, dir: Path | None) -> Iterator[dict[str, Any]]:
    """The journals' records, oldest first. With each beginning goes what became of it."""
    if dir is not None:
        roots = [(cache or "hub", check_root(dir, cache or "hub"))]
    else:
        meant = [locate(cache)] if cache is not None else list(locations())
        roots = [(each.cache, each.real) for each in meant]
    told: list[dict[str, Any]] = []
    for root, name in {root: name for name, root in roots}.items():
        runs: dict[str, dict[str, Any]] = {}
        for record in read_journal(root):
            run = str(record.get("run"))
            if record["event"] == "begin":
                runs[run] = {**record, "finished": False, "left": 0}
                told.append(runs[run])
            elif record["event"] == "moved" and run in runs:
                left = len(record.get("kept", [])) + len(record.get("failed", []))
                runs[run].update(freed=record.get("freed", 0), done=list(record.get("done", [])), left=left)
            elif record["event"] == "end" and run in runs:
                runs[run]["finished"] = True
            elif record["event"] == "recovered":
                told.append({**record, "cache": name})
    yield from sorted(told, key=lambda record: str(record.get("time")))
