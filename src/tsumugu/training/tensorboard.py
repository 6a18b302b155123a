"""A sink that writes TensorBoard's event files, for ``tensorboard --logdir runs``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tsumugu.core.errors import MissingExtraError
from tsumugu.training.events import Event

FOLDER = "tensorboard"
"""The name of the folder of these files in a run's folder."""

_STEP = ("loss", "lr", "grad_norm", "tokens", "tokens_per_second", "epoch", "memory", "mfu", "padding")
_EVALUATION = ("loss", "bits_per_byte", "seconds")


class TensorBoard:
    """Writes the numbers of steps and evaluations as scalars (``train/loss``, ``evaluation/loss`` …), samples as text.

    Args:
        folder: where to write; made if it is not there.
        every: of so many steps one is written; evaluations all are.

    Raises:
        MissingExtraError: tensorboardX is not installed. (It is small, needs no tensorboard, and unlike PyTorch's own
            writer loads no TensorFlow where that is installed.)
    """

    def __init__(self, folder: str | Path, *, every: int = 1) -> None:
        try:
            library: Any = importlib.import_module("tensorboardX")
        except ModuleNotFoundError as error:
            if error.name != "tensorboardX":
                raise
            raise MissingExtraError(
                "tensorboardX", extra="tensorboard", purpose="writing files for TensorBoard"
            ) from None
        self._make = library.SummaryWriter
        self._summary = importlib.import_module("tensorboardX.proto.summary_pb2").Summary
        self._folder, self._every = Path(folder), every
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if event.kind in ("resumed", "rollback") or self._writer is None:
            self._open(event)
        values = event.values
        if event.kind == "step" and event.step % self._every == 0:
            self._scalars(event, "train", _scalars(values, _STEP))
        elif event.kind == "evaluation":
            self._scalars(event, "evaluation", _scalars(values, _EVALUATION))
        elif event.kind == "start":
            told = "\n".join(f"    {key}: {value}" for key, value in values.items())  # indented: shown as it is
            self._writer.add_text("run", told, event.step, walltime=event.time)
        elif event.kind == "sample":
            text = f"{values.get('prompt') or ''}{values.get('text', '')}"
            indented = "\n".join("    " + line for line in text.splitlines())
            self._writer.add_text("sample", indented, event.step, walltime=event.time)
        if event.kind in ("checkpoint", "evaluation", "end"):
            self._writer.flush()

    def close(self) -> None:
        """Bring everything into the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, event: Event) -> None:
        """Begin a file. TensorBoard forgets what older files say of this step and later ones."""
        again = event.kind in ("resumed", "rollback")
        self.close()
        files = sum(1 for _ in self._folder.iterdir()) if self._folder.is_dir() else 0
        self._writer = self._make(
            str(self._folder),
            purge_step=_step_after(event) if again else None,
            filename_suffix=f".{files:04}",  # names go by seconds, and two files may begin in one
        )

    def _scalars(self, event: Event, room: str, found: Iterator[tuple[str, float]]) -> None:
        """All numbers of an event as one record: `add_scalar` for each would take five times as long."""
        values = [self._summary.Value(tag=f"{room}/{name}", simple_value=value) for name, value in found]
        self._writer.file_writer.add_summary(self._summary(value=values), event.step, event.time)


def _step_after(event: Event) -> int:
    """The first step that will be done again."""
    to = event.values.get("to")
    return (to if isinstance(to, int) and event.kind == "rollback" else event.step) + 1


def _scalars(values: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    for name in names:
        value = values.get(name)
        if isinstance(value, int | float):
            yield name, value
    scores = values.get("scores")
    if isinstance(scores, Mapping):
        yield from ((name, value) for name, value in scores.items() if isinstance(value, int | float))
    losses = values.get("losses")
    if isinstance(losses, Mapping) and len(losses) > 1:
        for name, value in losses.items():
            if isinstance(value, int | float):
                yield f"loss_{name}", value
