"""Pages and drawings that verbs write: their names are checked before anything is loaded, the files appear whole."""

from __future__ import annotations

from pathlib import Path

from tsumugu.cli.console import stderr
from tsumugu.core.errors import InputError


def check_page(path: Path | None, option: str = "--html", suffixes: tuple[str, ...] = (".html", ".htm")) -> None:
    """Refuse a name that does not end as such a file does."""
    if path is not None and path.suffix.lower() not in suffixes:
        raise InputError(f"{path.name!r} does not end in {suffixes[0]}", where=option)


def write_page(path: Path, text: str, *, quiet: bool) -> None:
    """Write a file, and say so."""
    from tsumugu.checkpoints.atomic import new_file

    with new_file(path) as partial:
        partial.write_text(text, "utf-8")
    if not quiet:
        stderr().print(f"written: {path}", markup=False)
