"""Places that cannot be written to: a full disk, and a folder without permission."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("may not mount a small disk here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(params=["small disk", "limit"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in which a file of 2 MB does not fit."""
    if request.param == "small disk":
        if not ROOT:
            pytest.skip("only root may mount a small disk")
        yield from mounted(tmp_path / "full", "size=1m")
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    (tmp_path / "full").mkdir()
    yield tmp_path / "full"
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing may be written, not even by root."""
    if ROOT:
        yield from mounted(tmp_path / "closed", "ro")
        return
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    yield folder
    folder.chmod(0o700)
