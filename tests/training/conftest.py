"""What the training tests share: undisturbed runs to compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.training.recipes import recipe

from tsumugu.training.pretrain import train


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a whole run of a kind, made once."""
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            train(recipe(folder, kind), folder / "run", quiet=True)
            made[kind] = folder / "run"
        return made[kind]

    return run
