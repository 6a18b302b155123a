"""The tiny models and the tokenizer of the engines' tests."""

from __future__ import annotations

from tests.engines.conftest import build, one_thread, tokenizer

__all__ = ["build", "one_thread", "tokenizer"]
