"""Models from PyPI in tsumugu's own cache. Finding one reads a small file, looks at sizes, and loads no library."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsumugu.core.errors import HubError
from tsumugu.hub.home import pypi_models

MANIFEST = "manifest.json"
"""Ours, in every entry of the cache; a wheel's own file of that name is left out."""
DIST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.!+_-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Entry:
    """A model in the cache that came from PyPI.

    `model` is what loads: the folder, or the one GGUF file in it. `manifest` holds dist, version, wheel file name and
    hash, files with size and SHA-256, licence, and the time of the pull.
    """

    dist: str
    version: str
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def model(self) -> Path:
        return self.folder / str(self.manifest["model"])

    @property
    def size(self) -> int:
        """The size of its files in bytes."""
        return sum(int(each["size"]) for each in self.manifest["files"])

    @property
    def licence(self) -> str | None:
        return self.manifest.get("licence")


def parse(text: str) -> tuple[str, str | None]:
    """``dist[==version]`` as (normalised dist, version).

    Raises:
        HubError: it is not of that form.
    """
    dist, equals, version = text.partition("==")
    if not DIST.fullmatch(dist) or (equals and not VERSION.fullmatch(version)):
        raise HubError(f"pypi:{text[:80]!s} names no package", mend="write pypi:NAME or pypi:NAME==VERSION")
    return canonical(dist), version or None


def find(dist: str, version: str | None = None) -> Entry | None:
    """The cached entry of `dist`, the newest when `version` is None; None when absent or damaged."""
    parent = pypi_models() / dist
    if version is not None and (entry := read(parent / version)):
        return entry
    try:
        names = [each.name for each in parent.iterdir()]
    except OSError:
        return None
    if version is None and len(names) == 1:
        return read(parent / names[0])
    return _newest(parent, names, version)


def whole_entries() -> list[Entry]:
    """Every whole model that came from PyPI, sorted by name."""
    found = (read(each) for each in sorted(pypi_models().glob("*/*")))
    return [each for each in found if each is not None]


def read(folder: Path) -> Entry | None:
    """The entry in `folder`; None unless every file of its manifest is there in its size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        whole = all((folder / each["path"]).stat().st_size == each["size"] for each in manifest["files"])
        if whole and manifest["files"]:
            return Entry(str(manifest["dist"]), str(manifest["version"]), folder, manifest)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _newest(parent: Path, names: list[str], wanted: str | None) -> Entry | None:
    from packaging.version import InvalidVersion, Version

    versions: list[tuple[Version, str]] = []
    for name in names:
        with contextlib.suppress(InvalidVersion):
            if wanted is None or Version(name) == Version(wanted):
                versions.append((Version(name), name))
    found = (read(parent / name) for _, name in sorted(versions, reverse=True))
    return next((each for each in found if each is not None), None)


def canonical(name: str) -> str:
    """A distribution's normalised name. Source: Python packaging specifications, "Names and normalization"."""
    return re.sub(r"[-_.]+", "-", name).lower()
