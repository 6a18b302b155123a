"""Errors that say what is wrong, where, and how to mend it.

Every error a user can cause is a `TsumuguError`. The command line prints it as one line and leaves with code 2; a
traceback there is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TsumuguError(Exception):
    """What is wrong, where it was found, and what the reader can do about it.

    Args:
        what: one clause in plain words, without a full stop.
        where: the file, key, row, tensor or argument; left out when `what` names it.
        mend: what to do; left out only when there is nothing to do.
    """

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(what)

    def __str__(self) -> str:
        line = self.what if self.where is None else f"{self.where}: {self.what}"
        line = line.rstrip(".") if self.mend is None else f"{line.rstrip('.')}; {self.mend}"
        return one_line(line)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.what, self.where, self.mend)


class ConfigError(TsumuguError, ValueError):
    """A configuration has an unknown key or a value out of range."""


class UnknownNameError(TsumuguError, KeyError):
    """A name (family, task, verb, tensor format…) is not in its table."""

    __str__ = TsumuguError.__str__


class InputError(TsumuguError, ValueError):
    """What a user handed in (text, tensors, rows) cannot be used."""


class CheckpointError(TsumuguError, ValueError):
    """A checkpoint's files are broken, lie about themselves, or do not fit the model."""


class HubError(TsumuguError, OSError):
    """A model could not be found or fetched."""

    __str__ = TsumuguError.__str__


class MissingExtraError(TsumuguError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}", mend=f"pip install 'tsumugu[{extra}]'")


def one_line(text: str, *, limit: int = 1000) -> str:
    """`text` as one line of at most about `limit` characters that is safe to print.

    Names and values from untrusted files end up in messages, so control characters (a terminal obeys them) and lone
    surrogates are shown as escapes.
    """
    half = limit // 2
    text = text if len(text) <= limit else f"{text[:half]} … {text[-half:]}"
    text = " ".join(text.split())
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _restored(cls: type[TsumuguError], what: str, where: str | None, mend: str | None) -> TsumuguError:
    """Unpickle: errors travel between processes, and the constructors of the classes differ."""
    error = cls.__new__(cls)
    TsumuguError.__init__(error, what, where=where, mend=mend)
    return error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing is near."""
    lowered = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 12) -> str:
    """The mend for a misspelt name: the nearest known one, or the list of them all."""
    names = sorted(known)
    near = nearest(name, names)
    if near is not None:
        return f"did you mean {near!r}?"
    shown = ", ".join(names[:limit])
    return f"known: {shown}{', …' if len(names) > limit else ''}"
