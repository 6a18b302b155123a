"""Processes that work on blocks side by side; with one worker, this process does it all."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from tsumugu.core.errors import InputError, TsumuguError
from tsumugu.corpus.cleaning import Cleaning
from tsumugu.corpus.worker import Arrays, Worker, packed, receive, send, unpacked

_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Pool:
    """Hands blocks to workers, to be used in a ``with`` block.

    Args:
        workers: how many.
        tokenizer: the folder of a saved tokenizer.
        cleaning: what is done to each document.
        dtype: of the ids.

    Raises:
        TsumuguError: the workers cannot do what the cleaning asks for.
    """

    def __init__(self, workers: int, tokenizer: Path, cleaning: Cleaning, dtype: np.dtype[Any]) -> None:
        self.workers = workers
        self._own: Worker | None = None
        self._processes: list[_Process] = []
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        if workers == 1:
            self._own = Worker(tokenizer, cleaning, dtype)
            return
        settings = {"tokenizer": str(tokenizer), "cleaning": cleaning.to_dict(), "dtype": dtype.str}
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="prepare")
        try:
            for _ in range(workers):
                self._processes.append(_Process(settings))
            for each in self._processes:
                each.answer()  # it is ready, or says why not
                self._idle.put(each)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, texts: Sequence[bytes]) -> Future[Arrays]:
        """Begin the work on documents, each in UTF-8; see `Worker.work` for what it gives."""
        if self._threads is not None:
            return self._threads.submit(self._ask, texts)
        assert self._own is not None
        done: Future[Arrays] = Future()
        done.set_result(self._own.work(unpacked(packed(texts))))
        return done

    def close(self) -> None:
        """End all processes, at work or not."""
        for each in self._processes:
            each.kill()  # so that no thread waits for an answer any more
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        for each in self._processes:
            each.close()

    def _ask(self, texts: Sequence[bytes]) -> Arrays:
        process = self._idle.get()
        try:
            process.ask(texts)
            return process.answer()
        finally:
            self._idle.put(process)


class _Process:
    """One worker in a process of its own."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        path = os.pathsep.join(each for each in sys.path if each)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tsumugu.corpus.worker import main; main()"],
            stdin=subprocess.PIPE,  # it closes when we are gone, however that happens
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is ours to hear
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = cast(Any, self._process.stdin), cast(Any, self._process.stdout)
        send(self._to, {"settings": np.array(json.dumps(settings))})

    def ask(self, texts: Sequence[bytes]) -> None:
        """Send a block."""
        try:
            send(self._to, packed(texts))
        except (OSError, ValueError):  # it is gone; the answer will say so
            return

    def answer(self) -> Arrays:
        """What it answers. Raises the error that it sent, or says how it ended."""
        found = receive(self._from)
        if found is None:
            raise self._gone()
        if "error" in found:
            what, where, mend = json.loads(str(found["error"]))
            raise InputError(what, where=where, mend=mend)
        return found

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of what connects us with it, once it has ended."""
        for stream in (self._to, self._from, self._said):
            try:
                stream.close()
            except OSError:  # what was not yet sent has nobody to go to
                continue

    def _gone(self) -> TsumuguError:
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        why = said.splitlines()[-1] if said and code > 0 else f"it ended with code {code}"
        return TsumuguError(f"a worker broke down: {why}", mend="if memory ran out, use fewer --workers")
