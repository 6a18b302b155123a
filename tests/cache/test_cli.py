"""``tsumugu cache`` as a person runs it: real processes, real terminals, one clear line when something is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pexpect
import pytest
from caches import MODEL, NEW, OLD, SPACE, TAGGED, contents, du, folder, get
from hub_server import Hub
from huggingface_hub import scan_cache_dir

from tsumugu.cli import main
from tsumugu.hub.cache import Kind, scan


def cache(*words: str, root: Path | None = None, stdin: str = "", code: int = 0) -> str:
    """Run a verb on a cache; its standard output. Its standard error must hold no traceback."""
    done = run(*words, root=root, stdin=stdin)
    assert "Traceback" not in done.stderr + done.stdout
    assert done.returncode == code, done.stderr
    return done.stdout


def run(*words: str, root: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"HF_HUB_CACHE": str(root)} if root else {})}
    command = [sys.executable, "-m", "tsumugu", "cache", *words]
    return subprocess.run(
        command, capture_output=True, text=True, input=stdin, env=environment, timeout=60, check=False
    )


def test_scan_as_table_json_csv_and_ids(root: Path) -> None:
    table = cache("scan", root=root)
    assert table.splitlines()[0].split() == ["ID", "SIZE", "FILES", "LAST", "USED", "CHANGED", "REFS", "PATH"]
    assert f"model/{MODEL}" in table
    told = json.loads(cache("scan", "--json", root=root))
    assert told["caches"][0]["disk"] == du(root)
    assert {each["id"]: each["size"] for each in told["entries"]} == {
        each.cache_id: each.size_on_disk for each in scan_cache_dir(root).repos
    }
    rows = list(csv.DictReader(io.StringIO(cache("scan", "--csv", "--files", root=root))))
    assert sum(int(each["file_size"]) for each in rows if each["name"] == "org/tagged") == 2002 + 2502
    ids = cache("scan", "-q", "--revisions", "--filter", f"name={TAGGED}", root=root).split()
    assert all(each.startswith(f"model/{TAGGED}@") for each in ids)
    assert len(ids) == 2
    files = cache("scan", "--files", "--filter", "type=dataset", root=root)
    assert "データ/第一章.csv" in files


def test_scan_tells_of_trouble_and_goes_on(root: Path) -> None:
    (root / folder(MODEL) / "refs" / "gone").write_text("f" * 40)
    (root / "models--evil--\x1b[2J\nname" / "snapshots").mkdir(parents=True)
    (root / "models--org--日本語の模型" / "snapshots").mkdir(parents=True)
    done = run("scan", root=root)
    assert "names a revision that is not here" in done.stderr
    assert "\x1b" not in done.stdout
    assert r"\x1b[2J\nname" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "0 B" in line]
    from rich.cells import cell_len

    assert len({cell_len(line[: line.index("0 B")]) for line in lines}) == 1


def test_delete_by_name_dry_and_for_real(root: Path) -> None:
    before = contents(root)
    told = json.loads(cache("delete", f"{MODEL}@{OLD[:8]}", "--dry-run", "--json", root=root))
    assert contents(root) == before
    done = json.loads(cache("delete", f"{MODEL}@{OLD[:8]}", "--yes", "--json", root=root))
    assert done["freed"] == told["freed"]
    assert contents(root) == {path: data for path, data in before.items() if OLD not in path}
    log = cache("log", root=root)
    assert "delete" in log
    assert f"{MODEL}@{OLD[:12]}" in log


def test_delete_what_scan_lists(root: Path) -> None:
    ids = cache("scan", "-q", "--filter", "type=space", root=root)
    assert "Deleted" in cache("delete", "-", "--yes", root=root, stdin=ids)
    assert not (root / folder(SPACE, "spaces")).exists()
    cache("delete", "--filter", "type=dataset", "--yes", root=root)
    assert {repo.repo_type for repo in scan_cache_dir(root).repos} == {"model"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["delete", "org/alpah"], "did you mean 'org/alpha'"),
        (["delete", MODEL], "add --yes"),
        (["delete"], "no terminal to choose in"),
        (["delete", f"{MODEL}@nope", "--yes"], "has no such revision"),
        (["scan", "--filter", "size>>1"], "is no size"),
        (["scan", "--sort", "weight"], "is no order"),
        (["scan", "--cache", "disk"], "invalid value"),
        (["scan", "--dir", "/"], "far more than a cache"),
        (["scan", "--dir", "~"], "far more than a cache"),
        (["scan", "--dir", "/no/such/place"], "no cache here"),
        (["gc", "--older-than", "soon"], "is no span of time"),
        (["gc", "--keep-last", "-1"], "must be 0 or more"),
        (["gc", "--max-size", "much"], "is no size"),
        (["move", "/"], "inside the other"),
        (["verify", "org/nothing"], "is not in the cache"),
    ],
)
def test_mistakes_are_one_line_and_two(
    root: Path, words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(root)
    monkeypatch.setenv("HF_HUB_CACHE", str(root))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(SystemExit) as ended:
        main(["cache", *words])
    assert ended.value.code == 2
    [line] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("tsumugu: ")]
    assert told in line
    assert contents(root) == before


def test_no_cache_yet_is_no_error(tmp_path: Path) -> None:
    done = run("scan")
    assert (done.returncode, done.stdout) == (0, "")
    assert "There is no cache yet" in done.stderr
    assert "There is nothing to delete" in cache("gc")
    assert cache("log") == ""


def test_where(root: Path, tmp_path: Path) -> None:
    text = cache("where", root=root)
    assert str(root) in text
    assert "HF_HUB_CACHE" in text
    assert "tsumugu cache move" in text
    told = json.loads(cache("where", "--json", root=root))
    found = {each["cache"]: each for each in told["caches"]}
    assert found["hub"]["disk"] == du(root)
    assert found["hub"]["chosen_by"] == "HF_HUB_CACHE"
    assert set(found) == {"hub", "xet", "datasets", "assets", "tsumugu"}


def test_prune_and_gc(root: Path) -> None:
    assert OLD[:12] in cache("prune", "--dry-run", root=root)
    cache("prune", "--yes", root=root)
    assert OLD not in {each.commit_hash for repo in scan_cache_dir(root).repos for each in repo.revisions}
    part = root / folder(MODEL) / "blobs" / "x.12345678.incomplete"
    part.write_bytes(b"x" * 100)
    os.utime(part, (1, 1))
    left = root / ".locks" / ".tsumugu" / "trash" / "abc" / "1"
    left.mkdir(parents=True)
    (left / "big").write_bytes(b"x" * 9000)
    cache("gc", "--dry-run", root=root)
    assert left.exists()
    assert "leftover" in cache("gc", "--yes", root=root)
    assert not part.exists()
    assert not left.exists()


def test_verify_and_repair(root: Path, hub: Hub) -> None:
    assert "15 of 15" in cache("verify", root=root) or "of unknown hash" in cache("verify", root=root)
    blob = (root / folder(MODEL) / "snapshots" / NEW / "model.safetensors").resolve()
    blob.write_bytes(b"3" * 7000)
    done = run("verify", MODEL, root=root)
    assert done.returncode == 2
    assert "1 file of the cache is damaged" in done.stderr
    cache("verify", "--repair", "--yes", root=root)
    get(hub, root, MODEL)
    assert blob.read_bytes() == b"2" * 7000
    cache("verify", root=root)


def test_move_and_the_line_for_the_profile(root: Path, tmp_path: Path) -> None:
    before = contents(root)
    new = tmp_path / "bigger disk" / "hub"
    told = cache("move", str(new), "--yes", root=root)
    assert f"HF_HUB_CACHE='{new}'" in told
    assert not root.exists()
    assert contents(new) == before
    cache("move", str(root), "--dir", str(new), "--link", "--yes", root=root)
    assert new.is_symlink()
    assert contents(root) == before
    assert f"model/{MODEL}" in cache("scan", root=new)


def test_asking_in_a_terminal(root: Path) -> None:
    environment = {**os.environ, "HF_HUB_CACHE": str(root)}
    for answer, gone in (("n", False), ("", False), ("y", True)):
        child = pexpect.spawn(
            sys.executable, ["-m", "tsumugu", "cache", "delete", SPACE], env=environment, encoding="utf-8", timeout=30
        )
        child.expect("Delete\\? \\[y/N\\]")
        assert (root / folder(SPACE, "spaces")).exists()
        child.sendline(answer)
        child.expect("Deleted" if gone else "Nothing was deleted")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
        assert (root / folder(SPACE, "spaces")).exists() is not gone


def test_the_list_in_an_editor(root: Path, tmp_path: Path) -> None:
    """``--disable-tui --edit``: the editor takes the # away, the count is shown, and it repeats until confirmed."""
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\nsed -i 's/^#   \\(model.org.alpha@{OLD}\\)/\\1/' \"$1\"\n")
    editor.chmod(0o755)
    environment = {**os.environ, "HF_HUB_CACHE": str(root), "EDITOR": str(editor), "VISUAL": ""}
    words = ["-m", "tsumugu", "cache", "delete", "--disable-tui"]
    child = pexpect.spawn(sys.executable, words, env=environment, encoding="utf-8", timeout=30)
    child.expect(r"The list is in (\S+)")
    path = Path(child.match.group(1))
    child.expect("0 revisions selected counting for 0 B")
    text = path.read_text()
    assert not [line for line in text.splitlines() if line and not line.startswith("#")]
    path.write_text(text + "nonsense\n")
    child.sendline("")
    child.expect("'nonsense' is not in the list")
    path.write_text(text)
    child.sendline("e")
    child.expect("1 revision selected counting for 1[34]")
    assert (root / folder(MODEL) / "snapshots" / OLD).exists()
    child.sendline("y")
    child.expect("Deleted")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert not path.exists()
    assert not (root / folder(MODEL) / "snapshots" / OLD).exists()
    assert (root / folder(MODEL) / "snapshots" / NEW).exists()


