"""Caches that huggingface_hub itself made, by downloading from a hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from caches import fill, handmade
from hub_server import Hub, serve


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees, let alone touches, a cache of whoever runs it."""
    for name in [each for each in os.environ if each.startswith(("HF_", "HUGGINGFACE_", "XDG_", "TSUMUGU_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("TRANSFORMERS_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    home = tmp_path / "user"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    with serve() as server:
        yield server


@pytest.fixture(scope="session")
def template(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with every kind of thing in it, filled once."""
    root = tmp_path_factory.mktemp("template") / "hub"
    fill(hub, root)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy of that cache for one test."""
    copy = tmp_path / "hub"
    subprocess.run(["cp", "-a", str(template), str(copy)], check=True)
    return copy


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """A cache as Windows without developer mode has it: files in the snapshots, no links, an empty ``blobs``."""
    path = tmp_path / "windows"
    handmade(path)
    return path
