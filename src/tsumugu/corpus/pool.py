"""Processes that work on blocks side by side; with one worker, this process does it all."""

from __future__ import annotations

import contextlib
import json
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np

from tsumugu.core.children import Child
from tsumugu.core.errors import InputError
from tsumugu.corpus.cleaning import Cleaning
from tsumugu.corpus.worker import Arrays, Worker, packed, receive, send, unpacked


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


class _Process(Child):
    """One worker in a process of its own."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__("tsumugu.corpus.worker")
        send(self.to, {"settings": np.array(json.dumps(settings))})

    def ask(self, texts: Sequence[bytes]) -> None:
        """Send a block."""
        with contextlib.suppress(OSError, ValueError):  # it is gone; the answer will say so
            send(self.to, packed(texts))

    def answer(self) -> Arrays:
        """What it answers. Raises the error that it sent, or says how it ended."""
        found = receive(self.source)
        if found is None:
            raise self.gone()
        if "error" in found:
            what, where, mend = json.loads(str(found["error"]))
            raise InputError(what, where=where, mend=mend)
        return found
