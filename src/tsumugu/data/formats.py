"""Which format a file of rows has: by its name, or as the caller says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from tsumugu.core.errors import InputError, did_you_mean

FORMATS = ("txt", "jsonl", "json", "csv", "tsv", "parquet")
COMPRESSIONS = ("gz", "bz2", "xz", "zst")
_ALIASES = {"ndjson": "jsonl", "text": "txt", "pq": "parquet"}
_NAMED = re.compile(rf".+\.(?:{'|'.join((*FORMATS, *_ALIASES))})(?:\.(?:{'|'.join(COMPRESSIONS)}))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileFormat:
    """The format of the rows, and the compression around it (None: plain)."""

    rows: str
    compression: str | None = None


def is_row_file(name: str) -> bool:
    """Whether a name ends as that of a file of rows: ``rows.CSV.gz``."""
    return _NAMED.fullmatch(name) is not None


def file_format(name: str | None, wanted: str | None = None, *, default: str | None = None) -> FileFormat:
    """The format of a file called `name` (None: a standard stream), unless `wanted` says it.

    Args:
        name: the file's name; its last suffixes decide, in any case: ``rows.CSV.gz``.
        wanted: a format that overrules the suffix, such as ``jsonl`` or ``csv.gz``.
        default: the format where neither says anything.

    Raises:
        InputError: the suffix or the format is not a known one, or Parquet is compressed from outside.
    """
    suffixes = [each[1:].lower() for each in PurePath(name).suffixes[-2:]] if name else []
    packed = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else None
    suffix = suffixes[-1] if suffixes else None
    if wanted is not None:
        words = wanted.lower().removeprefix(".").split(".")
        if len(words) == 2 and words[1] in COMPRESSIONS:
            packed = words.pop()
        rows = _ALIASES.get(words[0], words[0])
        if len(words) != 1 or rows not in FORMATS:
            raise InputError(f"unknown format {wanted!r}", mend=did_you_mean(wanted, FORMATS))
    else:
        rows = _ALIASES.get(suffix or "", suffix or "")
        if rows not in FORMATS:
            if suffix is not None or default is None:
                said = f"the suffix .{suffix} is no format of rows" if suffix else "the name has no suffix"
                raise InputError(said, where=name, mend=f"use one of {', '.join('.' + each for each in FORMATS)}")
            rows = default
    if rows == "parquet" and packed is not None:
        raise InputError(f"Parquet is not wrapped in .{packed}", where=name, mend="it compresses its columns itself")
    return FileFormat(rows, packed)
