"""Checkpoints that every rank writes a part of, and that any number of ranks reads."""

from __future__ import annotations

import secrets
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from tsumugu.checkpoints.atomic import said_clearly, sync
from tsumugu.core.errors import CheckpointError
from tsumugu.training.distributed import World
from tsumugu.training.ema import Ema
from tsumugu.training.optimizers import WRAPPERS
from tsumugu.training.shard_storage import Reader, ShardedIndex, Snapshot


def training_tensors(model: nn.Module, optimizer: Optimizer | None = None, ema: Ema | None = None) -> dict[str, Tensor]:
    """All that a run has learnt, by name; not copies. A parameter that has two names comes under its first."""
    found = {f"model.{name}": each.detach() for name, each in _weights(model).items()}
    if optimizer is not None:
        for name, param in _weights(model).items():
            # Nothing is there before the first step, nor for a parameter that is not trained.
            state = optimizer.state.get(param, {})
            tensors = {key: each for key, each in state.items() if isinstance(each, Tensor)}
            found |= {f"optimizer.{name}.{key}": each.detach() for key, each in tensors.items()}
    if ema is not None:
        found |= {f"ema.{_plain(name)}": each for name, each in ema.tensors().items()}
    return found


class ShardedSaver:
    """Writes checkpoints in the background: `save` returns when the tensors are copied.

    Args:
        world: all of its ranks call `save` together.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(
        self,
        target: Path,
        tensors: Mapping[str, Tensor],
        *,
        inside: str = ".",
        finish: Callable[[Path], None] | None = None,
        afterwards: Callable[[], None] | None = None,
    ) -> None:
        """Begin to write a new folder `target`, which appears whole or not at all, on a disk that all ranks share.

        Waits for the checkpoint before. What goes wrong in the background is raised by the next `save` or `wait`.

        Args:
            target: must not exist.
            tensors: the same names on all ranks, sharded or whole.
            inside: the folder of `target` that takes the tensors.
            finish: called on rank 0 with the folder, under its temporary name, to add to it before it appears; in the
                background, when all ranks have written their parts.
            afterwards: called on rank 0 in the background, when the folder has appeared.
        """
        self.wait()
        world = self.world
        snapshot = Snapshot()
        with _planned(target):
            state_dict_saver.save(
                dict(tensors), storage_writer=snapshot, process_group=world.control, no_dist=world.size == 1
            )
        # Rank 0 makes the folder before it tells its name.
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        problem: str | None = None
        if world.main:
            try:
                (partial / inside).mkdir(parents=True)
            except OSError as error:
                problem = f"cannot be made: {error.strerror}"
        name, problem = world.broadcast([partial.name, problem])
        if problem is not None:
            raise CheckpointError(problem, where=str(target))
        partial = target.with_name(name)

        def work() -> None:
            try:
                self._write(snapshot, target, partial, inside, finish, afterwards)
            except CheckpointError as error:  # of a file under the temporary name, which is gone by now
                self._error = CheckpointError(error.what, where=str(target), mend=error.mend)
            except Exception as error:  # noqa: BLE001 - raised again by wait()
                self._error = error

        # Not waited for when the process ends by an error: other ranks wait for its end.
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            CheckpointError: it could not be, on this rank or on another.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(
        self,
        snapshot: Snapshot,
        target: Path,
        partial: Path,
        inside: str,
        finish: Callable[[Path], None] | None,
        afterwards: Callable[[], None] | None,
    ) -> None:
        folder, world = partial / inside, self.world
        self._together(partial, lambda: snapshot.write(folder))

        def complete() -> None:
            if world.main:
                snapshot.write_index(folder)
                if finish is not None:
                    finish(partial)
                with said_clearly(target):
                    sync(folder)
                    sync(partial)
                    partial.rename(target)
                    sync(target.parent)
                if afterwards is not None:
                    afterwards()

        self._together(partial, complete)

    def _together(self, partial: Path, work: Callable[[], None]) -> None:
        """Do it on all ranks; if one fails, all do, and nothing is left behind."""
        error: Exception | None = None
        try:
            work()
        except Exception as caught:  # noqa: BLE001 - raised below, when the others know
            error = caught
        failed = self.world.agree(error is None, group=self.world.saving)
        if not failed:
            return
        if self.world.main:
            shutil.rmtree(partial, ignore_errors=True)
        if error is not None:
            raise error
        raise CheckpointError(f"the checkpoint was given up: rank {failed[0]} could not write its part")


def load_sharded(
    folder: Path, world: World, model: nn.Module, optimizer: Optimizer | None = None, ema: Ema | None = None
) -> None:
    """Put a checkpoint's tensors into the model, the optimiser and the averages, however many ranks wrote it.

    Args:
        folder: holds the index.
        world: its ranks read together, each what it needs.
        model, optimizer, ema: built, and sharded as they are to be; what is None is not read.

    Raises:
        CheckpointError: the files are damaged or absent, or do not fit the model.
    """
    index = ShardedIndex.read(folder)
    wanted = {f"model.{name}": each.detach() for name, each in _weights(model).items()}
    state: dict[str, dict[str, Tensor]] = {}
    if optimizer is not None:
        state = _room(index, model, optimizer)
        wanted |= {f"optimizer.{name}.{key}": each for name, keys in state.items() for key, each in keys.items()}
    if ema is not None:
        wanted |= {f"ema.{_plain(name)}": each for name, each in ema.tensors().items()}
    index.expect(wanted, ["model"] + ["optimizer"] * (optimizer is not None) + ["ema"] * (ema is not None))
    with _planned(folder):
        state_dict_loader.load(
            wanted, storage_reader=Reader(index), process_group=world.control, no_dist=world.size == 1
        )
    if optimizer is not None:
        _give(optimizer, model, state)


def _room(index: ShardedIndex, model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """Tensors for the optimiser's state that `index` holds, sharded as their parameters where of the same shape."""
    params = _weights(model)
    state: dict[str, dict[str, Tensor]] = {}
    for full, (shape, dtype) in index.sizes("optimizer").items():
        name, _, key = full.rpartition(".")
        param = params.get(name)
        if param is None:
            raise CheckpointError(f"the model has no parameter {name}", where=str(index.folder))
        same = shape == tuple(param.shape)
        room = torch.zeros_like(param.detach(), dtype=dtype) if same else torch.zeros(shape, dtype=dtype)
        state.setdefault(name, {})[key] = room
    return state


