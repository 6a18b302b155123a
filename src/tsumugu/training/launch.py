"""How a run begins and ends, whatever is trained: its folder held, the recipe written into it, its cards at the end."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from tsumugu.anatomy.card import About, write_card
from tsumugu.core.errors import ConfigError, InputError, TsumuguError
from tsumugu.training.console import Console
from tsumugu.training.distributed import World
from tsumugu.training.events import LOG, JsonLines, Sink
from tsumugu.training.loop import Result, Trainer
from tsumugu.training.plots import Plots
from tsumugu.training.recipe import Settings, write_recipe
from tsumugu.training.runs import RECIPE, hold_run, is_run
from tsumugu.training.tensorboard import FOLDER, TensorBoard

S = TypeVar("S", bound=Settings)

RUNS = Path("runs")
"""Where runs go when nothing is said."""


def begin(settings: Settings, folder: Path, work: Callable[[World], Result], *, resume: bool) -> Result:
    """Do the work of a new run; what never began leaves nothing behind.

    Args:
        settings: its recipe.
        folder: the run's.
        work: all of it.
        resume: go on with the run that is there already. Ranks that torchrun started anew do so in any case.

    Raises:
        InputError: there is a run in the folder already.
    """
    with World.open(tensor=settings.parallel.tensor) as world:
        # Rank 0 looks before it makes the folder, and tells; torchrun counts restarts on each machine for itself.
        (restarts,) = world.sum([world.restarts])
        if world.broadcast(is_run(folder)) and not (resume or restarts):
            raise InputError(
                "there is a run in this folder", where=str(folder), mend="tsumugu resume it, or name another --output"
            )
        fresh = world.main and not folder.exists()
        try:
            return work(world)
        except TsumuguError:
            # So that a mended recipe finds no run; half-prepared text stays.
            if fresh and folder.is_dir() and not any(folder.rglob(LOG)) and not any(folder.glob(".*.preparing")):
                shutil.rmtree(folder)
            raise


def recipe_of(folder: Path, kind: type[S], overrides: Mapping[str, str] | None) -> S:
    """The recipe of a run that is to go on.

    Args:
        folder: the run's.
        kind: of its recipe.
        overrides: values by dotted key that replace its own; those of the sections `FIXED` cannot be.

    Raises:
        InputError: there is no run.
        ConfigError: an override is not legal.
    """
    if not (folder / RECIPE).is_file():
        raise InputError("there is no run to resume here", where=str(folder), mend="see tsumugu runs")
    recipe = kind.from_yaml(folder / RECIPE, overrides)
    for key in overrides or {}:
        if key.partition(".")[0] in kind.FIXED:
            raise ConfigError("this cannot change in a run that has begun", where=key, mend="begin another run")
    return recipe


@contextmanager
def opened(settings: Settings, folder: Path, world: World) -> Iterator[None]:
    """The run's folder, held by this process, with the recipe in it; the caller's own chance is left alone."""
    devices = [] if world.device.type == "cpu" else [world.device]
    with torch.random.fork_rng(devices):
        if not world.main:
            yield
            return
        folder.mkdir(parents=True, exist_ok=True)
        with hold_run(folder):
            for place in ("", "model/", "checkpoints/step-*/"):
                for left in folder.glob(f"{place}.*.partial"):  # of a process that was killed
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            write_recipe(settings, folder / RECIPE)
            yield


def go(trainer: Trainer, *, quiet: bool) -> Result:
    """Train, from the newest checkpoint on if there is one, telling the log, the console, the plots."""
    trainer.resume()
    if trainer.world.main:
        folder = trainer.folder
        sinks: list[Sink] = [JsonLines(folder / LOG), Plots(folder), Console(quiet=quiet)]
        if trainer.settings.tensorboard:
            sinks.insert(2, TensorBoard(folder / FOLDER))
        trainer.stream.sinks += sinks
    try:
        return trainer.run()
    finally:
        trainer.stream.close()


def describe(folders: Iterable[Path], sources: Sequence[Mapping[str, Any]], about: About) -> None:
    """A model card and an anatomy beside weights of a run. One that cannot be written spoils no run."""
    try:
        for each in folders:
            write_card(each, about, dataset={"sources": [*sources]})
    except (OSError, TsumuguError) as error:
        warnings.warn(f"no model card was written: {error}", stacklevel=2)
