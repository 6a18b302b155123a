"""The folder in which a corpus is prepared: what is finished in it survives a kill, and is gone on with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tsumugu.checkpoints.atomic import sync
from tsumugu.core.errors import InputError, TsumuguError
from tsumugu.corpus.blocks import check_unchanged
from tsumugu.corpus.inputs import TextSource
from tsumugu.corpus.shard_writer import tidy
from tsumugu.corpus.shards import FORMAT, VALIDATION
from tsumugu.text.files import read_json, write_json

DIGESTS, SIGNATURES = "digests.bin", "signatures.bin"
_LOCK, _PLAN, _STATE, _SPOOL = "lock", "plan.json", "state.json", "standard-input"
_COPIED = 1 << 20
NOTED = ("encoding_errors",)
"""Settings that may change on the way: where bytes are text, both ways of reading give the same."""


class Workspace:
    """A hidden folder beside the target.

    Attributes:
        path: the folder.
        state: what the last commit saved; None at the beginning.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}.preparing")
        self.state: dict[str, Any] | None = None

    @contextlib.contextmanager
    def locked(self, *, force: bool) -> Iterator[None]:
        """Nobody else prepares this target meanwhile. Failures of the disk become one clear error.

        Raises:
            InputError: another process prepares it, or it is there already and `force` is not given.
        """
        with self.said_clearly():
            _check_target(self.target, force=force)
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(self.path / _LOCK, blocking=False):
                    yield
            except Timeout:
                where = str(self.target)
                raise InputError("another tsumugu prepares this corpus", where=where, mend="wait for it") from None

    @contextlib.contextmanager
    def said_clearly(self) -> Iterator[None]:
        """Turn what the disk says into an error that says how to go on."""
        try:
            yield
        except TsumuguError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            room = "make room on the disk, then " if "space" in reason or "large" in reason else ""
            where = str(error.filename or self.path)
            raise InputError(
                f"cannot be written: {reason}", where=where, mend=f"{room}run it again: it goes on"
            ) from error

    def begin(self, settings: Mapping[str, Any], sources: Sequence[TextSource], *, force: bool) -> bool:
        """Find out whether there is something to go on with; write down what is to be done.

        Args:
            settings: what the result depends on, as plain values, and what is only noted (`NOTED`).

        Returns:
            Whether all is done but giving the folder its name.

        Raises:
            InputError: the work was begun with other settings, or on sources that have changed, and `force` is not
                given; with it, it is begun anew.
        """
        for each in [*self.path.rglob(".*")]:  # begun files of a run that was killed
            each.unlink()
        settings = json.loads(json.dumps(settings))
        done = read_json(self.path / "corpus.json")
        plan = read_json(self.path / _PLAN)
        try:
            if done or plan:
                _check_settings((done or plan).get("settings"), settings, str(self.target))
            if done:
                return True
            self.state = (read_json(self.path / _STATE) or None) if plan else None
            if self.state:
                check_unchanged(plan["sources"], sources, self.state["position"])
        except InputError:
            if not force:
                raise
            plan, self.state = {}, None
        if not plan:
            self._empty()
        write_json(self.path / _PLAN, {"settings": settings, "sources": [each.state() for each in sources]})
        return False

    def commit(self, state: Mapping[str, Any]) -> None:
        """Make `state` what the next run goes on with. What it speaks of must be on the disk."""
        write_json(self.path / _STATE, state)

    def spool(self) -> tuple[Path, str]:
        """Copy standard input into the folder, so that it can be read more than once; give its checksum too."""
        path = self.path / _SPOOL
        digest = hashlib.sha256()
        if sys.stdin.isatty() and path.is_file():
            with path.open("rb") as file:
                while piece := file.read(_COPIED):
                    digest.update(piece)
            return path, digest.hexdigest()
        with path.open("wb") as file:
            while piece := sys.stdin.buffer.read(_COPIED):
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return path, digest.hexdigest()

    def finish(self) -> None:
        """Remove what only the work needed, and give the folder its name."""
        for folder in (self.path, self.path / VALIDATION):
            tidy(folder)
        for name in (DIGESTS, SIGNATURES, _STATE, _PLAN, _SPOOL):
            (self.path / name).unlink(missing_ok=True)
        sync(self.path)
        old = self.path.with_name(f".{self.target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.target.exists():
            self.target.rename(old)
        (self.path / _LOCK).unlink(missing_ok=True)
        self.path.rename(self.target)
        sync(self.target.parent)
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Forget all work."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _empty(self) -> None:
        for each in self.path.iterdir():
            if each.is_dir():
                shutil.rmtree(each)
            elif each.name not in (_LOCK, _SPOOL):
                each.unlink()


def _check_target(target: Path, *, force: bool) -> None:
    where = str(target)
    if not target.exists():
        return
    if not target.is_dir() or target.is_symlink():
        raise InputError("this is no folder", where=where, mend="choose another name")
    if any(target.iterdir()):
        if not force:
            raise InputError("the folder is there already", where=where, mend="choose another name, or pass --force")
        if read_json(target / "corpus.json").get("format") != FORMAT:
            raise InputError("this folder is no prepared corpus", where=where, mend="choose another name")


def _check_settings(before: Any, now: Mapping[str, Any], where: str) -> None:
    before = before if isinstance(before, dict) else {}
    keys = [each for each in dict.fromkeys([*now, *before]) if each not in NOTED and before.get(each) != now.get(each)]
    if keys:
        changed = "; ".join(f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}" for key in keys[:3])
        mend = "give the same, or start anew with --force"
        raise InputError(f"the preparation was begun with other settings ({changed})", where=where, mend=mend)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
