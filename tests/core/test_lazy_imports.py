"""What is not asked for is not loaded, and what cannot be loaded is said in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tsumugu

HEAVY = ["torch", "numpy", "jax", "tensorflow", "ml_dtypes", "transformers", "onnxruntime"]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**kept, **environment},
    )


def loaded_by(code: str) -> set[str]:
    """The top-level modules that are loaded once `code` has run in a fresh interpreter."""
    report = "\nimport sys; print('loaded:', *{name.partition('.')[0] for name in sys.modules})"
    result = python("-c", code + report)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.partition("loaded:")[2].split())


def test_the_package_loads_nothing_but_itself():
    assert not {*HEAVY, "rich", "cyclopts", "tokenizers", "huggingface_hub", "safetensors"} & loaded_by(
        "import tsumugu"
    )


def test_no_public_name_is_also_a_module():
    """Importing such a module would put it in the place of the name."""
    place = Path(tsumugu.__file__).parent
    assert [name for name in tsumugu.__all__ if (place / name).exists() or (place / f"{name}.py").exists()] == []


@pytest.mark.parametrize("module", ["errors", "config", "registry", "tensors", "frameworks"])
def test_the_core_loads_no_framework(module):
    assert not {*HEAVY, "rich"} & loaded_by(f"import tsumugu.core.{module}")


@pytest.mark.parametrize("room", ["hub.resolve", "text.tokenizer", "cli"])
def test_the_hub_and_the_text_room_load_no_framework(room):
    assert not {"torch", "jax", "tensorflow"} & loaded_by(f"import tsumugu.{room}")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["pull", "--help"], ["xyzzy"]], ids=" ".join)
def test_the_command_line_loads_no_framework_for_help(arguments):
    result = python("-X", "importtime", "-m", "tsumugu", *arguments)
    names = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "|" in line}
    assert "tsumugu.cli" in names
    assert not set(HEAVY) & names


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("format_of([1])", HEAVY),
        ("convert_tensor([1, 2], 'np')", ["torch", "jax", "tensorflow", "ml_dtypes"]),
        ("convert_tensor(convert_tensor([1.5], 'np'), 'pt')", ["jax", "tensorflow"]),
        ("convert_tensor(convert_tensor([1.5], 'pt'), 'np')", ["jax", "tensorflow", "ml_dtypes"]),
        ("convert_tensor([1, 2], 'jax')", ["torch", "tensorflow"]),
    ],
)
def test_a_conversion_loads_only_what_it_names(code, absent):
    assert not set(absent) & loaded_by(
        f"from tsumugu.core.tensors import *; from tsumugu.core.tensors import format_of; {code}"
    )


@pytest.mark.parametrize(
    ("hidden", "code", "line"),
    [
        ("jax", "convert_tensor([1], 'jax')", "the tensor format 'jax' needs jax; pip install 'tsumugu[jax]'"),
        (
            "tensorflow",
            "convert_tensor([1], 'tf')",
            "the tensor format 'tf' needs tensorflow; pip install 'tsumugu[tf]'",
        ),
        (
            "ml_dtypes",
            "import torch; convert_tensor(torch.zeros(2, dtype=torch.bfloat16), 'np')",
            "a NumPy array of bfloat16 needs ml_dtypes; pip install 'tsumugu[jax]'",
        ),
    ],
)
def test_a_missing_framework_names_its_extra(hidden, code, line):
    script = f"""
import sys
sys.modules[{hidden!r}] = None
from tsumugu import convert_tensor
from tsumugu.core.errors import MissingExtraError
try:
    {code}
except MissingExtraError as error:
    print(error)
"""
    result = python("-c", script)
    assert result.stdout.strip() == line, result.stderr


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "raise ImportError('libgone.so.7: cannot open shared object file')",
            "libgone.so.7: cannot open shared object",
        ),
        ("import no_such_dependency", "No module named 'no_such_dependency'"),
        ("raise RuntimeError('built for another\\nversion')", "built for another version"),
    ],
)
def test_a_broken_install_is_told_from_a_missing_one(tmp_path: Path, body: str, said: str):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text(body)
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from tsumugu import TsumuguError, convert_tensor
from tsumugu.core.errors import MissingExtraError
try:
    convert_tensor([1], "jax")
except TsumuguError as error:
    print(type(error).__name__, error)
"""
    result = python("-c", script)
    assert result.stdout.startswith("TsumuguError jax is installed but does not import"), result.stderr
    assert said in result.stdout
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.slow
def test_tensorflow_starts_quietly_and_only_its_own_notes_are_kept_back():
    code = (
        "import os, sys\nfrom tsumugu import convert_tensor\nconvert_tensor([1], 'tf')\n"
        "print(os.environ['TF_CPP_MIN_LOG_LEVEL'])\nos.write(2, b'still here')"
    )
    quiet = python("-c", code)
    assert (quiet.stdout, quiet.stderr) == ("2\n", "still here")
    asked = python("-c", code, TF_CPP_MIN_LOG_LEVEL="0")
    assert asked.stdout == "0\n"
    assert asked.stderr.endswith("still here")
    assert len(asked.stderr) > len("still here")
