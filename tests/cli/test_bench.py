"""`tsumugu bench`, as a user types it, and what the cache says of compiled models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tsumugu.cli import main
from tsumugu.core.errors import ConfigError
from tsumugu.engines.native.library import load_library


@pytest.fixture
def folder(cache: Path, tmp_path: Path) -> Path:
    import torch

    import tsumugu as tg
    from tsumugu.core.registry import FAMILIES

    try:
        load_library()
    except ConfigError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_positions": 128}
    family = FAMILIES["llama"]
    config = family.config_class.from_dict({**sizes, "intermediate_size": 48})
    return tg.save_model(family.build(config, "causal-lm"), tmp_path / "model")


def typed(*arguments: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        main([str(each) for each in arguments])
    return int(leaving.value.code or 0)


def test_limits_and_phases_are_shown(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for engine in ("native", "onnx", "torch"):
        assert typed("bench", folder, "--engine", engine, "--threads", 1, "--json") == 0
        found = json.loads(capfd.readouterr().out)
        assert found["engine"] == engine
        assert found["limits"]["bandwidth"]["1"] > 1e8
        assert found["limits"]["products"] > 1e8
        assert found["phases"][0]["work"] == "one text, a token"
        assert len(found["phases"]) == 3
        assert all(each["tokens"] > 0 < each["reached"] for each in found["phases"])
    assert typed("bench", folder, "--threads", 1) == 0
    out = capfd.readouterr().out
    assert "memory, 1 thread" in out
    assert "tokens/s" in out


def test_the_cache_lists_and_deletes_compiled_models(
    folder: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert typed("compile", folder, "--quiet") == 0
    compiled = Path(capfd.readouterr().out.strip())
    assert typed("cache", "scan", "--cache", "tsumugu", "--json") == 0
    scanned = capfd.readouterr().out
    assert compiled.name in scanned
    assert typed("cache", "scan", "--cache", "tsumugu", "--quiet") == 0
    name = next(line for line in capfd.readouterr().out.splitlines() if compiled.name in line)
    assert typed("cache", "delete", name, "--cache", "tsumugu", "--yes") == 0
    assert not compiled.exists()
    assert typed("compile", folder, "--quiet") == 0
    assert compiled.is_dir()
