"""The import of a framework: only when it is asked for, quiet, and one clear line when it cannot be had."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsumugu.core.errors import MissingExtraError, TsumuguError

_EXTRAS = {"jax": "jax", "tensorflow": "tf", "ml_dtypes": "jax"}
_PURPOSES = {
    "jax": "the tensor format 'jax'",
    "tensorflow": "the tensor format 'tf'",
    "ml_dtypes": "a NumPy array of bfloat16",
}


def load(package: str) -> Any:
    """Import a framework.

    Raises:
        MissingExtraError: it is not installed, and comes with an extra of ours.
        TsumuguError: it is installed but broken.
    """
    noisy = package == "tensorflow" and package not in sys.modules
    try:
        with _hush_tensorflow() if noisy else contextlib.nullcontext():
            return importlib.import_module(package)
    except (ImportError, AttributeError, RuntimeError, OSError, TypeError, ValueError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        if absent and package in _EXTRAS:
            raise MissingExtraError(package, extra=_EXTRAS[package], purpose=_PURPOSES[package]) from None
        state = "is not installed" if absent else f"is installed but does not import ({error})"
        raise TsumuguError(f"{package} {state}", mend=f"pip install --force-reinstall {package}") from error


@contextlib.contextmanager
def _hush_tensorflow() -> Iterator[None]:
    """Keep TensorFlow's start-up notes off the terminal, unless TF_CPP_MIN_LOG_LEVEL=0 asks for them.

    Some are written before that variable is read, straight to the file descriptor, so this is parked meanwhile. Once
    JAX is imported the variable is always set (to 1), so that a user's own setting cannot be told from none.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") == "0":
        yield
        return
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    try:
        parked = os.dup(2)
    except OSError:  # no standard error at all
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(parked, 2)
        os.close(parked)
