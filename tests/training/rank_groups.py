"""Several ranks on this machine, started as torchrun does, but from a process that has imported torch already."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch.distributed import TCPStore


class Answer(NamedTuple):
    """How each rank left (minus the signal that killed it), what it printed to stderr, and how long all took."""

    codes: list[int]
    errors: list[str]
    seconds: float


class Ranks:
    """Starts ranks, and keeps the store in which they meet, the same for all that it starts; see `ranks.py`."""

    def __init__(self) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("ranks.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def start(
        self,
        count: int,
        *arguments: str,
        own_store: bool = False,
        kill: Sequence[int] = (),
        after: float = 0.0,
        **environment: str,
    ) -> Answer:
        """Start `count` ranks and wait until all have left.

        Args:
            arguments: of `ranks.py`.
            own_store: rank 0 keeps the store in which ranks meet, as without torchrun.
            kill: these ranks get SIGKILL `after` so many seconds.
            environment: of all of them.
        """
        port = free_port() if own_store else self.store.port
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if not own_store:
            where |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        task = {"ranks": count, "arguments": arguments, "environment": where | environment}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task | {"kill": list(kill), "after": after}) + "\n")
        self.process.stdin.flush()
        return Answer(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process that starts them."""
        self.process.communicate()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
