"""The alternative to the browser that needs no screen: a text file in which one takes the # from what shall go.

It reads well by ear and works in any editor: one revision a line, under a heading for its repo.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tsumugu.cli.cache_text import age_text, count_text, printable, size_text
from tsumugu.core.errors import InputError
from tsumugu.hub.cache import CacheScan, Plan, last_used, plan_delete
from tsumugu.hub.cache.select import order

Selection = dict[str, dict[str, list[str]]]
"""Commits by the folder of their repo, by the root of their cache."""

_HEADING = """\
# Take the # away in front of every revision that shall be deleted, save, and answer in the terminal.
# Lines that begin with # are kept. Nothing is deleted before you confirm.
"""


def list_text(scans: Sequence[CacheScan], sort: str) -> str:
    """The file's text: every revision commented out."""
    lines, now = [_HEADING], time.time()
    for scan in scans:
        lines.append(f"# {scan.cache} cache, {printable(scan.root)}, {size_text(scan.disk)}\n")
        for repo, _ in order([(repo, None) for repo in scan.repos], sort):
            head = f"{repo.id}, {count_text(len(repo.revisions), 'revision')}, {size_text(repo.size)}"
            lines.append(printable(f"# {head}, used {age_text(last_used(repo), now)}"))
            for each in repo.revisions:
                refs = f", refs {' '.join(each.refs)}" if each.refs else ", no ref names it"
                size = size_text(each.size)
                lines.append(
                    printable(f"#   {repo.id}@{each.commit}  # {size}{refs}, changed {age_text(each.modified, now)}")
                )
            lines.append("")
    return "\n".join(lines) + "\n"


def read_selection(text: str, scans: Sequence[CacheScan]) -> Selection:
    """What is selected in an edited list. Raises InputError, with the line's number, for a line that names nothing."""
    known = {
        printable(f"{repo.id}@{each.commit}"): (scan.root, repo.folder, each.commit)
        for scan in scans
        for repo in scan.repos
        for each in repo.revisions
    }
    chosen: Selection = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.split("  #", 1)[0].strip()
        if not name or name.startswith("#"):
            continue
        if name not in known:
            raise InputError(f"{name!r} is not in the list", where=f"line {number}", mend="put the line back as it was")
        root, folder, commit = known[name]
        chosen.setdefault(root, {}).setdefault(folder, []).append(commit)
    return chosen


def plans_of(scans: Sequence[CacheScan], chosen: Mapping[str, Mapping[str, Iterable[str]]]) -> list[Plan]:
    """One plan for each cache that has something selected."""
    return [plan_delete(scan, chosen[scan.root]) for scan in scans if chosen.get(scan.root)]


def edit_list(scans: Sequence[CacheScan], sort: str, *, edit: bool) -> list[Plan] | None:
    """Write the list, let it be edited, and ask until the answer is yes or no. None when nothing shall go."""
    handle, name = tempfile.mkstemp(prefix="tsumugu-cache-", suffix=".txt")
    path = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(list_text(scans, sort))
        print(f"The list is in {path}", flush=True)
        if edit:
            _open_editor(path)
        while True:
            try:
                plans = plans_of(scans, read_selection(path.read_text(encoding="utf-8"), scans))
            except InputError as error:
                print(f"{error}", flush=True)
                plans = []
            count = sum(plan.n_revisions for plan in plans)
            freed = size_text(sum(plan.freed for plan in plans))
            print(f"{count_text(count, 'revision')} selected counting for {freed}.", flush=True)
            answer = _ask("Delete them? y: yes, n: no, Enter: read the list again, e: open the editor ")
            if answer in ("n", "no"):
                return None
            if answer in ("y", "yes") and plans:
                return plans
            if answer in ("e", "edit"):
                _open_editor(path)
    finally:
        path.unlink(missing_ok=True)


def _ask(question: str) -> str:
    try:
        return input(question).strip().lower()
    except EOFError:
        print()
        return "n"


def _open_editor(path: Path) -> None:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise InputError("no editor is set", mend="set EDITOR, or open the file yourself and leave out --edit")
    try:
        subprocess.run([*shlex.split(editor, posix=sys.platform != "win32"), str(path)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"the editor failed: {error}", where=editor) from None
