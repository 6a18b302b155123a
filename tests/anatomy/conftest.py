"""A browser that tells what it fetched and what it complained about."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.threads import one_thread as one_thread

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass(frozen=True)
class Visit:
    """What became of a page: its DOM, what its scripts and styles complained about, and what was asked of a network."""

    dom: str
    complaints: list[str]
    requests: list[str]


@pytest.fixture
def visit(tmp_path: Path) -> Callable[[Path], Visit]:
    """Opens a page in Chromium."""
    if BROWSER is None:
        pytest.skip("chromium is not here")

    def opened(page: Path) -> Visit:
        log = tmp_path / "net.json"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        flags += ["--no-first-run", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"]
        flags += ["--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom", page.as_uri()]
        done = subprocess.run([str(BROWSER), *flags], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return Visit(done.stdout, complaints, _requests(log))

    return opened


def _requests(log: Path) -> list[str]:
    """The addresses on a network that a page asked for; what the browser asks for its own ends has no origin."""
    found = json.loads(log.read_text("utf-8"))
    asked = [event["params"] for event in found["events"] if "url" in event.get("params", {})]
    asked = [each for each in asked if each.get("initiator", "not an origin") != "not an origin"]
    return [each["url"] for each in asked if each["url"].startswith(("http:", "https:", "ws:", "wss:"))]
