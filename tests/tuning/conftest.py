"""What the tests of fine-tuning share: tiny models, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.threads import one_thread as one_thread
from tests.tuning.samples import base


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family."""
    made: dict[str, Path] = {}

    def give(family: str = "bert") -> Path:
        if family not in made:
            made[family] = base(tmp_path_factory.mktemp(family) / "model", family)
        return made[family]

    return give
