"""``tsumugu cache``: where the caches are, what is in them, and how to make them smaller without losing anything."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from tsumugu.cli import cache_work as work
from tsumugu.cli.cache_text import (
    age_text,
    count_text,
    lines_of_parts,
    lines_of_scan,
    lines_of_table,
    lines_of_trouble,
    printable,
    row_values,
    scan_values,
    size_text,
)
from tsumugu.cli.dash import DASH

app = App(name="cache", help="See and clean the model caches of this machine.")

Cache = Annotated[
    Literal["hub", "xet", "datasets", "assets", "tsumugu", "legacy"] | None,
    Parameter(name="--cache", negative="", help="Only this cache; all that exist without it."),
]
Place = Annotated[Path | None, Parameter(name="--dir", negative="", help="A cache folder that no setting names.")]
Filters = Annotated[list[str] | None, Parameter(name="--filter", negative="", consume_multiple=False)]
Flag = Annotated[bool, Parameter(negative="")]
AsJson = Annotated[bool, Parameter(name="--json", negative="")]


@app.command
def where(*, as_json: AsJson = False) -> None:
    """List every cache of this machine: its path, its size, and which setting put it there.

    Parameters
    ----------
    as_json
        One JSON object instead of text.
    """
    from tsumugu.hub.cache.locations import profile_line, unread

    found = work.places()
    ignored = unread()
    if as_json:
        print(json.dumps({"caches": found, "unread": ignored}, indent=2, ensure_ascii=False))
        return
    for each in found:
        size = size_text(each["disk"]) if each["disk"] is not None else each["state"]
        print(f"{each['cache']:9}{size:>12}  {printable(each['path'])}")
        print(f"{'':23}{each['purpose']}")
        for rank, setting in enumerate(each["settings"], start=1):
            value = "not set" if setting["value"] is None else printable(setting["value"])
            if setting["name"] == "default":
                value = "~/.cache/huggingface/… or the system's place" if setting["path"] is None else setting["path"]
            mark = "chose it" if setting["chosen"] else ""
            print(f"{'':23}{rank}. {setting['name']:26}{value}{'  <- ' + mark if mark else ''}")
        print()
    for name, why in ignored.items():
        print(f"{name} is set, but is {why}.")
    line, place = profile_line("HF_HUB_CACHE", "/new/place")
    print(f"To move a cache: tsumugu cache move /new/place. It ends with the line for {place}, such as: {line}")


@app.command
def scan(
    *,
    cache: Cache = None,
    dir: Place = None,
    sort: str = "size",
    filter: Filters = None,
    revisions: Flag = False,
    files: Flag = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, Parameter(name="--csv", negative="")] = False,
    quiet: Annotated[bool, Parameter(name=("--quiet", "-q"), negative="")] = False,
) -> None:
    """List what is in the caches, and account for every byte of them.

    Parameters
    ----------
    sort
        size, accessed, modified, name, files or type; with :asc or :desc.
    filter
        Such as "size>1GB", "accessed>30d", "modified<1w", "type=model", "name=llama", "refs=main"; may be repeated.
    revisions
        A line for each revision instead of each repo.
    files
        The files of each revision too.
    as_json
        One JSON object instead of a table.
    as_csv
        Comma-separated values instead of a table.
    quiet
        Only the ids, as `tsumugu cache delete -` reads them.
    """
    from tsumugu.hub.cache import rows

    now = time.time()
    work.check_words(filter or (), sort)
    seen = work.scans(cache, dir)
    if not seen and not (as_json or as_csv or quiet):
        print("There is no cache yet. `tsumugu cache where` lists the places.", file=sys.stderr)
    by_revision = revisions or files
    shown = [(each, rows(each, filters=filter or (), sort=sort, revisions=by_revision, now=now)) for each in seen]
    values: list[dict[str, Any]] = []
    for each, found in shown:
        for row in found:
            value = row_values(row, each.cache)
            if files and row[1] is not None:
                value["contents"] = [
                    {"name": file.name, "size": file.blob.size, "path": file.path, "blob": file.blob.path}
                    for file in sorted(row[1].files, key=lambda file: file.name)
                ]
            values.append(value)
    if quiet:
        for value in values:
            print(printable(value["id"]))
    elif as_json:
        told = {"caches": [scan_values(each) for each in seen], "entries": values}
        print(json.dumps(told, indent=2))
    elif as_csv:
        _write_csv(values, files=files)
    else:
        for each, found in shown:
            if each.repos or len(seen) == 1:
                print("\n".join(lines_of_scan(each, found, now)))
                if files:
                    _print_files(found)
            _summarise(each)


def _write_csv(values: list[dict[str, Any]], *, files: bool) -> None:
    columns = ["cache", "id", "type", "name", "revision", "size", "disk", "files", "revisions", "refs"]
    columns += ["last_accessed", "last_modified", "path"] + (["file", "file_size", "file_path"] if files else [])
    writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for value in values:
        value = {**value, "refs": " ".join(value["refs"])}
        value = {name: printable(each) if isinstance(each, str) else each for name, each in value.items()}
        contents = value.get("contents")
        for file in contents if contents else [None]:
            more = {} if file is None else {"file": printable(file["name"]), "file_size": file["size"]}
            writer.writerow(value | more | ({} if file is None else {"file_path": printable(file["path"])}))


def _print_files(found: list[Any]) -> None:
    for repo, revision in found:
        print(f"\n{printable(repo.id)}@{printable(revision.commit)}")
        table = [[size_text(each.blob.size), each.name] for each in sorted(revision.files, key=lambda each: each.name)]
        print("\n".join("  " + line for line in lines_of_table(["SIZE", "FILE"], table, frozenset({0}))))


def _summarise(seen: Any) -> None:
    """The totals, on standard error, so that a pipe gets the table alone."""
    repos = count_text(
        len(seen.repos), "repo" if seen.cache == "hub" else "entry", None if seen.cache == "hub" else "entries"
    )
    head = f"\n{seen.cache} cache, {printable(seen.root)}: {repos} in {seen.seconds:.2f} s"
    lines = [head, *lines_of_parts(seen), *(f"  ! {each}" for each in lines_of_trouble(seen))]
    print("\n".join(lines), file=sys.stderr)


@app.command
def delete(
    ids: Annotated[list[str] | None, DASH] = None,
    /,
    *,
    cache: Cache = None,
    dir: Place = None,
    filter: Filters = None,
    sort: str = "size",
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="")] = False,
    dry_run: Flag = False,
    disable_tui: Flag = False,
    edit: Flag = False,
    as_json: AsJson = False,
) -> None:
    """Delete repos or revisions: by name, by filter, or chosen in a browser when neither is given.

    Parameters
    ----------
    ids
        REPO or REPO@REVISION, such as org/name, dataset/org/name@main, or a commit; - reads them from standard input.
    filter
        Take everything that passes, such as "accessed>90d"; may be repeated, then all must pass.
    sort
        How the browser and the list are sorted at first.
    yes
        Do not ask.
    dry_run
        Say what would go and how many bytes would come back, and stop.
    disable_tui
        Choose in a text file instead of the browser.
    edit
        With --disable-tui: open the file in $EDITOR.
    as_json
        The plan, or what was done, as one JSON object.
    """
    work.check_words(filter or (), sort)
    seen = work.scans(cache, dir)
    if ids or filter:
        plans = work.plans_for(seen, ids or [], filter or [])
    else:
        chosen = work.choose_by_hand(seen, sort, disable_tui=disable_tui, edit=edit)
        if chosen is None:
            print("Nothing was deleted.", file=sys.stderr)
            return
        plans, yes = chosen, True
    work.carry_out(plans, yes=yes, dry_run=dry_run, as_json=as_json)


@app.command
def prune(
    *,
    cache: Cache = "hub",
    dir: Place = None,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="")] = False,
    dry_run: Flag = False,
    as_json: AsJson = False,
) -> None:
    """Delete detached revisions: those that no branch or tag names any more.

    A revision that was downloaded by its commit is detached too.

    Parameters
    ----------
    cache
        The cache.
    yes
        Do not ask.
    dry_run
        Say what would go, and stop.
    as_json
        The plan, or what was done, as one JSON object.
    """
    from tsumugu.hub.cache import plan_prune

    plans = [plan_prune(each) for each in work.scans(cache, dir)]
    work.carry_out(plans, yes=yes, dry_run=dry_run, as_json=as_json)


@app.command
def gc(
    *,
    cache: Cache = None,
    dir: Place = None,
    older_than: str = "1d",
    keep_last: int | None = None,
    max_size: str | None = None,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="")] = False,
    dry_run: Flag = False,
    as_json: AsJson = False,
) -> None:
    """Delete what no model needs: broken-off downloads, orphaned blobs, broken links, dead locks.

    Parameters
    ----------
    older_than
        The age from which leftovers go, such as 12h or 2w. What somebody holds a lock on stays, whatever its age.
    keep_last
        Besides, keep only this many revisions of each repo. One that a branch or tag names always stays.
    max_size
        Besides, delete the repos unused for longest until the cache takes at most this, such as 50GB.
    yes
        Do not ask.
    dry_run
        Say what would go, and stop.
    as_json
        The plan, or what was done, as one JSON object.
    """
    from tsumugu.core.errors import InputError
    from tsumugu.hub.cache import plan_gc
    from tsumugu.hub.cache.select import parse_age, parse_size

    if keep_last is not None and keep_last < 0:
        raise InputError("must be 0 or more", where="--keep-last")
    limit = None if max_size is None else parse_size(max_size)
    if (keep_last is not None or limit is not None) and cache is None and dir is None:
        cache = "hub"
    age = parse_age(older_than)
    seen = work.scans(cache, dir)
    if not dry_run:
        work.empty_trash(seen)
    plans = [plan_gc(each, older_than=age, keep_last=keep_last, max_size=limit) for each in seen]
    work.carry_out(plans, yes=yes, dry_run=dry_run, as_json=as_json)


@app.command
def verify(
    ids: Annotated[list[str] | None, DASH] = None,
    /,
    *,
    cache: Cache = None,
    dir: Place = None,
    repair: Flag = False,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="")] = False,
    dry_run: Flag = False,
    as_json: AsJson = False,
) -> None:
    """Hash every file and compare it with the name it is stored under. Exits with 2 when something is damaged.

    Parameters
    ----------
    ids
        Only these repos.
    cache
        Only this cache; the hub's and tsumugu's without it.
    repair
        Delete damaged files and the links to them, so that the next use downloads them again.
    yes
        With --repair: do not ask.
    dry_run
        With --repair: say what would go, and stop.
    as_json
        One JSON object instead of text.
    """
    work.verify(cache, dir, ids or [], repair=repair, yes=yes, dry_run=dry_run, as_json=as_json)


@app.command
def move(
    new: Path,
    /,
    *,
    cache: Annotated[Literal["hub", "xet", "datasets", "assets", "tsumugu"], Parameter(negative="")] = "hub",
    dir: Place = None,
    link: Flag = False,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="")] = False,
) -> None:
    """Move a cache to another place: copy, compare every byte, switch, and only then remove the old one.

    Run it again after an interruption: it goes on where it stopped. It ends with the line for your shell's profile.

    Parameters
    ----------
    new
        The new folder. It must not exist, or be empty.
    cache
        Which cache.
    dir
        The cache's folder, if no setting names it.
    link
        Leave a link at the old place, so that programs which do not see the new setting still find the cache.
    yes
        Do not ask.
    """
    work.move(new, cache, dir, link=link, yes=yes)


@app.command
def log(*, cache: Cache = None, dir: Place = None, as_json: AsJson = False) -> None:
    """List what was deleted: when, by which command, how much, and what was left alone.

    Parameters
    ----------
    as_json
        The journal's records, one JSON object a line.
    """
    for record in work.journal(cache, dir):
        if as_json:
            print(json.dumps(record))
        else:
            print(printable(_told(record)))


def _told(record: dict[str, Any]) -> str:
    head = f"{record.get('time', '')[:19]}  {record.get('cache', ''):8}"
    if record["event"] == "recovered":
        return f"{head}  finished what an interrupted run left in the trash ({record.get('run')})"
    names = [each["id"] + "".join(f"@{commit[:12]}" for commit in each["commits"][:3]) for each in record["targets"]]
    count = len(record["steps"]) if not names else 0
    names += [count_text(count, "leftover")] if count else []
    whole = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    state = "" if record["finished"] else "  INTERRUPTED"
    left = f"  left alone or failed: {record['left']}" if record["left"] else ""
    return f"{head}  {record['verb']:7} {size_text(record['freed']):>10}  {whole or 'nothing'}{left}{state}"


__all__ = ["age_text", "app"]
