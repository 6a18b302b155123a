"""What comes of fine-tuning, in memory and in a run's folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsumugu.evaluation.evaluate import Evaluation
from tsumugu.evaluation.results import load
from tsumugu.training.checkpointing import LAST, State, find_checkpoint
from tsumugu.training.loop import Result

if TYPE_CHECKING:
    from tsumugu.tuning.repeat import Summary

MODEL, ADAPTER, TEST = "model", "adapter", "test"
"""What a run leaves at its end: the model, the adapter in it, and what it scores on the test split."""


@dataclass(frozen=True)
class Tuned:
    """What came of a run.

    Attributes:
        result: of the training loop.
        model: the folder of the best weights; None where the run was stopped before its end.
        test: how they solve the test split, where there is one; of folds, how each example is solved by the model that
            did not see it.
        summary: of runs that were repeated, how far they differ.
    """

    result: Result
    model: Path | None = None
    test: Evaluation | None = None
    summary: Summary | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """What the better of two runs of one task has more of: the validation score, then less loss."""
        score, loss = self.result.best_score, self.result.best_loss
        return (float("-inf") if score is None else score, float("-inf") if loss is None else -loss)


def read_tuned(folder: Path) -> Tuned | None:
    """What a run that came to its end left in its folder; None where it did not."""
    if not (folder / MODEL).is_dir():
        return None
    state = State.read(find_checkpoint(folder, LAST))
    result = Result(
        folder=folder,
        reason="done",
        signal=None,
        steps=state.step,
        tokens=state.tokens,
        seconds=state.seconds,
        loss=None,
        evaluation={},
        best_loss=state.best_loss,
        best_score=state.best_score,
        best_step=state.best_step,
    )
    if not (folder / TEST).is_dir():
        return Tuned(result, folder / MODEL)
    results, items = load(folder / TEST)
    return Tuned(result, folder / MODEL, Evaluation(results, tuple(items)))


def copy_model(source: Path, target: Path, *, leave: tuple[str, ...] = ()) -> Path:
    """The files of a folder under a second name, but for those called `leave`; the new folder appears whole."""
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns(*leave), copy_function=_linked)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    return target


def _linked(source: str, target: str) -> None:
    """The same file under a second name, where the disk can do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
