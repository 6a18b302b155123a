"""The rules of the house that a machine can hold: who imports whom, how long a file is, what no file may contain."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "tsumugu").rglob("*.py"))
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".json", ".cfg", ".html", ".css", ".js", ".sh", ""}

# No room but the machine rooms loads these when it is imported; the reference library is never loaded at all.
LAZY = {"core", "hub", "text", "cli"}
FRAMEWORKS = {"torch", "numpy", "jax", "tensorflow"}
NEVER = {"transformers", "datasets", "sentence_transformers", "pytest", "hypothesis"}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def all_sources(function):
    return pytest.mark.parametrize("path", SOURCES, ids=named)(function)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


@cache
def tracked() -> list[Path]:
    """The text files under version control (or those of an unpacked archive of the sources)."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        paths = [each for room in ("src", "tests", "docs", "benchmarks") for each in (ROOT / room).rglob("*")]
    return [each for each in paths if each.suffix in TEXT_SUFFIXES and each.is_file()]


def imports_when_loaded(body: list[ast.stmt]) -> Iterator[str]:
    """The top-level packages that a module loads when it is itself imported: not in functions, not for typing."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports_when_loaded(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from imports_when_loaded(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from imports_when_loaded(handler.body)


def test_imports_go_down_only():
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed beside this Python")
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@all_sources
def test_light_rooms_load_no_framework_and_no_room_the_reference_library(path):
    loaded = set(imports_when_loaded(tree(path).body))
    room = path.relative_to(ROOT / "src" / "tsumugu").parts[0]
    assert not loaded & NEVER
    if room in LAZY or len(path.relative_to(ROOT / "src" / "tsumugu").parts) == 1:
        assert not loaded & FRAMEWORKS


@all_sources
def test_a_file_reads_in_one_sitting(path):
    assert len(path.read_text("utf-8").splitlines()) <= 450


@all_sources
def test_what_is_public_says_what_it_is(path):
    module = tree(path)
    assert ast.get_docstring(module), "the module has no docstring"
    silent = [
        node.name
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not any(ast.unparse(each) == "overload" for each in node.decorator_list)
    ]
    assert not silent


@all_sources
def test_nothing_is_left_undone(path):
    marks = re.findall(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text("utf-8"))
    raised = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Raise) and node.exc is not None]
    stubs = [node.lineno for node in raised if "NotImplementedError" in ast.unparse(node.exc)]
    assert not marks
    assert not stubs


@all_sources
def test_only_the_command_line_prints(path):
    if "cli" in path.parts:
        return
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not [node.lineno for node in calls if node.func.id == "print"]


def last_words(node: ast.expr) -> str:
    """The end of a message that is written out in the source."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[-1]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@all_sources
def test_error_messages_are_clauses_without_a_full_stop(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and re.fullmatch(r"\w+Error", node.func.id):
            parts = [*node.args[:1], *(each.value for each in node.keywords if each.arg in {"what", "mend"})]
            assert not [part.lineno for part in parts if last_words(part).rstrip().endswith(".")]


@pytest.mark.parametrize("path", tracked(), ids=named)
def test_no_file_knows_the_machine_it_was_written_on(path):
    text = path.read_text("utf-8", errors="replace")
    assert f"{ROOT}/" not in text
    assert not re.findall(r"/(?:home|Users)/[a-z]\w*/", text)
    assert not re.findall(r"(?<![\w.~$}])/[r]oot/", text)
    assert not re.findall(
        r"pythonhosted[.]org|pypi[.]org/simple|registry[.]npmjs|index-url\s*=?\s*http|[a]rtifactory", text
    )
    assert not re.findall(r"^(?:<{7}|>{7}|={7})(?: |$)", text, re.MULTILINE)


def pages(language: str) -> set[str]:
    folder = ROOT / "docs" / language
    return {each.relative_to(folder).as_posix() for each in folder.rglob("*.md")}


def test_both_languages_have_the_same_pages():
    if not (ROOT / "docs").exists() or not pages("en") | pages("ja"):
        pytest.skip("there are no docs here")
    assert pages("en") == pages("ja")


@pytest.mark.parametrize("page", sorted(pages("en") & pages("ja")) or ["index.md"])
def test_both_languages_have_the_same_sections(page):
    if page not in pages("en"):
        pytest.skip("there are no docs here")
    assert outline(ROOT / "docs" / "en" / page) == outline(ROOT / "docs" / "ja" / page)


def outline(path: Path) -> list[int]:
    """The levels of a page's headings, in order; what stands in code blocks is no heading."""
    text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [len(each) for each in re.findall(r"^(#+) ", text, re.MULTILINE)]


def test_both_readmes_have_the_same_sections():
    english, japanese = ROOT / "README.md", ROOT / "README.ja.md"
    if not english.exists() and not japanese.exists():
        pytest.skip("there are no readmes here")
    assert english.exists()
    assert japanese.exists()
    assert outline(english) == outline(japanese)
