"""What the tests of fine-tuning share: tiny models, made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.tuning.samples import base


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What is this small is quicker so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family."""
    made: dict[str, Path] = {}

    def give(family: str = "bert") -> Path:
        if family not in made:
            made[family] = base(tmp_path_factory.mktemp(family) / "model", family)
        return made[family]

    return give
