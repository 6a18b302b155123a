"""A home for the examples: its cache holds the two small models, and nothing that an example does leaves it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tsumugu.hub import pypi


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def home_with_models(empty_home: Path, smollm2_path: Path, minilm_path: Path) -> Path:
    for path in (smollm2_path, minilm_path):
        entry = pypi.read(path if path.is_dir() else path.parent)
        assert entry is not None
        target = empty_home / ".cache" / "tsumugu" / "models" / "pypi" / entry.dist / entry.version
        shutil.copytree(entry.folder, target, copy_function=_link)
    return empty_home


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)


Runner = Callable[[Path, list[dict[str, str]]], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def run_page(empty_home: Path, environment: dict[str, str]) -> Iterator[Runner]:
    """Runs the examples of a page in a folder; one process with the heavy imports serves all pages."""
    runner = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("runner.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"HOME": str(empty_home)},
    )
    assert runner.stdin is not None
    assert runner.stdout is not None
    feed, answers = runner.stdin, runner.stdout

    def run(folder: Path, steps: list[dict[str, str]]) -> list[dict[str, Any]]:
        feed.write(json.dumps({"folder": str(folder), "steps": steps}) + "\n")
        feed.flush()
        results: list[dict[str, Any]] | None = json.loads(answers.readline())
        assert results is not None, "the page's process died"
        return results

    yield run
    feed.close()
    runner.wait(timeout=30)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """What the examples see: our program first in the path, no network, no settings of whoever runs the tests."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TSUMUGU_", "XDG_", "PYTEST_", "HUGGINGFACE_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return kept | {
        "PATH": path,
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "TSUMUGU_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # the models are small, and threads that wait for busy cores are slow
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
    }
