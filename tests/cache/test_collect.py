# ruff: noqa: PTH100
"""What gc, verify and the settings say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from caches import MODEL, NEW, OLD, PAYLOAD, SECOND, SHARED, TAGGED, XET_HASH, as_huggingface, as_ours, folder, get
from filelock import FileLock
from hub_server import Hub, etag_of
from huggingface_hub import scan_cache_dir
from hypothesis import given
from hypothesis import strategies as st

from tsumugu.core.errors import InputError
from tsumugu.hub.cache import CacheScan, Kind, choose, execute, find, plan_delete, plan_gc, rows, scan
from tsumugu.hub.cache.locations import locate, locations, profile_line
from tsumugu.hub.cache.select import parse_age, parse_size
from tsumugu.hub.cache.verify import plan_repair, verify

DAY = 86400


def aged(path: Path, days: float = 3) -> Path:
    moment = time.time() - days * DAY
    os.utime(path, (moment, moment), follow_symlinks=False)
    return path


def litter(root: Path) -> dict[str, Path]:
    repo = root / folder(MODEL)
    things = {
        "incomplete": repo / "blobs" / "cafe.12345678.incomplete",
        "orphan": repo / "blobs" / ("e" * 40),
        "temporary": repo / "blobs" / "tmp_12345678-1234-1234-1234-123456789abc",
        "ref": repo / "refs" / "gone",
        "lock": root / ".locks" / folder(MODEL) / "dead.lock",
    }
    for path in things.values():
        path.write_bytes(b"f" * 40)
        aged(path)
    things["link"] = repo / "snapshots" / NEW / "lost.bin"
    things["link"].symlink_to("../../blobs/missing")
    aged(things["link"])
    things["probe"] = root / "tmpabc12345"
    things["probe"].mkdir()
    (things["probe"] / "dummy_file_src").touch()
    aged(things["probe"])
    return things


def test_gc_takes_what_nobody_needs(root: Path) -> None:
    things = litter(root)
    aged(root / folder(MODEL), 3)
    assert scan_cache_dir(root).warnings
    plan = plan_gc(scan(root=root), now=time.time())
    outcome = execute(plan)
    assert not outcome.failed
    left = [name for name, path in things.items() if os.path.lexists(path)]
    assert left == []
    assert not scan_cache_dir(root).warnings
    assert as_ours(root) == as_huggingface(root)
    assert not [each for each in scan(root=root).junk if each.kind is not Kind.LOCK]


def test_gc_leaves_young_and_owned_things(root: Path) -> None:
    things = litter(root)
    young = root / folder(MODEL) / "blobs" / "beef.12345678.incomplete"
    young.write_bytes(b"x")
    with FileLock(root / ".locks" / folder(MODEL) / "cafe.lock"):
        plan = plan_gc(scan(root=root), older_than=DAY)
        execute(plan)
        assert things["incomplete"].exists()
    assert young.exists()
    assert not things["orphan"].exists()
    execute(plan_gc(scan(root=root), older_than=DAY))
    assert not things["incomplete"].exists()
    assert young.exists()


def test_gc_leaves_a_link_to_a_disk_that_is_not_there(root: Path) -> None:
    link = root / folder(MODEL) / "snapshots" / NEW / "far.bin"
    link.symlink_to("/nowhere/at/all")
    aged(link)
    execute(plan_gc(scan(root=root)))
    assert link.is_symlink()


def test_gc_takes_a_shared_payload_without_links_only_with_its_list(root: Path) -> None:
    for name in (SHARED, SECOND):
        subprocess.run(["rm", "-rf", str(root / folder(name))], check=True)
    payload = aged(root / "blobs" / XET_HASH[:2] / XET_HASH)
    unlisted = root / "blobs" / "cd" / ("cd" * 32)
    unlisted.parent.mkdir()
    unlisted.write_bytes(b"x")
    aged(unlisted)
    outcome = execute(plan_gc(scan(root=root)))
    assert not payload.exists()
    assert unlisted.exists()
    assert "no readable list" in outcome.kept[0].reason


def test_keep_last(root: Path, hub: Hub) -> None:
    for number in range(3, 6):
        hub.push("org/many", {"w.bin": bytes([number]) * 2000})
        get(hub, root, "org/many")
        time.sleep(0.01)
    before = {each.commit for repo in scan(root=root).repos if repo.name == "org/many" for each in repo.revisions}
    assert len(before) == 3
    execute(plan_gc(scan(root=root), keep_last=2))
    seen = scan(root=root)
    [many] = [repo for repo in seen.repos if repo.name == "org/many"]
    assert len(many.revisions) == 2
    assert many.refs["main"].size == 2000
    assert {len(repo.revisions) for repo in seen.repos if repo.name == TAGGED} == {2}
    execute(plan_gc(scan(root=root), keep_last=0))
    assert {len(repo.revisions) for repo in scan(root=root).repos if repo.name in (TAGGED, "org/many")} == {1, 2}


def test_max_size_takes_the_longest_unused_first(root: Path) -> None:
    seen = scan(root=root)
    by_age = [TAGGED, MODEL, "org/space"]
    for repo in seen.repos:
        days = 100 - by_age.index(repo.name) if repo.name in by_age else 1
        for blob in repo.blobs:
            aged(Path(blob), days)
    seen = scan(root=root)
    alone = plan_delete(seen, choose(seen, find(seen, TAGGED))).freed
    assert [target.id for target in plan_gc(seen, max_size=seen.disk - alone).targets] == [f"model/{TAGGED}"]
    plan = plan_gc(seen, max_size=seen.disk - alone - 1)
    assert [target.id for target in plan.targets] == [f"model/{TAGGED}", f"model/{MODEL}"]
    execute(plan)
    assert scan(root=root).disk - _own(root) < seen.disk - alone
    assert plan_gc(seen, max_size=seen.disk).targets == ()


def _own(root: Path) -> int:
    return sum(part.disk for part in scan(root=root).parts if part.kind is Kind.RECORD)


# verify


def damage(path: Path) -> None:
    """Change one byte as a bad disk does: same length, same time."""
    status = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_verify_finds_damage_and_repair_lets_it_be_fetched_anew(root: Path, hub: Hub) -> None:
    seen = scan(root=root)
    report = verify(seen)
    assert (report.checked, report.damaged, report.unknown) == (sum(repo.n_files for repo in seen.repos), (), ())
    small = root / folder(MODEL) / "snapshots" / NEW / "config.json"
    big = root / folder(SHARED) / "snapshots"
    damage(small.resolve())
    [shared] = [each.resolve() for each in big.rglob("big.bin")]
    damage(shared)
    seen = scan(root=root)
    report = verify(seen)
    assert {(each.repo, each.size) for each in report.damaged} == {
        (f"model/{MODEL}", 8),
        (f"model/{SHARED}", len(PAYLOAD)),
        (f"model/{SECOND}", len(PAYLOAD)),
    }
    plan = plan_repair(seen, report)
    outcome = execute(plan)
    assert not outcome.failed
    assert not outcome.kept
    assert outcome.freed == plan.freed
    assert not small.is_symlink()
    assert not (root / folder(MODEL) / "snapshots" / OLD / "config.json").is_symlink()
    assert (root / folder(MODEL) / "snapshots" / NEW / "model.safetensors").stat().st_size == 7000
    assert not scan_cache_dir(root).warnings
    get(hub, root, MODEL)
    get(hub, root, SHARED)
    assert small.read_bytes() == b'{"a": 1}'
    assert verify(scan(root=root)).damaged == ()


def test_verify_leaves_the_times_of_access(root: Path) -> None:
    before = {path: blob.accessed for repo in scan(root=root).repos for path, blob in repo.blobs.items()}
    for path in before:
        aged(Path(path), 200)
    before = {path: blob.accessed for repo in scan(root=root).repos for path, blob in repo.blobs.items()}
    verify(scan(root=root))
    assert before == {path: blob.accessed for repo in scan(root=root).repos for path, blob in repo.blobs.items()}


def test_verify_without_links_goes_by_the_listing(hub: Hub, template: Path, tmp_path: Path) -> None:
    root = tmp_path / "copies"
    call = f"snapshot_download({MODEL!r}, endpoint={hub.url!r}, cache_dir={str(root)!r})"
    environment = {**os.environ, "HF_HUB_DISABLE_SYMLINKS": "1", "HF_HUB_DISABLE_SYMLINKS_WARNING": "1"}
    code = f"from huggingface_hub import snapshot_download; {call}"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=60)
    assert verify(scan(root=root)).checked == 4
    damage(root / folder(MODEL) / "snapshots" / NEW / "model.safetensors")
    seen = scan(root=root)
    [found] = verify(seen).damaged
    assert found.expected == etag_of(b"2" * 7000)
    execute(plan_repair(seen, verify(seen)))
    assert not (root / folder(MODEL) / "snapshots" / NEW / "model.safetensors").exists()


# Caches that are no hub caches


def tree(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 10)
    return root


def du(path: Path) -> int:
    return int(subprocess.run(["du", "-sb", str(path)], capture_output=True, check=True).stdout.split()[0])


def test_tsumugus_own_cache(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "own", "models/pypi/tiny/1.0/manifest.json", "models/pypi/tiny/1.0/m.gguf",
        "models/pypi/tiny/2.0/m.gguf", "models/pypi/other/0.1/a/b.bin", "partial/broken/x.whl", "locks/tiny.lock",
        "terms/gemma-1/terms.txt",
    )  # fmt: skip
    seen = scan("tsumugu", root)
    assert seen.disk == du(root)
    assert {repo.id: {each.commit for each in repo.revisions} for repo in seen.repos} == {
        "pypi/other": {"0.1"},
        "pypi/tiny": {"1.0", "2.0"},
    }
    assert Kind.STRAY not in {part.kind for part in seen.parts}
    before = du(root)
    plan = plan_delete(seen, choose(seen, find(seen, "pypi/tiny@1.0") + find(seen, "other")))
    outcome = execute(plan)
    assert outcome.freed == plan.freed == before - du(root) + du(root / ".tsumugu")
    assert (root / "models/pypi/tiny/2.0/m.gguf").exists()
    assert not (root / "models/pypi/other").exists()
    with FileLock(root / "locks" / "tiny.lock"):
        seen = scan("tsumugu", root)
        assert execute(plan_delete(seen, choose(seen, find(seen, "pypi/tiny")))).kept
    assert (root / "models/pypi/tiny/2.0/m.gguf").exists()
    assert {each.kind for each in scan("tsumugu", root).junk} == {Kind.INCOMPLETE, Kind.LOCK}
    aged(root / "partial" / "broken")
    execute(plan_gc(scan("tsumugu", root)))
    assert not (root / "partial" / "broken").exists()


@pytest.mark.parametrize(
    ("cache", "files", "ids"),
    [
        ("xet", ["https___cas-abc/chunk-cache/Aa/x", "https___cas-abc/shard-cache/y.mdb", "logs/a.log"],
         {"xet/https___cas-abc", "xet/logs"}),
        ("datasets", ["org___data/default/0.0.0/abc/data.arrow", "downloads/0a1b", "org___data.lock"],
         {"prepared/org/data", "prepared/downloads"}),
        ("assets", ["lib/ns/sub/file", "lib/other/file"], {"asset/lib"}),
    ],
)  # fmt: skip
def test_other_caches(tmp_path: Path, cache: str, files: list[str], ids: set[str]) -> None:
    root = tree(tmp_path / cache, *files)
    seen = scan(cache, root)
    assert seen.disk == du(root)
    assert {repo.id for repo in seen.repos} == ids
    for repo in seen.repos:
        assert repo.disk == du(Path(repo.path))
    plan = plan_delete(seen, {repo.folder: [each.commit for each in repo.revisions] for repo in seen.repos})
    before = du(root)
    assert execute(plan).freed == plan.freed == before - du(root) + du(root / ".tsumugu")


# Words


def one(seen: CacheScan, *filters: str, sort: str = "size", revisions: bool = False) -> list[str]:
    now = time.time() + 1
    return [repo.name for repo, _ in rows(seen, filters=filters, sort=sort, revisions=revisions, now=now)]


def test_filters_and_orders(root: Path) -> None:
    seen = scan(root=root)
    assert one(seen, "type=space") == ["org/space"]
    assert set(one(seen, "size>=15kB", "type=model")) == {SHARED, SECOND, MODEL}
    assert one(seen, "accessed>1d") == []
    assert len(one(seen, "modified<1h", "size!=0")) == 6
    assert one(seen, "refs=v1") == [TAGGED]
    assert one(seen, "name=TAGG") == [TAGGED]
    assert one(seen, "refs=v1", revisions=True) == [TAGGED]
    assert one(seen, sort="name") == sorted(one(seen), key=str.casefold)
    assert one(seen, sort="size:asc")[0] == "org/space"
    for bad in ("size>", "size>>1", "colour=red", "size>1XB", "accessed>1", "type>model", ""):
        with pytest.raises(InputError):
            one(seen, bad)
    with pytest.raises(InputError, match="did you mean 'size'"):
        one(seen, sort="sise")


@given(st.integers(0, 10**15))
def test_sizes_and_ages_are_read_back(number: int) -> None:
    assert parse_size(str(number)) == number
    assert parse_size(f"{number}kB") == number * 1000
    assert parse_size(f"{number} MiB") == number << 20
    assert parse_age(f"{number}d") == float(number) * 86400


def test_names(root: Path) -> None:
    seen = scan(root=root)
    for text in (MODEL, f"model/{MODEL}", folder(MODEL), MODEL.upper()):
        assert [(repo.name, revision) for repo, revision in find(seen, text)] == [(MODEL, None)]
    for text in (f"{MODEL}@main", f"{MODEL}@{NEW[:6]}", NEW, NEW[:8].upper()):
        assert [each.commit for _, each in find(seen, text) if each] == [NEW]
    assert find(seen, f"{TAGGED}@refs/pr/1")[0][1] is not None
    for bad in ("org/alpah", f"{MODEL}@nope", "@", "", f"{MODEL}@", "ff"):
        with pytest.raises(InputError):
            find(seen, bad)


# Where


@pytest.mark.parametrize(
    "given_",
    [
        {},
        {"HF_HOME": "/a/home"},
        {"HF_HOME": "~/mine", "HF_HUB_CACHE": "$HF_HOME/inner"},
        {"HUGGINGFACE_HUB_CACHE": "/old/hub", "HUGGINGFACE_ASSETS_CACHE": "/old/assets"},
        {"HF_HUB_CACHE": "/new/hub", "HUGGINGFACE_HUB_CACHE": "/old/hub", "HF_ASSETS_CACHE": "/x/assets"},
        {"XDG_CACHE_HOME": "/xdg", "XDG_DATA_HOME": "/data", "TRANSFORMERS_CACHE": "/t"},
        {"XDG_CACHE_HOME": "/xdg", "HF_HOME": "/h", "HF_XET_CACHE": "/x/xet"},
        {"HF_HOME": ""},
    ],
)
def test_places_are_those_of_huggingface_hub(given_: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given_.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub.constants import *; print(HF_HUB_CACHE, HF_XET_CACHE, HF_ASSETS_CACHE, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = [os.path.abspath(each) for each in done.stdout.split("\n")[:3]]
    assert [locate(each).path for each in ("hub", "xet", "assets")] == expected


def test_which_setting_chose_a_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tsumugu.hub.home import home

    assert {each.cache: each.chosen_by for each in locations()} == dict.fromkeys(
        ("hub", "xet", "datasets", "assets", "tsumugu"), "default"
    )
    assert locate("tsumugu").path == str(home())
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("TSUMUGU_HOME", str(tmp_path / "t"))
    assert {each.cache: each.chosen_by for each in locations()} == {
        "hub": "HF_HOME", "xet": "HF_HOME", "datasets": "HF_HOME", "assets": "HF_HOME", "tsumugu": "TSUMUGU_HOME",
    }  # fmt: skip
    assert locate("tsumugu").path == str(home())
    (tmp_path / "legacy" / "models--a--b").mkdir(parents=True)
    monkeypatch.setenv("TRANSFORMERS_CACHE", str(tmp_path / "legacy"))
    assert locate("legacy").path == str(tmp_path / "legacy")


def test_the_line_for_the_profile() -> None:
    assert profile_line("HF_HUB_CACHE", "/a b", "/bin/zsh") == ("export HF_HUB_CACHE='/a b'", "~/.zshrc")
    assert profile_line("HF_HUB_CACHE", "/ab", "/usr/bin/fish")[0] == "set -Ux HF_HUB_CACHE /ab"
