"""Processes of our own that answer what they are asked, over their standard input and output."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from typing import IO

from tsumugu.core.errors import TsumuguError

ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""What keeps a process to one thread, set before its libraries load."""


class Child:
    """One process, with one thread; it ends when we do, however that happens.

    Args:
        module: whose `main` it runs.

    Attributes:
        to, source: what it hears, and what it says.
    """

    def __init__(self, module: str) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        path = os.pathsep.join(each for each in sys.path if each)
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import main; main()"],
            stdin=subprocess.PIPE,  # it closes when we are gone
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is ours to hear
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.to: IO[bytes] = self._process.stdin
        self.source: IO[bytes] = self._process.stdout

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of what connects us with it, once it has ended."""
        for stream in (self.to, self.source, self._said):
            with contextlib.suppress(OSError):  # what was not yet sent has nobody to go to
                stream.close()

    def gone(self) -> TsumuguError:
        """What to say of it when it ended without an answer: its own last word, or its code."""
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        why = said.splitlines()[-1] if said and code > 0 else f"it ended with code {code}"
        return TsumuguError(f"a worker broke down: {why}", mend="if memory ran out, use fewer --workers")
