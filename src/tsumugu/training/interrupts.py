"""Ctrl-C and SIGTERM as a wish: the loop ends the step it is in, saves, and leaves. A second Ctrl-C does not wait."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """Listens while it is open; in a thread other than the main one it hears nothing.

    Attributes:
        heard: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.heard: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for each in (signal.SIGINT, signal.SIGTERM):
                self._before[each] = signal.signal(each, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.heard is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.heard = signal.Signals(number)
