"""What a user names as raw text, as a list of single sources: files, folders, patterns, standard input, datasets."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsumugu.core.errors import InputError
from tsumugu.data.formats import FORMATS, is_row_file
from tsumugu.data.hub_datasets import DATASET


@dataclass(frozen=True)
class TextSource:
    """One file, standard input, or one split of a dataset.

    Attributes:
        argument: which of the user's inputs it comes from, counted from 0.
        name: for messages.
        path: None where it is no file.
        held_back: its documents are for validation.
    """

    argument: int
    name: str
    path: Path | None
    held_back: bool = False

    def state(self) -> tuple[str, int, int] | None:
        """Name, size and time of change of a file: whether it is still the one that was read."""
        if self.path is None:
            return None
        try:
            found = self.path.stat()
        except OSError:  # the reader will say so, if it comes to it
            return self.name, 0, 0
        return self.name, found.st_size, found.st_mtime_ns


def find_sources(inputs: Sequence[str | Path], held_back: Sequence[str | Path] = ()) -> list[TextSource]:
    """All sources, in an order that depends on names alone; those held back come first. No file comes twice.

    A folder stands for the files below it whose suffix is known, hidden ones left out; a pattern (``*``, ``?``,
    ``[…]``, ``**``) for the files that it fits; ``-`` for standard input; ``hf:NAME[:SPLIT]`` for a dataset.

    Raises:
        InputError: an input is not there, or names no file of text.
    """
    found: list[TextSource] = []
    seen: set[Path | str] = set()
    held = [(each, True) for each in held_back]
    for number, (given, validation) in enumerate([*held, *((each, False) for each in inputs)]):
        for source in _sources(number, str(given), validation):
            key = source.path.resolve() if source.path is not None else source.name
            if key not in seen:
                seen.add(key)
                found.append(source)
    if all(each.held_back for each in found):
        raise InputError("no input is given", mend="name files or folders of text, or - for standard input")
    return found


def _sources(number: int, given: str, held_back: bool) -> Iterator[TextSource]:
    if not given:
        raise InputError("the name of an input is empty")
    if given == "-" or given.startswith(DATASET):
        yield TextSource(number, given, None, held_back)
        return
    path = Path(given)
    if path.is_dir():
        paths = _below(path)
        if not paths:
            known = ", ".join(f".{each}" for each in FORMATS)
            raise InputError("there is no file of text in this folder", where=given, mend=f"known suffixes: {known}")
    elif path.exists():
        paths = [path]
    elif not glob.has_magic(given):
        raise InputError("there is no such file or folder", where=given)
    else:
        paths = [Path(each) for each in sorted(glob.glob(given, recursive=True))]  # noqa: PTH207  (Path.glob takes no absolute one)
        paths = [each for each in paths if not each.is_dir()]
        if not paths:
            raise InputError("no file fits this pattern", where=given)
    for each in paths:
        yield TextSource(number, str(each), each, held_back)


def _below(folder: Path) -> list[Path]:
    found = []
    for each in folder.rglob("*"):
        parts = each.relative_to(folder).parts
        if is_row_file(each.name) and not any(part.startswith(".") for part in parts) and each.is_file():
            found.append((parts, each))
    return [each for _, each in sorted(found)]
