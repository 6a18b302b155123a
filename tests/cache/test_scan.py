"""The scan says what huggingface_hub's says, and its total is what ``du`` says."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from caches import DATASET, MODEL, NEW, OLD, SHARED, as_huggingface, as_ours, du, folder, get
from hub_server import Hub
from huggingface_hub import scan_cache_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsumugu.core.errors import InputError
from tsumugu.hub.cache import CacheScan, Kind, scan


def parts(seen: CacheScan) -> dict[Kind, tuple[int, int]]:
    return {part.kind: (part.count, part.disk) for part in seen.parts}


def test_agrees_with_huggingface_hub_and_du(root: Path) -> None:
    assert as_ours(root) == as_huggingface(root)
    seen = scan(root=root)
    assert seen.disk == du(root) == sum(part.disk for part in seen.parts)
    assert not seen.unreadable
    assert Kind.STRAY not in parts(seen)
    assert Kind.ORPHAN not in parts(seen)
    for repo in seen.repos:
        assert repo.disk == du(Path(repo.path)), repo.id


def test_agrees_on_a_cache_that_the_hf_command_filled(hub: Hub, template: Path, tmp_path: Path) -> None:
    root = tmp_path / "cli"
    hf = Path(sys.executable).with_name("hf")
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(root), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    for arguments in ([MODEL], [DATASET, "--repo-type", "dataset"], [MODEL, "config.json", "--revision", OLD]):
        subprocess.run([hf, "download", *arguments], env=environment, check=True, capture_output=True, timeout=60)
    assert as_ours(root) == as_huggingface(root)
    assert scan(root=root).disk == du(root)
    assert {each.commit for repo in scan(root=root).repos for each in repo.revisions if repo.name == MODEL} == {
        OLD,
        NEW,
    }


def test_windows_style_cache(by_hand: Path) -> None:
    assert as_ours(by_hand) == as_huggingface(by_hand)
    seen = scan(root=by_hand)
    assert seen.disk == du(by_hand)
    [repo] = seen.repos
    assert {each.commit[0]: (each.size, len(each.files)) for each in repo.revisions} == {"a": (303, 2), "b": (606, 2)}


def test_a_real_download_without_symlinks(hub: Hub, template: Path, tmp_path: Path) -> None:
    root = tmp_path / "copies"
    call = f"snapshot_download({MODEL!r}, endpoint={hub.url!r}, cache_dir={str(root)!r})"
    code = f"from huggingface_hub import snapshot_download; {call}"
    environment = {**os.environ, "HF_HUB_DISABLE_SYMLINKS": "1", "HF_HUB_DISABLE_SYMLINKS_WARNING": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=60)
    assert not [each for each in root.rglob("*") if each.is_symlink()]
    assert as_ours(root) == as_huggingface(root)
    assert scan(root=root).disk == du(root)


def test_everything_is_counted_as_what_it_is(root: Path) -> None:
    repo = root / folder(MODEL)
    (repo / "blobs" / "cafe.12345678.incomplete").write_bytes(b"x" * 100)
    (repo / "blobs" / ("e" * 40)).write_bytes(b"x" * 200)
    (repo / "blobs" / "tmp_12345678-1234-1234-1234-123456789abc").touch()
    (repo / "refs" / "gone").write_text("f" * 40)
    (repo / "snapshots" / NEW / "lost.bin").symlink_to("../../blobs/missing")
    (root / "version.txt").write_text("1")
    (root / "models--not-a-folder").write_text("1")
    (root / "tmpabc12345").mkdir()
    (root / "tmpabc12345" / "dummy_file_src").touch()
    (root / "blobs" / "cd").mkdir()
    (root / "blobs" / "cd" / ("cd" * 32)).write_bytes(b"x" * 300)
    seen = scan(root=root)
    assert seen.disk == du(root)
    found = {each.kind: each for each in seen.junk if each.kind is not Kind.LOCK}
    assert set(found) == {
        Kind.INCOMPLETE, Kind.ORPHAN, Kind.TEMPORARY, Kind.DEAD_REF, Kind.BROKEN, Kind.ORPHAN_SHARED,
    }  # fmt: skip
    assert found[Kind.INCOMPLETE].disk == 100
    assert found[Kind.ORPHAN].disk == 200
    assert found[Kind.ORPHAN_SHARED].disk == 300
    assert parts(seen)[Kind.STRAY][0] == 2
    assert parts(seen)[Kind.TEMPORARY][0] == 3
    assert parts(seen)[Kind.LOCK][0] > 5


def test_corrupted_repos_are_reported_as_huggingface_hub_reports_them(root: Path) -> None:
    broken = root / folder(MODEL)
    (broken / "snapshots" / OLD / "config.json").unlink()
    (broken / "snapshots" / OLD / "config.json").symlink_to("../../blobs/missing")
    (root / folder("org/tagged") / "refs" / "gone").write_text("f" * 40)
    shutil.rmtree(root / folder("org/space", "spaces") / "snapshots")
    (root / "models--org--flat" / "snapshots").mkdir(parents=True)
    (root / "models--org--flat" / "snapshots" / "file").touch()
    (root / "models--org--refs-file" / "snapshots").mkdir(parents=True)
    (root / "models--org--refs-file" / "refs").touch()
    assert as_ours(root) == as_huggingface(root)
    seen = scan(root=root)
    assert len([repo for repo in seen.repos if repo.problems]) == len(scan_cache_dir(root).warnings) == 5
    assert seen.disk == du(root)


def test_hard_links_count_once(root: Path) -> None:
    blobs = root / folder(MODEL) / "blobs"
    big = max(blobs.iterdir(), key=lambda each: each.stat().st_size)
    os.link(big, blobs / ("0" * 40))
    os.link(big, root / folder(SHARED) / "blobs" / ("1" * 40))
    seen = scan(root=root)
    assert seen.disk == du(root)
    for repo in seen.repos:
        assert repo.disk == du(Path(repo.path))


def test_links_out_of_the_cache(root: Path, tmp_path: Path) -> None:
    """A repo that lives on another disk is read as huggingface_hub reads it, but its bytes are not of this cache."""
    elsewhere = tmp_path / "elsewhere"
    (root / folder(MODEL)).rename(elsewhere)
    (root / folder(MODEL)).symlink_to(elsewhere)
    (tmp_path / "secret").write_text("secret")
    snapshot = root / folder("org/tagged") / "snapshots"
    [*_, revision] = snapshot.iterdir()
    (revision / "secret").symlink_to(tmp_path / "secret")
    (revision / "loop").symlink_to("loop2")
    (revision / "up").symlink_to("../../..")
    assert as_ours(root) == as_huggingface(root)
    seen = scan(root=root)
    assert seen.disk == du(root)
    linked = next(each for each in seen.repos if each.name == MODEL)
    assert linked.is_link
    assert linked.disk == len(str(elsewhere))
    assert linked.size > 10_000


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    files=st.dictionaries(names, st.binary(max_size=300), max_size=6),
    nested=st.dictionaries(names, st.binary(max_size=300), max_size=3),
    strays=st.lists(names, max_size=4),
)
def test_any_names_and_sizes_agree(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], nested: dict[str, bytes], strays: list[str]
) -> None:
    root = tmp_path_factory.mktemp("any") / "hub"
    repo = root / "datasets--a--b"
    commit = "c" * 40
    (repo / "blobs").mkdir(parents=True)
    (repo / "snapshots" / commit / "inner").mkdir(parents=True)
    for prefix, up, group in (("", "../../", files), ("inner/", "../../../", nested)):
        for name, data in group.items():
            blob = hashlib.sha256(data).hexdigest()
            (repo / "blobs" / blob).write_bytes(data)
            at = repo / "snapshots" / commit / f"{prefix}{name}"
            if not at.is_dir():
                at.symlink_to(f"{up}blobs/{blob}")
    for stray in strays:
        if not (root / stray).exists():
            (root / stray).write_text("stray")
    list(repo.iterdir())  # The first listing sets the folder's time of access, which an empty repo is dated by.
    assert as_ours(root) == as_huggingface(root)
    assert scan(root=root).disk == du(root)


@pytest.mark.parametrize("place", ["/", "~", "~/.."])
def test_refuses_what_is_no_cache(place: str) -> None:
    with pytest.raises(InputError, match="far more than a cache"):
        scan(root=place)


def test_refuses_a_folder_of_other_things_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(InputError, match="does not look like"):
        scan(root=tmp_path / "thesis")
    with pytest.raises(InputError, match="no cache here"):
        scan(root=tmp_path / "nothing")


def test_an_empty_cache_is_one(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    assert scan(root=tmp_path / "hub").repos == ()


def test_a_second_download_is_seen(hub: Hub, root: Path) -> None:
    hub.push("org/late", {"a.bin": b"a" * 4000})
    before = scan(root=root)
    get(hub, root, "org/late")
    after = scan(root=root)
    assert after.size == before.size + 4000
    assert as_ours(root) == as_huggingface(root)
