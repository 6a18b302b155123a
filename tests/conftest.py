"""What tests of several rooms share: real weights, pulled once into the user's own cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsumugu.core.errors import HubError
from tsumugu.hub.resolve import pull


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return _pulled("smollm2")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return _pulled("minilm")


def _pulled(name: str) -> Path:
    try:
        return pull(name).path
    except HubError as error:
        pytest.skip(f"{name} cannot be had: {error}")
