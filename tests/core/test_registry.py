"""The registry knows names without loading what they stand for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tsumugu.core import registry
from tsumugu.core.errors import UnknownNameError
from tsumugu.core.registry import FAMILIES, FUNCTIONS, TASKS, Registry

TABLES = [FAMILIES, TASKS, FUNCTIONS]


@pytest.fixture
def lazy_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported, and is not yet."""
    (tmp_path / "spun_yarn.py").write_text("LENGTH = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spun_yarn", raising=False)
    return "spun_yarn"


def test_listing_imports_nothing_and_look_up_imports_one_module(lazy_module):
    table = Registry("thread", {"yarn": f"{lazy_module}:LENGTH", "lost": "no_such_module:X"}, {"wool": "yarn"})
    assert (list(table), len(table), "yarn" in table, "wool" in table) == (["yarn", "lost"], 2, True, True)
    assert table.aliases("yarn") == ("wool",)
    assert table.canonical("wool") == "yarn"
    assert lazy_module not in sys.modules
    assert table["wool"] == 7
    assert lazy_module in sys.modules


@pytest.mark.parametrize("name", ["text-generation", "text_generation", "Text_Generation", "TEXT-GENERATION"])
def test_spelling_variants_are_one_name(name):
    assert TASKS.canonical(name) == "text-generation"


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        TASKS["text-genration"]
    assert str(caught.value) == "unknown task 'text-genration'; did you mean 'text-generation'?"
    with pytest.raises(UnknownNameError, match="unknown model family 'xyzzy'; known: bert"):
        FAMILIES["xyzzy"]
    assert TASKS.get("xyzzy", 3) == 3


@pytest.mark.parametrize("name", [None, 3, b"bert", ["bert"]])
def test_what_is_no_text_is_no_name(name):
    assert name not in FAMILIES
    with pytest.raises(UnknownNameError, match="called by a name"):
        FAMILIES[name]


def test_a_huge_name_is_refused_in_a_short_line():
    with pytest.raises(UnknownNameError) as caught:
        FAMILIES["x" * 1_000_000]
    assert len(str(caught.value)) < 1100


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_the_house_tables_lead_somewhere(table):
    assert table
    for name in table:
        assert table[name] is not None
        for alias in table.aliases(name):
            assert alias not in list(table)
            assert table.canonical(alias) == name
    assert set(table._aliases.values()) <= set(table)


def test_the_tables_load_no_rooms():
    code = f"import {registry.__name__} as r, sys; list(r.TASKS); list(r.FAMILIES); print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "tsumugu.models", "tsumugu.tasks", "tsumugu.generation"} & set(loaded)
