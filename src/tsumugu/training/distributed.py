"""The processes that train together: who they are, what they tell one another, and how they fail together.

`torchrun` starts them and says in the environment which one each is. Gradients travel by the device's own library
(nccl, or gloo on a CPU); numbers and small objects always travel by gloo, as integers and JSON: nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tsumugu.core.errors import ConfigError, TsumuguError

PATIENCE = 600.0
"""Seconds that a rank waits for the others before it gives up."""
GRACE = 3.0
"""Seconds that a rank which lost the others waits for one of them to say why."""
LOST = ("peer", "pipe", "timed out", "timeout", "connection", "socket", "gloo", "nccl", "store")
"""Words in the messages of torch's own errors when another rank is gone."""


class World:
    """One of `size` processes that train together, or the only one. Use it in a `with` statement.

    Ranks are laid out as data x tensor: neighbours share one data rank and hold parts of the same matrices.

    A rank that leaves the `with` block by an error makes the others leave it too. The first of them raises; the others
    exit with code 1 and say nothing, so that a failure is told once. A rank that was killed could not say anything:
    then the first that notices raises. (Where rank 0 itself keeps the store in which ranks meet, and not torchrun, they
    cannot know whether it said why it went: then each of them raises.)

    Attributes:
        rank, size: which process this is, of how many.
        local_rank: which of those on this machine.
        tensor: how many neighbours hold parts of the same matrices.
        device: where this process computes.
        restarts: how often torchrun started all of them anew after one failed.
        control, saving: groups of all ranks for what is said beside the gradients, and by the thread that writes
            checkpoints; None where this process is the only one.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        local_rank: int,
        tensor: int,
        device: torch.device,
        restarts: int,
        patience: float,
    ) -> None:
        self.rank, self.size, self.local_rank, self.tensor = rank, size, local_rank, tensor
        self.device, self.restarts, self.patience = device, restarts, patience
        self._store: Any = None
        self.control: dist.ProcessGroup | None = None
        self.saving: dist.ProcessGroup | None = None

    @classmethod
    def open(cls, *, tensor: int = 1, device: str | None = None, patience: float = PATIENCE) -> World:
        """The world that torchrun's environment speaks of; one process where there is none.

        Args:
            tensor: how many ranks share one model's matrices.
            device: "cpu" or "cuda"; by default cuda where there is one.
            patience: seconds to wait for another rank, at the start and whenever ranks meet.

        Raises:
            ConfigError: the environment is incomplete, or `tensor` does not divide the number of ranks.
            TsumuguError: the others did not come.
        """
        rank, size, local_rank = (_setting(key, default) for key, default in _ENVIRONMENT.items())
        if not 0 <= rank < size:
            raise ConfigError(f"rank {rank} is not one of {size}", where="RANK", mend="start with torchrun")
        if size % tensor:
            raise ConfigError(f"{tensor} does not divide {size} ranks", where="Parallel.tensor")
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        place = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        world = cls(
            rank, size, local_rank=local_rank, tensor=tensor, device=place, restarts=restarts, patience=patience
        )
        if place.type == "cuda":
            torch.cuda.set_device(place)
        if size > 1:
            world._join()
        return world

    def _join(self) -> None:
        """Meet the other ranks."""
        if os.environ.get("LOCAL_WORLD_SIZE") == str(self.size) and ("lo" in (n for _, n in socket.if_nameindex())):
            # All on one machine: gloo need not ask what the machine is called and where that leads.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        wait = timedelta(seconds=self.patience)
        try:
            store, _, _ = next(rendezvous("env://", timeout=wait))
            self._store = _own_part(store, self.rank, self.size, self.patience)
            backend = "gloo" if self.device.type == "cpu" else "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size, timeout=wait)
            self.control = dist.new_group(backend="gloo", timeout=wait)
            self.saving = dist.new_group(backend="gloo", timeout=wait)
        except (RuntimeError, ValueError) as error:
            raise TsumuguError(
                f"rank {self.rank} of {self.size} did not meet the others: {_reason(error)}",
                mend="see that all ranks were started with the same MASTER_ADDR and MASTER_PORT",
            ) from error

    @property
    def main(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of the data this rank reads."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        """Into how many shares the data is dealt."""
        return self.size // self.tensor

    def sum(self, values: Sequence[int | float]) -> list[int | float]:
        """Each of `values` summed over the data ranks, the same on all: integers exactly, floats rounded once."""
        if self.control is None:
            return list(values)
        gathered = self._gather(torch.tensor([_coded(each) for each in values], dtype=torch.int64))[:: self.tensor]
        return [
            _total([_number(*each) for each in column]) for column in zip(*map(Tensor.tolist, gathered), strict=True)
        ]

    def broadcast(self, value: Any = None) -> Any:
        """What rank 0 hands in, on all ranks: anything that JSON can hold."""
        if self.control is None:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([text.numel()])
        dist.broadcast(length, 0, group=self.control)
        if not self.main:
            text = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, 0, group=self.control)
        return json.loads(text.numpy().tobytes())

    def barrier(self, *, patience: float | None = None) -> None:
        """Wait until all ranks are here.

        Raises:
            TsumuguError: a rank did not come within `patience` seconds; rank 0's error names it. The world has ended
                then: the ranks cannot meet again.
            RuntimeError: a rank is gone, as everything raises that ranks do together.
        """
        if self.control is None:
            return
        seconds, began = self.patience if patience is None else patience, time.monotonic()
        try:
            dist.monitored_barrier(self.control, timeout=timedelta(seconds=seconds))
        except RuntimeError as error:
            if time.monotonic() - began < seconds:
                raise RuntimeError(f"connection lost: {_reason(error)}") from error
            raise TsumuguError(f"not all ranks came within {seconds:g} s: {_reason(error)}") from error

    def agree(self, good: bool, *, group: dist.ProcessGroup | None = None) -> list[int]:
        """The ranks on which something went wrong."""
        if self.control is None:
            return [] if good else [0]
        votes = self._gather(torch.tensor([int(good)]), group)
        return [rank for rank, vote in enumerate(votes) if not int(vote)]

    def _gather(self, mine: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=group or self.control)
        return found

    def close(self) -> None:
        """Wait for all ranks, then let them go."""
        if self.control is not None:
            self.barrier()
            self.control = self.saving = self._store = None
            dist.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self.close()
            except (RuntimeError, TsumuguError) as late:
                self._fail(late)
                raise
        elif self.control is not None and isinstance(error, Exception):
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Tell a failure once: raise it if it is the first, exit if another rank was first."""
        lost = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)
        if not self._first(lost):
            raise SystemExit(1) from error
        name = f"rank {self.rank} of {self.size}"
        if lost:
            mend = "the last checkpoint is whole: resume from it"
            raise TsumuguError(f"{name} lost the others: {_reason(error)}", mend=mend) from error
        if isinstance(error, TsumuguError | OSError):
            raise TsumuguError(f"{name} failed: {error}") from error

    def _first(self, lost: bool) -> bool:
        """Whether no other rank failed before; one that only `lost` the others first waits for their reason."""
        assert self._store is not None
        key, end = "failed", time.monotonic() + (GRACE if lost else 0.0)
        try:
            while time.monotonic() < end and not self._store.check([key]):
                time.sleep(0.05)
            return self._store.compare_set(key, "", str(self.rank)) == str(self.rank).encode()
        except RuntimeError:
            return True  # the store is gone with the process that held it


