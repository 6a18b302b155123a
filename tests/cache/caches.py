"""What the test caches hold, and how to look at a cache without the code under test."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from hub_server import Hub, commit_of, etag_of
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store, try_link_from_shared_store

MODEL, TAGGED, SHARED, SECOND = "org/alpha", "org/tagged", "org/shared-one", "org/shared-two"
DATASET, SPACE = "kenkyu/corpus-ja", "org/space"
OLD, NEW = commit_of("model", MODEL, 0), commit_of("model", MODEL, 1)
V1, PULL = commit_of("model", TAGGED, 0), commit_of("model", TAGGED, 1)
XET_HASH = "ab" * 32
PAYLOAD = b"shared payload " * 1000


def fill(hub: Hub, root: Path) -> None:
    """Download everything with huggingface_hub's own functions."""
    disable_progress_bars()
    common = {"config.json": b'{"a": 1}', "onnx/model.onnx": b"o" * 3000}
    hub.push(MODEL, {**common, "model.safetensors": b"1" * 5000})
    get(hub, root, MODEL)
    hub.push(MODEL, {**common, "model.safetensors": b"2" * 7000, "new.txt": b"new"})
    get(hub, root, MODEL)
    with contextlib.suppress(EntryNotFoundError):
        hf_hub_download(MODEL, "absent.json", cache_dir=root, endpoint=hub.url)
    hub.push(TAGGED, {"config.json": b"{}", "w.bin": b"t" * 2000}, ref="v1")
    hub.push(TAGGED, {"config.json": b"{}", "w.bin": b"u" * 2500}, ref="refs/pr/1")
    for ref in ("v1", "refs/pr/1"):
        get(hub, root, TAGGED, revision=ref)
    data = {"データ/第一章.csv": "あ,い\n".encode() * 400, "README.md": b"# corpus"}
    hub.push(DATASET, data, kind="dataset")
    get(hub, root, DATASET, repo_type="dataset")
    hub.push(SPACE, {"app.py": b"print()"}, kind="space")
    get(hub, root, SPACE, repo_type="space")
    for name in (SHARED, SECOND):
        hub.push(name, {"config.json": name.encode(), "big.bin": PAYLOAD})
        get(hub, root, name)
    share(root)


def get(hub: Hub, root: Path, name: str, **options: str) -> Path:
    return Path(snapshot_download(name, cache_dir=root, endpoint=hub.url, max_workers=2, **options))


def share(root: Path) -> None:
    """Put the payload of two repos into the cache-wide store, by huggingface_hub's own hand."""
    first, second = (root / folder(name) / "blobs" / etag_of(PAYLOAD) for name in (SHARED, SECOND))
    size = len(PAYLOAD)
    assert publish_blob_to_shared_store(blob_path=str(first), xet_hash=XET_HASH, cache_dir=root, expected_size=size)
    second.unlink()
    assert try_link_from_shared_store(blob_path=str(second), xet_hash=XET_HASH, cache_dir=root, expected_size=size)


def folder(name: str, kind: str = "models") -> str:
    return f"{kind}--" + name.replace("/", "--")


def handmade(root: Path) -> None:
    for revision, text in (("a" * 40, "one"), ("b" * 40, "twotwo")):
        at = root / "models--org--windows" / "snapshots" / revision
        (at / "sub").mkdir(parents=True)
        (at / "config.json").write_text(text)
        (at / "sub" / "weights.bin").write_text(text * 100)
    refs = root / "models--org--windows" / "refs"
    refs.mkdir()
    (refs / "main").write_text("b" * 40)
    (root / "models--org--windows" / "blobs").mkdir()


def du(path: Path) -> int:
    """What ``du -sb`` says: apparent bytes of files, links and folders."""
    done = subprocess.run(["du", "-sb", str(path)], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[0])


def contents(root: Path) -> dict[str, bytes]:
    """Every file that a revision offers, by path, read through its link."""
    root = root.resolve()
    return {
        str(file.file_path.relative_to(root)): file.file_path.read_bytes()
        for repo in scan_cache_dir(root).repos
        for revision in repo.revisions
        for file in revision.files
    }


def as_huggingface(root: Path) -> dict[str, object]:
    """Everything that huggingface_hub's own scan says, as plain values."""
    found = scan_cache_dir(root)
    return {
        "size": found.size_on_disk,
        "incomplete": {(str(each.file_path), each.size_on_disk) for each in found.incomplete_files},
        "repos": {
            repo.cache_id: (
                str(repo.repo_path),
                repo.size_on_disk,
                repo.nb_files,
                repo.last_accessed,
                repo.last_modified,
                {
                    each.commit_hash: (
                        str(each.snapshot_path),
                        each.size_on_disk,
                        each.last_modified,
                        each.refs,
                        {
                            (
                                str(file.file_path),
                                str(file.blob_path),
                                file.size_on_disk,
                                file.blob_last_accessed,
                                file.blob_last_modified,
                            )
                            for file in each.files
                        },
                    )
                    for each in repo.revisions
                },
            )
            for repo in found.repos
        },
    }


def as_ours(root: Path) -> dict[str, object]:
    """The same, from tsumugu's scan."""
    from tsumugu.hub.cache import Kind, scan

    found = scan(root=root)
    return {
        "size": found.size,
        "incomplete": {
            (each.path, each.disk) for repo in found.repos for each in repo.leftovers if each.kind is Kind.INCOMPLETE
        },
        "repos": {
            repo.id: (
                repo.path,
                repo.size,
                repo.n_files,
                repo.accessed,
                repo.modified,
                {
                    each.commit: (
                        each.path,
                        each.size,
                        each.modified,
                        frozenset(each.refs),
                        {
                            (file.path, file.blob.path, file.blob.size, file.blob.accessed, file.blob.modified)
                            for file in each.files
                        },
                    )
                    for each in repo.revisions
                },
            )
            for repo in found.repos
            if not repo.problems
        },
    }


def offline(code: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with only the cache to load from."""
    import sys

    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(root)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
