"""``tsumugu models``: families, short names and caches, without loading torch."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tsumugu.core.registry import FAMILIES, FAMILY_SUMMARIES
from tsumugu.hub.resolve import pull


def models(*arguments: str) -> str:
    command = [sys.executable, "-m", "tsumugu", "models", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def tiny(cache: Path, shelf: Path, tmp_path: Path, make_wheel: Callable[..., Path]) -> Path:
    """One model in each cache; the hub's lacks a shard."""
    snapshot = tmp_path / "hf/hub/models--org--part/snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    make_wheel(shelf, "tiny-gguf", {"tiny_gguf/tiny.gguf": os.urandom(2_000_000)}, metadata="License: Apache-2.0")
    return pull("pypi:tiny-gguf").path


def test_json(tiny: Path, tmp_path: Path) -> None:
    found = json.loads(models("--json"))
    assert [each["name"] for each in found["families"]] == list(FAMILIES)
    assert {each["name"]: each["path"] for each in found["short_names"]} == {
        "smollm2": None,
        "minilm": None,
        "gemma3-270m": None,
    }
    mine, other = found["cached"]
    assert mine == {
        "name": "pypi:tiny-gguf",
        "kind": "pypi",
        "revision": "1.0",
        "path": str(tiny),
        "size": 2_000_000,
        "licence": "Apache-2.0",
        "whole": True,
    }
    assert (other["name"], other["kind"], other["licence"], other["whole"]) == ("org/part", "hub", "mit", False)
    assert found["folders"] == {"tsumugu": str(tmp_path / "home"), "hub": str(tmp_path / "hf/hub")}


def test_cached_only(tiny: Path) -> None:
    found = json.loads(models("--json", "--cached"))
    assert set(found) == {"cached", "folders"}
    assert len(found["cached"]) == 2


def test_the_tables(tiny: Path) -> None:
    shown = models()
    for word in ("bert", "gpt2", "llama", "smollm2", "minilm", "gemma3-270m", "pypi:tiny-gguf", "2.0 MB", "incomplete"):
        assert word in shown
    assert "Families" not in models("--cached")


def test_empty_caches(cache: Path) -> None:
    assert json.loads(models("--json", "--cached"))["cached"] == []
    assert "0.0 MB" in models("--cached")
    assert not cache.exists()


def test_listing_loads_no_torch(cache: Path) -> None:
    program = "import sys; from tsumugu.cli.models import models; models(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", FAMILIES)
def test_summaries_are_what_the_families_say(name: str) -> None:
    if importlib.util.find_spec(f"tsumugu.models.{name}") is None:
        pytest.skip(f"the family {name} is not written yet")
    family = FAMILIES[name]
    shown = FAMILY_SUMMARIES[name]
    assert (shown.model_types, shown.summary) == (tuple(family.model_types), family.summary)


def test_every_family_has_a_summary() -> None:
    assert list(FAMILY_SUMMARIES) == list(FAMILIES)