def _own_part(store: Store, rank: int, size: int, patience: float) -> Store:
    """The part of a store that belongs to the ranks of this start alone, under a name that rank 0 makes up.

    torchrun keeps one store over all its restarts, and what dead ranks have left there, such as their addresses, would
    be believed. So every rank calls with a word that nobody used before, and rank 0 answers to that word, until each
    has heard the name. (How often torchrun restarted does not do for a name: the machines count for themselves.)

    Source: pytorch/pytorch issue 135712.
    """
    word, start = secrets.token_hex(8), "tsumugu"
    if rank:
        store.set(f"{start}/calls/{rank}", word)
        name = store.get(f"{start}/answers/{word}").decode()
        store.set(f"{start}/{name}/{rank}", "here")
        return PrefixStore(name, store)
    absent, deadline = set(range(1, size)), time.monotonic() + patience
    while absent:
        for each in sorted(absent):
            if store.check([f"{start}/{word}/{each}"]):
                absent.discard(each)
            elif store.check([f"{start}/calls/{each}"]):
                store.set(f"{start}/answers/{store.get(f'{start}/calls/{each}').decode()}", word)
        if absent and time.monotonic() > deadline:
            some = ", ".join(map(str, sorted(absent)[:8]))
            raise RuntimeError(f"{len(absent)} did not come within {patience:g} s: {some}")
        time.sleep(0.005)
    return PrefixStore(word, store)


_ENVIRONMENT: dict[str, str] = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def _setting(key: str, default: str) -> int:
    if key not in os.environ and "RANK" in os.environ and key != "LOCAL_RANK":
        raise ConfigError("RANK is set and this is not", where=key, mend="start with torchrun")
    text = os.environ.get(key, default)
    if not text.isdecimal():
        raise ConfigError(f"{text!r} is no number", where=key, mend="start with torchrun")
    return int(text)


def _coded(value: float) -> tuple[int, int]:
    """Whether a number is a float, and the integer, or that of the same 64 bits."""
    if isinstance(value, int):
        return 0, value
    return 1, int(struct.unpack("<q", struct.pack("<d", value))[0])


def _number(is_float: int, bits: int) -> int | float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0]) if is_float else bits


def _total(column: list[int | float]) -> int | float:
    whole = all(isinstance(each, int) for each in column)
    return sum(column) if whole or not all(map(math.isfinite, column)) else math.fsum(column)


def _reason(error: BaseException) -> str:
    """The first line of torch's message, without where in its source it was raised."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"^(\[[^]]*\]:? )+", "", line)