def test_the_list_left_alone_deletes_nothing(root: Path) -> None:
    before = contents(root)
    assert "0 revisions selected" in cache("delete", "--disable-tui", root=root, stdin="")
    assert contents(root) == before


def test_downloads_and_deletions_at_the_same_time(hub: Hub, root: Path) -> None:
    """Downloads while the same repo is deleted over and over: each ends whole or is done again, none is corrupt."""
    hub.push("org/busy", {f"f{number}.bin": bytes([number]) * 20_000 for number in range(6)})
    stop = threading.Event()
    errors: list[str] = []

    def deleting() -> None:
        while not stop.is_set():
            done = run("delete", "org/busy", "--yes", root=root)
            if "Traceback" in done.stderr:
                errors.append(done.stderr)

    thread = threading.Thread(target=deleting)
    hub.delay = 0.02
    thread.start()
    try:
        for _ in range(10):
            try:
                path = get(hub, root, "org/busy")
            except OSError:
                continue  # The folder went while the download began; whoever downloads is told so.
            for number in range(6):
                at = path / f"f{number}.bin"
                if at.exists():
                    assert at.read_bytes() == bytes([number]) * 20_000
    finally:
        stop.set()
        thread.join()
        hub.delay = 0.0
    assert not errors
    path = get(hub, root, "org/busy")
    assert sorted(each.name for each in path.iterdir()) == [f"f{number}.bin" for number in range(6)]
    assert not scan_cache_dir(root).warnings
    assert not scan(root=root).unreadable


def test_a_million_strays_cost_no_memory(root: Path, tmp_path: Path) -> None:
    """Fewer here, unless ``TSUMUGU_STRAYS`` says otherwise: the records stay a thousand, however many there are."""
    count = int(os.environ.get("TSUMUGU_STRAYS", "20000"))
    for number in range(count):
        os.close(os.open(root / f"stray{number}", os.O_CREAT | os.O_WRONLY))
    seen = scan(root=root)
    strays = next(part for part in seen.parts if part.kind == "files of no known kind")
    assert strays.count == count
    assert seen.disk == du(root)
    assert len([each for each in seen.leftovers if each.kind is Kind.STRAY]) <= 1000
    assert "files of no known kind" in run("scan", root=root).stderr
