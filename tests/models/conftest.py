"""Reference models and what they save, made once a session."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.models import references
from tests.threads import one_thread as one_thread
from transformers import PreTrainedModel

Shelf = Callable[[str, str], tuple[PreTrainedModel, Path]]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """(case, head) -> a reference model and the folder that it was saved to."""

    @functools.cache
    def made(case: str, head: str) -> tuple[PreTrainedModel, Path]:
        model = references.reference(case, head)
        folder = tmp_path_factory.mktemp(f"{case} {head}".replace(" ", "-"))
        model.save_pretrained(folder)
        return model, folder

    return made
