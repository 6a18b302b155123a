"""A run's checkpoints: each a folder in Hugging Face's layout, with all that training goes on from beside the weights.

`checkpoints/step-00001000/` holds config.json, model.safetensors, the tokenizer; and `training/`: `state.json` (a few
numbers) and `sharded/` (weights, optimiser, averages; see `sharded`). A folder appears whole. `best` and `last` in the
run's folder name one each. Where an adapter is trained there are no weights but its own, in PEFT's layout.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tsumugu.adapters.adapt import trained_parameters
from tsumugu.adapters.save import save_adapter
from tsumugu.checkpoints.atomic import new_file
from tsumugu.core.errors import CheckpointError
from tsumugu.engines.torch import save_model
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.training.distributed import World
from tsumugu.training.ema import Ema
from tsumugu.training.parallel import whole
from tsumugu.training.recipe import CheckpointSection
from tsumugu.training.sharded import ShardedSaver, load_sharded, training_tensors

FOLDER, STATE, SHARDED = "checkpoints", "training/state.json", "training/sharded"
BEST, LAST = "best", "last"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass
class State:
    """Where a run stands, beside the tensors. Nothing is drawn from a generator that would have to be kept.

    Attributes:
        step: optimiser steps done.
        offset: steps' worth of data that rollbacks left out.
        rollbacks: how many there were.
        tokens: real tokens read.
        seconds: of training.
        best_loss, best_score, best_step: the best evaluation.
        stale: evaluations since then.
        mean, deviation: running averages of the loss and of how far it strays, to tell a spike.
        high: how many steps running the loss stood out.
    """

    step: int = 0
    offset: int = 0
    rollbacks: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_score: float | None = None
    best_step: int | None = None
    stale: int = 0
    mean: float | None = None
    deviation: float = 0.0
    high: int = 0

    def improved(self, loss: float, score: float | None, least: float) -> bool:
        """Whether an evaluation is better than the best so far by more than `least`: by its score, else by its loss."""
        if score is not None and self.best_score is not None and score != self.best_score:
            return score > self.best_score + least
        return self.best_loss is None or loss < self.best_loss - (0.0 if score is not None else least)

    @classmethod
    def read(cls, checkpoint: Path) -> State:
        """That of a checkpoint.

        Raises:
            CheckpointError: it is not there or not one.
        """
        path = checkpoint / STATE
        try:
            found = json.loads(path.read_text("utf-8"))
            state = cls(**found)
            if type(state.step) is not int or state.step < 0 or type(state.offset) is not int or state.offset < 0:
                raise ValueError("its counts are no counts")
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"the state of training cannot be read ({error})", where=str(path)) from None
        return state


class Checkpoints:
    """Saves a run, in the background, and tidies up.

    Args:
        run: the run's folder.
        section: what is kept.
        model, optimizer, ema: what is saved; built for `world`.
        tokenizer: saved with the weights.
        world: all of its ranks call `save` together.
    """

    def __init__(
        self,
        run: Path,
        section: CheckpointSection,
        *,
        model: Model,
        optimizer: torch.optim.Optimizer,
        ema: Ema | None,
        tokenizer: Tokenizer | None,
        world: World,
    ) -> None:
        self.folder, self._run, self._section = run / FOLDER, run, section
        self._model, self._optimizer, self._ema = model, optimizer, ema
        self._tokenizer, self._world = tokenizer, world
        self._saver = ShardedSaver(world)

    def save(self, state: State) -> Path:
        """Begin to save; what went wrong with the one before is raised here."""
        target = self.folder / f"step-{state.step:08}"
        self._saver.wait()
        if self._world.main:
            self.folder.mkdir(exist_ok=True)
        exported = self._exported()
        text = json.dumps(asdict(state), indent=2) + "\n"

        def finish(folder: Path) -> None:
            save = save_adapter if self._model.adapters else save_model
            save(self._model, folder, tokenizer=self._tokenizer, tensors=exported)
            (folder / STATE).write_text(text, "utf-8")

        tensors = training_tensors(self._model, self._optimizer, self._ema)
        self._saver.save(target, tensors, inside=SHARDED, finish=finish, afterwards=lambda: self._settle(state, target))
        return target

    def wait(self) -> None:
        """Wait until what is being saved is on the disk."""
        self._saver.wait()

    def load(self, checkpoint: Path) -> State:
        """Put everything back as it was; gives where the run stood."""
        self._saver.wait()
        load_sharded(checkpoint / SHARDED, self._world, self._model, self._optimizer, self._ema)
        state = State.read(checkpoint)
        if self._world.main:
            self._settle(state, checkpoint)  # the process that wrote it may not have come so far
        return state

    def newest(self) -> Path | None:
        """The checkpoint with the most steps, one that is still being written included; the same on all ranks."""
        self._saver.wait()
        found = steps_in(self.folder) if self._world.main else {}
        name = self._world.broadcast(found[max(found)].name if found else None)
        return None if name is None else self.folder / name

    def _exported(self) -> dict[str, Tensor]:
        """Copies of the weights as others shall load them: the averages where there are some. On rank 0."""
        averages: Mapping[str, Tensor] = {} if self._ema is None else self._ema.tensors()
        found = {}
        params = trained_parameters(self._model) if self._model.adapters else dict(self._model.named_parameters())
        for name, each in params.items():
            full = whole(averages.get(name, each).detach())
            if self._world.main:
                found[name] = full.to("cpu", each.dtype, copy=True)
        return found

    def _settle(self, state: State, last: Path) -> None:
        """Name the last checkpoint and the best, and delete those that are not to stay."""
        best = self.folder / f"step-{state.best_step or 0:08}"
        for name, path in ((LAST, last), (BEST, best)):
            if path.is_dir():
                with new_file(self._run / name) as partial:
                    partial.write_text(f"{path.name}\n", "utf-8")
        self._tidy(state.best_step)

    def _tidy(self, best: int | None) -> None:
        """Delete checkpoints that are not to stay, and what a killed process left half written."""
        section, found = self._section, steps_in(self.folder)
        last = sorted(found)[-section.keep :]
        for step, path in found.items():
            milestone = section.milestones is not None and step % section.milestones == 0
            if step not in last and not milestone and not (section.best and step == best):
                gone = path.with_name(f".{path.name}.deleted")
                with contextlib.suppress(OSError):
                    path.rename(gone)
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)


def steps_in(folder: Path) -> dict[int, Path]:
    """The whole checkpoints in a folder, by step."""
    paths = folder.iterdir() if folder.is_dir() else ()
    named = ((_NAME.fullmatch(path.name), path) for path in paths)
    return {int(match[1]): path for match, path in named if match is not None and path.is_dir()}


def find_checkpoint(run: Path, name: str = BEST) -> Path:
    """The checkpoint of a run called `best`, `last` or by its own name; the last where no best was evaluated.

    Raises:
        CheckpointError: the run has none.
    """
    for pointer in (name, LAST):
        path = run / pointer
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = path.read_text("utf-8").strip()
            if _NAME.fullmatch(found) and (run / FOLDER / found).is_dir():
                return run / FOLDER / found
    if _NAME.fullmatch(name) and (run / FOLDER / name).is_dir():
        return run / FOLDER / name
    raise CheckpointError("the run has no checkpoint", where=str(run), mend="resume it")
