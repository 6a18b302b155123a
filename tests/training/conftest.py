"""What the training tests share: undisturbed runs to compare with, and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.threads import single
from tests.training.rank_groups import Ranks
from tests.training.recipes import recipe

from tsumugu.training.pretrain import train


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a whole run of a kind, made once, by one thread."""
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            with single():
                train(recipe(folder, kind), folder / "run", quiet=True)
            made[kind] = folder / "run"
        return made[kind]

    return run


@pytest.fixture(scope="session")
def group() -> Iterator[Ranks]:
    """Starts several ranks."""
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For the tests that ask for it."""
    with single():
        yield
