"""Scanning a model cache of 5,000 repos, two revisions each, three files each: against huggingface_hub's own scan.

Both scans run in turn, each in a process of its own that has seen the cache before, and both must say the same of every
repo, revision and file. `du` on the same tree shows what the system calls alone cost.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.harness import Report, child

OURS = """
import sys, time
from tsumugu.hub.cache.scan import scan_hub
began = time.perf_counter(); seen = scan_hub(sys.argv[1]); print(time.perf_counter() - began)
"""
THEIRS = """
import sys, time
from huggingface_hub import scan_cache_dir
began = time.perf_counter(); seen = scan_cache_dir(sys.argv[1]); print(time.perf_counter() - began)
"""
DU = """
import subprocess, sys, time
began = time.perf_counter(); subprocess.run(["du", "-sb", sys.argv[1]], stdout=-3); print(time.perf_counter() - began)
"""
SAME = """
import sys
from huggingface_hub import scan_cache_dir
from tsumugu.hub.cache.scan import scan_hub
ours, theirs = scan_hub(sys.argv[1]), scan_cache_dir(sys.argv[1])
assert {
    (r.id, r.path, r.size, r.n_files, r.accessed, r.modified, v.commit, v.path, v.size, v.modified, frozenset(v.refs),
     frozenset((f.path, f.blob.path, f.blob.size, f.blob.accessed, f.blob.modified) for f in v.files))
    for r in ours.repos for v in r.revisions
} == {
    (r.cache_id, str(r.repo_path), r.size_on_disk, r.nb_files, r.last_accessed, r.last_modified, v.commit_hash,
     str(v.snapshot_path), v.size_on_disk, v.last_modified, v.refs,
     frozenset((str(f.file_path), str(f.blob_path), f.size_on_disk, f.blob_last_accessed, f.blob_last_modified)
               for f in v.files))
    for r in theirs.repos for v in r.revisions
}
assert ours.size == theirs.size_on_disk and not theirs.warnings
"""
BROWSER = """
import asyncio, sys, time
from tsumugu.cli.cache_browser import CacheBrowser
from tsumugu.hub.cache.scan import scan_hub
async def main():
    seen = scan_hub(sys.argv[1])
    began = time.perf_counter()
    browser = CacheBrowser([seen])
    async with browser.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        print(time.perf_counter() - began)
asyncio.run(main())
"""
HUB_CLI = "import sys; sys.argv = ['hf', 'cache', 'ls', '-q', '--cache-dir', sys.argv[1]]; "
HUB_CLI += "from huggingface_hub.cli.hf import main; main()"


def make(root: Path, repos: int) -> None:
    """A cache as huggingface_hub lays it out, with tiny payloads: what costs is their number."""
    for number in range(repos):
        repo = root / f"models--org{number % 50}--repo{number}"
        (repo / "blobs").mkdir(parents=True)
        (repo / "refs").mkdir()
        for revision in range(2):
            commit = hashlib.sha1(f"{number} {revision}".encode()).hexdigest()
            snapshot = repo / "snapshots" / commit
            snapshot.mkdir(parents=True)
            (repo / "refs" / "main").write_text(commit)
            for name in ("config.json", "tokenizer.json", "model.safetensors"):
                text = f"{number} {revision} {name}"
                blob = hashlib.sha256(text.encode()).hexdigest()
                (repo / "blobs" / blob).write_text(text)
                (snapshot / name).symlink_to(f"../../blobs/{blob}")


def run(report: Report) -> None:
    """Compare scans, whole commands, and the opening of the browser."""
    repos = 50 if report.smoke else 5000
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.realpath(Path(folder) / "hub")
        make(Path(root), repos)
        child("-c", SAME, root)

        def took(code: str) -> float:
            return float(child("-c", code, root)[1])

        what = f"{repos} repos x 2 revisions x 3 files"
        scan = partial(took, OURS)
        report.compare(
            f"scan {what}", scan, partial(took, THEIRS), peer_name="scan_cache_dir", limit="system calls, see du"
        )
        report.compare("the same scan", scan, partial(took, DU), peer_name="du -sb", limit="du lists and stats only")
        report.compare(
            "tsumugu cache scan -q, whole command",
            lambda: child("-m", "tsumugu", "cache", "scan", "-q", "--dir", root)[0],
            lambda: child("-c", HUB_CLI, root)[0],
            peer_name="hf cache ls -q",
            limit="the scan, and starting Python",
        )
        report.compare(
            "open the browser on it",
            partial(took, BROWSER),
            lambda: 1.0,
            peer_name="one second",
            limit="Textual's start, one tree node a repo",
        )
