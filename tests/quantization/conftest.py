"""The tiny models and the tokenizer of the engines' tests."""

from __future__ import annotations

from tests.engines.conftest import build, tokenizer
from tests.threads import one_thread

__all__ = ["build", "one_thread", "tokenizer"]
