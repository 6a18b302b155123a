"""What a run is made from, in its folder: the tokenizer, the corpus, and where and with what it works.

Each is made once, whole or not at all, so that a run which was killed at any moment goes on from its folder alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from tsumugu import __version__
from tsumugu.checkpoints.atomic import new_file
from tsumugu.checkpoints.load import load_tokenizer
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.corpus.documents import Reading, read_documents
from tsumugu.corpus.inputs import find_sources
from tsumugu.corpus.prepare import Progress, prepare
from tsumugu.corpus.shards import Corpus
from tsumugu.text.layouts import LAYOUTS
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.text.training import train_tokenizer
from tsumugu.training.recipe import Recipe

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

ENVIRONMENT = "environment.json"
EVERY = 10.0
"""Seconds between two words about how far preparing is."""
LIKE = {"gpt": "gpt2", "gpt3": "gpt2", "megatron": "gpt2", "electra": "bert"}
"""Families whose tokenizers are laid out as another's."""


def prepare_text(recipe: Recipe, folder: Path, *, quiet: bool = False) -> None:
    """Make the tokenizer and the corpus, if the recipe begins with raw text."""
    if recipe.data.corpus:
        return
    if not recipe.data.inputs:
        raise ConfigError("there is no text", where="data", mend="give data.inputs or data.corpus")
    with _Display(quiet=quiet) as display:
        _prepare(recipe, folder, display)


def _prepare(recipe: Recipe, folder: Path, display: _Display) -> None:
    data, section, place = recipe.data, recipe.tokenizer, folder / "tokenizer"
    source = section.source or recipe.model.init  # weights that are there know their own tokens only
    if source is None and not place.is_dir():
        own = FAMILIES.canonical(recipe.model.family or "")
        family = section.family or LIKE.get(own, own)
        if family not in LAYOUTS:
            raise ConfigError(
                f"no tokenizer is laid out for {family}", where="tokenizer.family", mend=f"known: {', '.join(LAYOUTS)}"
            )
        made = train_tokenizer(
            _texts(recipe),
            family=family,
            vocab_size=section.vocab_size,
            kind=section.kind,
            language=section.language,
            segment=section.segment,
            dictionary=section.dictionary,
            lowercase=section.lowercase,
            nfkc=section.nfkc,
            special_tokens=section.special_tokens,
            progress=display.tokenizer,
        )
        aside = folder / ".tokenizer.partial"
        shutil.rmtree(aside, ignore_errors=True)
        made.save(aside)
        aside.rename(place)
    if not (folder / "corpus" / "corpus.json").is_file():
        prepare(
            data.inputs,
            folder / "corpus",
            tokenizer=source or place,
            cleaning=data.cleaning,
            validation=data.validation,
            validation_share=0.0 if data.validation else data.validation_share,
            text_column=data.text_column,
            document=data.document,
            progress=display.corpus,
        )


class _Display:
    """How far preparing is: a bar in a terminal, elsewhere a line now and then where it takes long."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._due = quiet, time.monotonic() + EVERY
        self._bars: Bars | None = None
        self._phase = ""
        if not quiet and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                SpinnerColumn,
                TaskProgressColumn,
                TextColumn,
                TimeElapsedColumn,
            )

            columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
            console = Console(stderr=True, highlight=False)
            self._bars = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
            self._task = self._bars.add_task("preparing", total=None)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def tokenizer(self, phase: str, texts: int) -> None:
        """Told by `train_tokenizer`."""
        what = "reading for the tokenizer" if phase == "reading" else "training the tokenizer"
        self._tell(f"{what}: {texts:,} documents")

    def corpus(self, now: Progress) -> None:
        """Told by `prepare`."""
        self._tell(f"preparing: {now.documents:,} documents, {now.tokens:,} tokens", now.done, now.total or None)

    def _tell(self, what: str, done: int = 0, total: int | None = None) -> None:
        if self._bars is not None:
            begins, self._phase = what.partition(":")[0] != self._phase, what.partition(":")[0]
            # However short a phase is, it is seen.
            self._bars.update(self._task, description=what, completed=done, total=total, refresh=begins)
        elif not self._quiet and time.monotonic() >= self._due:
            self._due = time.monotonic() + EVERY
            share = f", {done / total:.0%}" if total else ""
            sys.stderr.write(f"{what}{share}\n")


def _texts(recipe: Recipe) -> Iterator[str]:
    reading = Reading(recipe.data.document, recipe.data.text_column)
    for source in find_sources(recipe.data.inputs):
        for document in read_documents(source, reading):
            yield document.text


def open_corpora(recipe: Recipe, folder: Path) -> tuple[list[Corpus], Tokenizer]:
    """The prepared texts, all with one tokenizer."""
    corpora = [Corpus.open(each) for each in recipe.data.corpus or (folder / "corpus",)]
    tokenizer = corpora[0].tokenizer()
    for each in corpora[1:]:
        if each.tokenizer().get_vocab() != tokenizer.get_vocab():
            raise InputError(
                "this corpus was prepared with another tokenizer than the first",
                where=str(each.path),
                mend="prepare it anew",
            )
    if recipe.data.corpus and recipe.tokenizer.source is not None:
        given = load_tokenizer(recipe.tokenizer.source)
        if given.get_vocab() != tokenizer.get_vocab():
            raise InputError(
                "the corpus was prepared with another tokenizer", where="tokenizer.source", mend="leave it out"
            )
    return corpora, tokenizer


def keep_environment(folder: Path, checksums: Sequence[str], sources: Sequence[Mapping[str, Any]]) -> None:
    """Write down where and with what the run works, once; later its data must be the same.

    Args:
        folder: the run's.
        checksums: of its data.
        sources: where they came from.

    Raises:
        InputError: the data have changed since the run began.
    """
    path = folder / ENVIRONMENT
    if path.is_file():
        try:
            known = json.loads(path.read_text("utf-8")).get("data")
        except (ValueError, AttributeError):
            known = None
        if known is not None and known != list(checksums):
            raise InputError(
                "the data are not those that the run began with", where=str(folder), mend="begin another run"
            )
        return
    names = ("torch", "numpy", "tokenizers", "safetensors")
    values = {
        "tsumugu": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "packages": {name: importlib.metadata.version(name) for name in names},
        "commit": _commit(),
        "data": list(checksums),
        "sources": list(sources),
    }
    with new_file(path) as partial:
        partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _commit() -> str | None:
    """The commit of the folder that the run was started in, with `+` where files differ from it; None elsewhere."""
    git = shutil.which("git")
    if git is None:
        return None
    said = []
    for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        done = subprocess.run([git, *words], capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            return None
        said.append(done.stdout.strip())
    return said[0] + ("+" if said[1] else "")
