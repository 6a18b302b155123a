"""What is in the caches, and what is known of a model without opening its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tsumugu.hub import entries, huggingface
from tsumugu.hub.names import SHORT_NAMES
from tsumugu.hub.resolve import Resolved


@dataclass(frozen=True)
class CachedModel:
    """A model in a cache. `size` is in bytes; `whole` is false when a download was broken off."""

    name: str
    kind: Literal["hub", "pypi"]
    revision: str
    path: Path
    size: int
    licence: str | None
    whole: bool


def cached_models() -> list[CachedModel]:
    """The models in tsumugu's own cache, then those in the hub's."""
    found = [
        CachedModel(
            name=f"pypi:{each.dist}",
            kind="pypi",
            revision=each.version,
            path=each.model,
            size=each.size,
            licence=each.licence or _known_licence(each),
            whole=True,
        )
        for each in entries.whole_entries()
    ]
    for name, folder, whole in huggingface.cached():
        licence = huggingface.licence(folder)
        found.append(CachedModel(name, "hub", folder.name, folder, size(folder), licence, whole))
    return found


def short_name_path(name: str) -> Path | None:
    """Where the model with a short name of ours is in the cache; None when it is not."""
    dist, version = entries.parse(SHORT_NAMES[name].source.removeprefix("pypi:"))
    entry = entries.find(dist, version)
    return entry.model if entry else None


def licence(found: Resolved) -> str | None:
    """The licence as the wheel, the model card or our own table names it."""
    folder = found.path if found.path.is_dir() else found.path.parent
    if found.kind == "pypi":
        entry = entries.read(folder)
        return (entry.licence or _known_licence(entry)) if entry else None
    return huggingface.licence(folder)


def size(path: Path) -> int:
    """The bytes of a file, or of all files in a folder (what links point at, for a snapshot of the hub)."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def _known_licence(entry: entries.Entry) -> str | None:
    source = f"pypi:{entry.dist}=={entry.version}"
    return next((each.licence for each in SHORT_NAMES.values() if each.source == source), None)
