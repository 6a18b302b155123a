"""`tsumugu quantize`, as a user types it."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

import pytest
from tests.engines.conftest import build, tokenizer
from tests.quantization.test_quantize import SIZES

import tsumugu as tg
from tsumugu.cli import main
from tsumugu.text.tokenizer import Tokenizer

__all__ = ["build", "tokenizer"]


def test_a_file_is_written_and_used(build, tokenizer: Tokenizer, cache: Path, tmp_path: Path, capfd) -> None:
    def typed(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main([str(each) for each in arguments])
        printed = capfd.readouterr()
        return int(leaving.value.code or 0), printed.out, printed.err

    source = tg.save_model(build("llama", **SIZES), tmp_path / "model", tokenizer=tokenizer)
    (tmp_path / "texts.txt").write_text(pydoc_data.topics.topics["class"], "utf-8")
    path = tmp_path / "small.gguf"
    options = ("--symmetric", "--calibrate", tmp_path / "texts.txt", "--tokens", 512, "-q")
    assert typed("quantize", source, "-o", path, *options) == (0, f"{path}\n", "")
    code, out, _ = typed("run", "text-generation", "A class", "-m", path, "-n", 3)
    assert code == 0
    assert out.strip()
    code, out, err = typed("quantize", source, "-o", tmp_path / "folder", "--bits", 8)
    assert (code, err) == (0, "")
    assert "model.gguf  (0." in out.replace("\n", "")
    for wrong in (("--bits", 5), ("--bits", 8, "--asymmetric"), ("--calibrate", tmp_path / "no"), ("--method", "gptq")):
        code, out, err = typed("quantize", source, "-o", tmp_path / "other.gguf", *wrong)
        assert (code, out) == (2, ""), wrong
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "other.gguf").exists()
    code, out, err = typed("quantize", source, "-o", tmp_path / "small.txt")
    assert (code, out) == (2, "")
    assert err.replace("\n", " ").endswith("a quantised model is a GGUF file; end the name in .gguf ")
    assert not (tmp_path / "small.txt").exists()