def _give(optimizer: Optimizer, model: nn.Module, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Hand the optimiser its state by its own rules, which know what lies on which device."""
    names = {id(param): name for name, param in _weights(model).items()}
    packed = optimizer.state_dict()
    order = [names[id(param)] for group in optimizer.param_groups for param in group["params"]]
    numbered = {number: dict(state[name]) for number, name in enumerate(order) if name in state}
    optimizer.load_state_dict({"state": numbered, "param_groups": packed["param_groups"]})


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the names that they have in a model nobody wrapped, each once.

    Of a model with adapters only what is trained: the rest is the model that they were added to.
    """
    params: Iterable[tuple[str, Tensor]] = model.named_parameters()
    if any(getattr(each, "adapters", None) for each in model.modules()):
        params = ((name, each) for name, each in params if each.requires_grad)
    return {_plain(name): each for name, each in [*params, *model.named_buffers()]}


def _plain(name: str) -> str:
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


@contextmanager
def _planned(folder: Path) -> Iterator[None]:
    """Let torch plan who does what. If a rank fails, all do, by our error; torch's own is no Exception.

    Also without its warning that one process alone saves or loads.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items(), key=lambda each: each[0])
        if not isinstance(cause, Exception):
            raise cause from error  # Ctrl-C
        reason = str(cause) if isinstance(cause, CheckpointError) else repr(cause)
        raise CheckpointError(f"failed on rank {rank}: {reason}", where=str(folder)) from error
