"""kill -9 in the middle of deletions and moves: nothing that was not selected is lost, and no cache is unreadable.

``TSUMUGU_KILLS=200`` runs 200 deletions and 50 moves; the default is 12 and 5.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from caches import (
    DATASET,
    MODEL,
    NEW,
    OLD,
    PAYLOAD,
    PULL,
    SECOND,
    SHARED,
    SPACE,
    TAGGED,
    V1,
    as_huggingface,
    as_ours,
    contents,
    du,
    offline,
)  # fmt: skip
from huggingface_hub import hf_hub_download, scan_cache_dir

from tsumugu.core.errors import InputError
from tsumugu.hub.cache import choose, execute, find, plan_delete, read_journal, scan
from tsumugu.hub.cache.move import move_cache, plan_move

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="killing needs fork and SIGKILL")
KILLS = int(os.environ.get("TSUMUGU_KILLS", "12"))
NAMES = [
    f"{MODEL}@{OLD}", f"{MODEL}@{NEW}", f"{TAGGED}@{V1}", f"{TAGGED}@{PULL}", SHARED, SECOND, f"dataset/{DATASET}",
    f"space/{SPACE}",
]  # fmt: skip


@pytest.fixture(scope="module")
def killer() -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("killer.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.communicate()


def run(killer: subprocess.Popen[str], task: dict[str, Any]) -> str:
    assert killer.stdin is not None
    assert killer.stdout is not None
    killer.stdin.write(json.dumps(task) + "\n")
    killer.stdin.flush()
    answer = killer.stdout.readline().strip()
    assert "raised" not in answer, answer
    return answer


def copy_of(root: Path, place: Path) -> Path:
    subprocess.run(["cp", "-a", str(root), str(place)], check=True)
    return place


def prefixes(root: Path, ids: list[str]) -> tuple[str, ...]:
    """Where the files of the selected revisions are."""
    seen = scan(root=root)
    rows = [row for each in ids for row in find(seen, each)]
    revisions = [each for repo, one in rows for each in (repo.revisions if one is None else [one])]
    return tuple(str(Path(each.path).relative_to(root)) for each in revisions)


def test_deletions_killed_anywhere(template: Path, killer: subprocess.Popen[str], tmp_path: Path) -> None:
    chance = random.Random(20261124)
    killed, finished, tries = 0, 0, 0
    while killed < KILLS:
        tries += 1
        assert tries < 4 * KILLS + 20
        root = copy_of(template, tmp_path / f"cache{tries}")
        was = contents(root)
        ids = chance.sample(NAMES, k=chance.randint(1, 4))
        gone = prefixes(root, ids)
        task: dict[str, Any] = {"do": "delete", "root": str(root), "ids": ids}
        if chance.random() < 0.75:
            task["at"] = chance.randint(1, 90)
        else:
            task["after"] = chance.random() * 0.05
        if run(killer, task) == "killed":
            killed += 1
        else:
            finished += 1

        found = scan_cache_dir(root)
        assert not found.warnings, (task, found.warnings)
        now = contents(root)
        for path, data in was.items():
            if not path.startswith(gone):
                assert now.get(path) == data, (task, path)
        assert now.items() <= was.items()
        assert as_ours(root) == as_huggingface(root), task

        # The next run finishes what was begun, and the same selection can be deleted for good.
        seen = scan(root=root)
        names = {each.commit for repo in seen.repos for each in repo.revisions}
        rest = [row for each in ids for row in _find(seen, each)]
        execute(plan_delete(seen, choose(seen, rest)))
        assert not list((root / ".locks" / ".tsumugu" / "trash").iterdir())
        assert contents(root) == {path: data for path, data in was.items() if not path.startswith(gone)}
        assert names >= {each.commit for repo in scan(root=root).repos for each in repo.revisions}
        assert all("event" in each for each in read_journal(str(root)))
        assert scan(root=root).disk == du(root)
        shutil.rmtree(root)
    print(f"{killed} deletions killed, {finished} ended before the kill, nothing lost")


def _find(seen: Any, name: str) -> list[Any]:
    try:
        return find(seen, name)
    except InputError:
        return []


def test_what_stays_loads_offline_after_a_kill(template: Path, killer: subprocess.Popen[str], tmp_path: Path) -> None:
    for at in (8, 14, 25):
        root = copy_of(template, tmp_path / f"cache{at}")
        assert run(killer, {"do": "delete", "root": str(root), "ids": [f"{MODEL}@{OLD}", SHARED], "at": at}) == "killed"
        code = (
            "from huggingface_hub import snapshot_download as s, hf_hub_download as d\n"
            f"print(len(open(d({MODEL!r}, 'model.safetensors'), 'rb').read()), s({MODEL!r})[-40:])\n"
            f"print(len(open(d({SECOND!r}, 'big.bin'), 'rb').read()), s({DATASET!r}, repo_type='dataset')[-4:])\n"
        )
        done = offline(code, root)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[:3] == ["7000", NEW, str(len(PAYLOAD))]


def test_moves_killed_anywhere(template: Path, killer: subprocess.Popen[str], tmp_path: Path) -> None:
    chance = random.Random(42)
    whole = contents(template)
    killed = finished = resumed = tries = 0
    while killed < max(5, KILLS // 4):
        tries += 1
        assert tries < 4 * KILLS + 20
        folder = tmp_path / f"move{tries}"
        folder.mkdir()
        root, new = copy_of(template, folder / "old"), folder / "new"
        task: dict[str, Any] = {"do": "move", "root": str(root), "new": str(new), "link": chance.random() < 0.3}
        if chance.random() < 0.8:
            task["at"] = chance.randint(1, 780)
        else:
            task["after"] = chance.random() * 0.4
        if run(killer, task) == "killed":
            killed += 1
        else:
            finished += 1

        readable = [each for each in (root, new) if each.is_dir() and contents(each) == whole]
        assert readable, task
        for each in readable:
            assert not scan_cache_dir(each).warnings, task
        if not new.exists() or (folder / "new.moving.json").exists():
            move_cache(plan_move(root, new, copy=True, link=task["link"]))
            resumed += 1
        assert contents(new) == whole, task
        assert as_ours(new) == as_huggingface(new)
        assert root.is_symlink() if task["link"] and root.exists() else not root.exists()
        assert {each.name for each in folder.iterdir()} <= {"new", "old"}
        path = hf_hub_download(MODEL, "model.safetensors", cache_dir=new, local_files_only=True)
        assert Path(path).read_bytes() == b"2" * 7000
        shutil.rmtree(folder)
    print(f"{killed} moves killed, {finished} ended before the kill, {resumed} resumed, nothing lost")


def test_a_move_takes_no_folder_of_somebody_else(template: Path, tmp_path: Path) -> None:
    root, new = copy_of(template, tmp_path / "old"), tmp_path / "new"
    for name in ("old.moved", "new.moving"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
        with pytest.raises(InputError, match="in the way"):
            plan_move(root, new, copy=True)
        assert (tmp_path / name / "precious").exists()
        shutil.rmtree(tmp_path / name)
    new.mkdir()
    (new / "precious").touch()
    with pytest.raises(InputError, match="not empty"):
        plan_move(root, new)
    link = tmp_path / "link"
    link.symlink_to(root)
    with pytest.raises(InputError, match="is a link"):
        plan_move(link, tmp_path / "third")
    with pytest.raises(InputError, match="inside the other"):
        plan_move(root, root / "inner")
    assert contents(root) == contents(template)


def test_a_move_that_only_lacks_its_last_step(template: Path, tmp_path: Path) -> None:
    root, new = copy_of(template, tmp_path / "old"), tmp_path / "new"
    move_cache(plan_move(root, new, copy=True))
    (tmp_path / "new.moving.json").write_text(json.dumps({"old": str(root), "new": str(new)}))
    plan = plan_move(root, new, copy=True)
    assert plan.switched
    move_cache(plan)
    assert [each.name for each in tmp_path.iterdir() if each.name != "user"] == ["new"]
    assert contents(new) == contents(template)
