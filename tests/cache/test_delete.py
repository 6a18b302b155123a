"""A plan names exactly what goes and the bytes that come back; what stays still loads, offline, by huggingface_hub."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from caches import (
    DATASET,
    MODEL,
    NEW,
    OLD,
    PAYLOAD,
    SECOND,
    SHARED,
    SPACE,
    TAGGED,
    XET_HASH,
    as_huggingface,
    as_ours,
    contents,
    du,
    folder,
    offline,
)  # fmt: skip
from filelock import FileLock
from huggingface_hub import scan_cache_dir

from tsumugu.core.errors import HubError, InputError
from tsumugu.hub.cache import (
    Act,
    Kind,
    Outcome,
    Plan,
    choose,
    execute,
    find,
    plan_delete,
    plan_gc,
    plan_prune,
    read_journal,
    scan,
)  # fmt: skip
from tsumugu.hub.cache.execute import finish_earlier
from tsumugu.hub.cache.guard import Guard


def selecting(root: Path, *names: str) -> Plan:
    seen = scan(root=root)
    return plan_delete(seen, choose(seen, [row for name in names for row in find(seen, name)]))


def measured(root: Path) -> int:
    """Bytes of the cache without our own records, which a deletion adds to."""
    own = root / ".locks" / ".tsumugu"
    return du(root) - (du(own) if own.exists() else 0)


def deleted(root: Path, plan: Plan) -> Outcome:
    before = measured(root)
    outcome = execute(plan)
    assert before - measured(root) == outcome.freed
    assert as_ours(root) == as_huggingface(root)
    return outcome


def test_one_revision_keeps_what_the_other_shares(root: Path) -> None:
    was = contents(root)
    plan = selecting(root, f"{MODEL}@{OLD[:7]}")
    hf = scan_cache_dir(root).delete_revisions(OLD)
    assert {root / step.path for step in plan.steps if step.act is Act.BLOB} == hf.blobs
    assert {root / step.path for step in plan.steps if step.act is Act.REVISION} == hf.snapshots
    assert sum(step.disk for step in plan.steps if step.act is Act.BLOB) == hf.expected_freed_size == 5000
    outcome = deleted(root, plan)
    assert outcome.freed == plan.freed
    assert not outcome.kept
    assert not outcome.failed
    now = contents(root)
    assert now == {path: data for path, data in was.items() if OLD not in path}
    assert not (root / folder(MODEL) / "trees" / f"{OLD}.json").exists()


def test_a_revision_that_a_ref_names_takes_the_ref_along(root: Path) -> None:
    outcome = deleted(root, selecting(root, f"{MODEL}@main"))
    assert not outcome.failed
    assert not (root / folder(MODEL) / "refs" / "main").exists()
    assert not (root / folder(MODEL) / ".no_exist" / NEW).exists()
    assert [each.commit for repo in scan(root=root).repos if repo.name == MODEL for each in repo.revisions] == [OLD]
    assert not scan_cache_dir(root).warnings


def test_a_whole_repo_goes_with_its_locks(root: Path) -> None:
    plan = selecting(root, MODEL)
    assert deleted(root, plan).freed == plan.freed
    assert not (root / folder(MODEL)).exists()
    assert not (root / ".locks" / folder(MODEL)).exists()
    assert not scan_cache_dir(root).warnings


def test_a_shared_payload_goes_with_the_last_repo(root: Path) -> None:
    payload = root / "blobs" / XET_HASH[:2] / XET_HASH
    first = selecting(root, SHARED)
    assert not [step for step in first.steps if step.act is Act.SHARED]
    assert deleted(root, first).freed == first.freed
    assert payload.read_bytes() == PAYLOAD
    last = selecting(root, SECOND)
    assert [step.disk for step in last.steps if step.act is Act.SHARED] >= [len(PAYLOAD)]
    assert deleted(root, last).freed == last.freed
    assert not payload.exists()


def test_both_repos_of_a_shared_payload_at_once(root: Path) -> None:
    plan = selecting(root, SHARED, SECOND)
    hf = scan_cache_dir(root)
    commits = [each.commit_hash for repo in hf.repos if "shared" in repo.repo_id for each in repo.revisions]
    expected = hf.delete_revisions(*commits).expected_freed_size
    assert sum(each.disk for each in plan.loose) >= len(PAYLOAD)
    assert plan.freed >= expected
    assert deleted(root, plan).freed == plan.freed
    assert not (root / "blobs" / XET_HASH[:2] / XET_HASH).exists()


def test_hard_links_give_back_their_bytes_only_together(root: Path) -> None:
    big = max((root / folder(MODEL) / "blobs").iterdir(), key=lambda each: each.stat().st_size)
    os.link(big, root / folder(SPACE, "spaces") / "blobs" / "twin")
    (root / folder(SPACE, "spaces") / "snapshots" / _commit(root, SPACE) / "twin").symlink_to("../../blobs/twin")
    alone = selecting(root, MODEL)
    both = selecting(root, MODEL, SPACE)
    assert both.freed - selecting(root, SPACE).freed - alone.freed == 7000
    assert deleted(root, alone).freed == alone.freed


def _commit(root: Path, name: str) -> str:
    return next(each.commit for repo in scan(root=root).repos if repo.name == name for each in repo.revisions)


def test_windows_style_revisions(by_hand: Path) -> None:
    plan = selecting(by_hand, f"org/windows@{'a' * 40}")
    before = du(by_hand)
    outcome = execute(plan)
    locks = du(by_hand / ".locks") - du(by_hand / ".locks" / ".tsumugu")
    assert outcome.freed == plan.freed == before - measured(by_hand) + locks
    assert {path.split("/")[2] for path in contents(by_hand)} == {"b" * 40}


def test_prune_takes_only_what_no_ref_names(root: Path) -> None:
    plan = plan_prune(scan(root=root))
    assert [(target.id, target.commits) for target in plan.targets] == [(f"model/{MODEL}", (OLD,))]
    deleted(root, plan)
    assert plan_prune(scan(root=root)).steps == ()


def test_what_stays_loads_offline(root: Path) -> None:
    deleted(root, selecting(root, f"{MODEL}@{OLD}", TAGGED, f"dataset/{DATASET}"))
    code = (
        "from huggingface_hub import snapshot_download as s, hf_hub_download as d, scan_cache_dir\n"
        f"print(len(open(d({MODEL!r}, 'model.safetensors'), 'rb').read()), s({SPACE!r}, repo_type='space'))\n"
        f"print(len(open(d({SECOND!r}, 'big.bin'), 'rb').read()), scan_cache_dir().warnings)\n"
    )
    done = offline(code, root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("7000 ")
    assert done.stdout.rstrip().endswith(f"{len(PAYLOAD)} []")


def test_random_selections_free_what_the_plan_says(root: Path, tmp_path: Path) -> None:
    for seed in range(15):
        copy = tmp_path / f"copy{seed}"
        subprocess.run(["cp", "-a", str(root), str(copy)], check=True)
        seen = scan(root=copy)
        every = [(repo, each) for repo in seen.repos for each in repo.revisions]
        chosen = random.Random(seed).sample(every, k=1 + seed % len(every))
        was = contents(copy)
        plan = plan_delete(seen, choose(seen, chosen))
        outcome = deleted(copy, plan)
        assert outcome.freed == plan.freed
        gone = tuple(str(Path(each.path).relative_to(copy)) for _, each in chosen)
        assert contents(copy) == {path: data for path, data in was.items() if not path.startswith(gone)}
        shutil.rmtree(copy)


def test_the_journal_tells_of_it(root: Path) -> None:
    outcome = deleted(root, selecting(root, SPACE))
    begin, moved, end = read_journal(str(root))
    assert [each["event"] for each in (begin, moved, end)] == ["begin", "moved", "end"]
    assert begin["run"] == moved["run"] == end["run"] == outcome.run
    assert begin["steps"][0]["path"] == folder(SPACE, "spaces")
    assert moved["freed"] == outcome.freed
    journal = root / ".locks" / ".tsumugu" / "journal.jsonl"
    with journal.open("a") as handle:
        handle.write('{"event": "begin", "run": "to')
    deleted(root, selecting(root, TAGGED))
    assert [each["event"] for each in read_journal(str(root))] == ["begin", "moved", "end"] * 2
    assert all(json.loads(line) for line in journal.read_text().splitlines() if not line.endswith('"to'))


# Left alone: what is in use, being downloaded, or was not there when the plan was made


def test_a_held_lock_keeps_the_repo(root: Path) -> None:
    lock = next((root / ".locks" / folder(MODEL)).iterdir())
    plan = selecting(root, MODEL, SPACE)
    code = (
        f"import sys, time; from filelock import FileLock\nwith FileLock({str(lock)!r}):\n"
        " print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        outcome = deleted(root, plan)
        assert [each.path for each in outcome.kept] == [f"model/{MODEL}"]
        assert "being downloaded" in outcome.kept[0].reason
        assert (root / folder(MODEL)).exists()
        assert not (root / folder(SPACE, "spaces")).exists()
        other.communicate(b"")
    assert not deleted(root, selecting(root, MODEL)).kept


def test_a_fresh_incomplete_download_keeps_the_repo(root: Path) -> None:
    part = root / folder(MODEL) / "blobs" / "cafe.12345678.incomplete"
    part.write_bytes(b"x" * 10)
    assert "written to" in deleted(root, selecting(root, MODEL)).kept[0].reason
    old = time.time() - 3600
    os.utime(part, (old, old))
    assert not deleted(root, selecting(root, MODEL)).kept
    assert not (root / folder(MODEL)).exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell which files are open")
def test_a_file_that_a_process_has_mapped_keeps_its_revision(root: Path) -> None:
    path = root / folder(MODEL) / "snapshots" / NEW / "model.safetensors"
    code = (
        f"import mmap, sys\nf = open({str(path)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "f.close(); print('mapped', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        outcome = deleted(root, selecting(root, f"{MODEL}@{NEW}"))
        assert outcome.kept[0].reason == f"is in use by process {other.pid}"
        assert not deleted(root, selecting(root, f"{MODEL}@{OLD}")).kept
        other.communicate(b"")


def test_a_revision_that_came_after_the_plan_stays(root: Path) -> None:
    plan = selecting(root, TAGGED)
    at = root / folder(TAGGED) / "snapshots"
    later = at / ("9" * 40)
    later.mkdir()
    blob = next(each for each in (root / folder(TAGGED) / "blobs").iterdir() if each.stat().st_size == 2500)
    (later / "w.bin").symlink_to(f"../../blobs/{blob.name}")
    outcome = deleted(root, plan)
    assert outcome.freed < plan.freed
    assert [each.name for each in at.iterdir()] == ["9" * 40]
    assert (later / "w.bin").stat().st_size == 2500


def test_a_ref_that_moved_after_the_plan_stays(root: Path) -> None:
    plan = selecting(root, f"{MODEL}@{OLD}")
    (root / folder(MODEL) / "refs" / "main").write_text(OLD)
    plan_new = selecting(root, f"{MODEL}@{OLD}")
    (root / folder(MODEL) / "refs" / "main").write_text(NEW)
    deleted(root, plan_new)
    assert (root / folder(MODEL) / "refs" / "main").read_text() == NEW
    assert plan.targets[0].commits == (OLD,)


def test_only_one_at_a_time(root: Path) -> None:
    plan = selecting(root, SPACE)
    own = root / ".locks" / ".tsumugu"
    own.mkdir()
    with FileLock(own / "lock"), pytest.raises(HubError, match="another tsumugu"):
        execute(plan)


def test_a_plan_for_a_bad_root_is_refused(root: Path) -> None:
    plan = selecting(root, SPACE)
    for bad in ("/", str(Path.home()), "/usr"):
        with pytest.raises(InputError):
            execute(Plan(plan.verb, plan.cache, bad, plan.targets))


# Hostile caches


def hostile(root: Path, outside: Path) -> None:
    """Links out of the cache wherever a deletion could follow one."""
    repo = root / "models--evil--repo"
    commit = "d" * 40
    (repo / "snapshots").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").symlink_to(outside)
    (repo / "snapshots" / commit).mkdir()
    (repo / "snapshots" / commit / "a").symlink_to(outside / "precious")
    (repo / "snapshots" / commit / "b").symlink_to("../../blobs/precious")
    (repo / "snapshots" / commit / "folder").symlink_to(outside)
    (repo / "snapshots" / ("e" * 40)).symlink_to(outside)
    (repo / ".no_exist").symlink_to(outside)
    (root / "models--evil--link").symlink_to(outside)
    (root / "models--evil--loop").symlink_to(root)
    (root / "models--..--..").mkdir()
    (root / "models--..--.." / "snapshots").symlink_to(outside)


@pytest.mark.parametrize("what", ["whole", "one", "gc", "prune"])
def test_nothing_outside_is_touched(root: Path, tmp_path: Path, what: str) -> None:
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "precious").write_bytes(b"p" * 1000)
    (outside / "sub" / "more").write_bytes(b"m")
    hostile(root, outside)
    seen = scan(root=root)
    assert seen.disk == du(root)
    evil = [repo for repo in seen.repos if "evil" in repo.folder or ".." in repo.folder]
    assert len(evil) == 4
    if what == "whole":
        plan = plan_delete(seen, {repo.folder: [each.commit for each in repo.revisions] for repo in evil})
    elif what == "one":
        plan = plan_delete(seen, {"models--evil--repo": ["d" * 40]})
    elif what == "gc":
        plan = plan_gc(seen, older_than=0, max_size=0, keep_last=0, now=time.time() + 1e6)
    else:
        plan = plan_prune(seen)
    execute(plan)
    assert (outside / "precious").read_bytes() == b"p" * 1000
    assert (outside / "sub" / "more").exists()
    if what == "whole":
        assert not [each for each in root.iterdir() if "evil" in each.name]


def test_a_trash_or_locks_folder_that_is_a_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / ".tsumugu" / "trash" / "run").mkdir(parents=True)
    (outside / ".tsumugu" / "trash" / "run" / "precious").touch()
    shutil.rmtree(root / ".locks")
    (root / ".locks").symlink_to(outside)
    execute(selecting(root, SPACE))
    assert (outside / ".tsumugu" / "trash" / "run" / "precious").exists()
    (root / ".tsumugu").rename(root / "elsewhere")
    (root / ".tsumugu").symlink_to(outside / ".tsumugu")
    with pytest.raises(OSError, match=r"."):
        execute(selecting(root, TAGGED))
    assert (outside / ".tsumugu" / "trash" / "run" / "precious").exists()
    assert (root / folder(TAGGED)).exists()


def test_folders_too_deep_for_a_path_go_too(root: Path) -> None:
    at = os.open(root / folder(SPACE, "spaces"), os.O_RDONLY)
    for _ in range(600):
        os.mkdir("deeper", dir_fd=at)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    seen = scan(root=root)
    assert any("too long" in each for each in seen.unreadable)
    execute(plan_delete(seen, choose(seen, find(seen, SPACE))))
    assert not (root / folder(SPACE, "spaces")).exists()
    assert not list((root / ".locks" / ".tsumugu" / "trash").iterdir())


def test_what_is_forbidden_is_listed_and_the_rest_goes_on(root: Path) -> None:
    """As another user than root, who is forbidden nothing."""
    code = (
        "import os, encodings.idna, filelock\n"
        "from tsumugu.hub.cache import *\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        f"seen = scan(root={str(root)!r})\n"
        f"out = execute(plan_delete(seen, choose(seen, find(seen, {MODEL!r}) + find(seen, {SPACE!r}))))\n"
        "print(len(out.done), [each.path for each in out.failed], seen.unreadable)\n"
    )
    locked = root / folder(MODEL)
    subprocess.run(["chmod", "-R", "a+rwX", str(root)], check=True)
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", "65534", str(root)], check=True)
    for parent in root.parents:
        if parent.stat().st_mode & 0o005 != 0o005 and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    (locked / "blobs").chmod(0o000)
    locked.chmod(0o500)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    locked.chmod(0o755)
    (locked / "blobs").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert f"['{folder(MODEL)}']" in done.stdout
    assert "blobs: Permission denied" in done.stdout
    assert not (root / folder(SPACE, "spaces")).exists()
    assert (locked / "snapshots" / NEW).exists()


@pytest.mark.parametrize("path", ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", "./a"])
def test_no_path_leads_out(root: Path, path: str) -> None:
    with Guard(str(root)) as guard:
        for change in (guard.unlink, guard.rmdir, guard.lstat, guard.make_folders):
            with pytest.raises(InputError, match="no path inside"):
                change(path)
        with pytest.raises(InputError, match="no path inside"):
            guard.rename(folder(SPACE, "spaces"), path)
        with pytest.raises(InputError, match="only the trash"):
            guard.remove(folder(MODEL))
    assert (root / folder(SPACE, "spaces")).exists()


def test_what_cannot_be_read_is_not_taken_for_unneeded(root: Path) -> None:
    """A revision that may not be read may need any blob: nothing of its repo is an orphan, and it goes whole or not."""
    code = (
        "import os, encodings.idna, filelock\n"
        "from tsumugu.hub.cache import *\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        f"seen = scan(root={str(root)!r})\n"
        f"plan = plan_delete(seen, {{ {folder(MODEL)!r}: [{OLD!r}] }})\n"
        "print(len(plan.steps), plan.kept[0].reason if plan.kept else '')\n"
        "out = execute(plan_gc(seen, older_than=0, now=9e9))\n"
        "print(len([each for each in out.done if 'alpha' in each.path and 'locks' not in each.path]))\n"
    )
    subprocess.run(["chmod", "-R", "a+rwX", str(root)], check=True)
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", "65534", str(root)], check=True)
    for parent in root.parents:
        if parent.stat().st_mode & 0o005 != 0o005 and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    was = contents(root)
    hidden = root / folder(MODEL) / "snapshots"
    for place in (hidden, hidden / NEW):
        place.chmod(0o000)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
        place.chmod(0o755)
        assert done.returncode == 0, done.stderr
        *_, gone = done.stdout.splitlines()
        assert gone == "0"
        assert place == hidden or "0 cannot be read in full; it can only go as a whole" in done.stdout
        assert contents(root) == was


# What an interruption leaves


def test_a_trash_left_behind_is_finished(root: Path) -> None:
    left = root / ".locks" / ".tsumugu" / "trash" / "abc" / "1"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "big").write_bytes(b"x" * 500)
    (left / "deep").chmod(0o000)
    seen = scan(root=root)
    assert next(part for part in seen.parts if part.kind is Kind.TRASH).count >= 2
    assert not scan_cache_dir(root).warnings
    assert finish_earlier(str(root), "hub") == 1
    assert not list((root / ".locks" / ".tsumugu" / "trash").iterdir())
    assert [each["event"] for each in read_journal(str(root))] == ["recovered"]
