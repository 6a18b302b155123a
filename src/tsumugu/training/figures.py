"""How the figures of a run are put into words and signs: counts, sizes, times, smoothed losses, sparklines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "_.-=+*%#"
"""Eight heights for where only ASCII can be shown."""


class Smoother:
    """An exponential moving average that is right from its first value on. Values that are not finite are passed over.

    Source: Kingma and Ba 2015, Adam, section 3 (the correction for the zero it begins with).
    """

    def __init__(self, decay: float = 0.98) -> None:
        self.decay, self._sum, self._weight = decay, 0.0, 0.0

    def __call__(self, value: float) -> float | None:
        """Take one value in; the average so far, None when there was none."""
        if math.isfinite(value):
            self._sum = self.decay * self._sum + (1 - self.decay) * value
            self._weight = self.decay * self._weight + (1 - self.decay)
        return self.value

    @property
    def value(self) -> float | None:
        """The average so far."""
        return self._sum / self._weight if self._weight else None


class History:
    """A series of any length in bounded memory: where it gets too long, neighbours become their mean."""

    def __init__(self, limit: int = 512) -> None:
        self.values: list[float] = []
        self._limit, self._each, self._sum, self._count = limit, 1, 0.0, 0

    def append(self, value: float) -> None:
        """Add one value; one that is not finite is passed over."""
        if not math.isfinite(value):
            return
        self._sum += value
        self._count += 1
        if self._count == self._each:
            self.values.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
            if len(self.values) == self._limit:
                self.values = [(a + b) / 2 for a, b in zip(self.values[::2], self.values[1::2], strict=True)]
                self._each *= 2


def sparkline(
    values: Sequence[float], width: int, *, low: float | None = None, high: float | None = None, plain: bool = False
) -> str:
    """A series as at most `width` bars, each the mean of its share; what is not finite is left out.

    Args:
        low, high: what the shortest and the tallest bar stand for; the least and greatest mean when left out.
        plain: with ASCII signs only.
    """
    values = [each for each in values if math.isfinite(each)]
    width = min(width, len(values))
    if width < 1:
        return ""
    edges = [i * len(values) // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low = min(means) if low is None else low
    high = max(means) if high is None else high
    span = high - low
    bars = PLAIN_BARS if plain else BARS
    return "".join(bars[min(7, max(0, int((each - low) / span * 8)))] if span > 0 else bars[0] for each in means)


def number(value: Any, digits: int = 4) -> str:
    """A loss or the like: ``1.2346``, ``nan``; ``-`` when there is none."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"


def count(value: float | None) -> str:
    """A great number, short: ``950``, ``12.4 k``, ``10.8 M``, ``175 B``."""
    if value is None:
        return "-"
    return _scaled(value, ("", " k", " M", " B", " T"))


def flops(value: float) -> str:
    """A rate of computing: ``33.1 GFLOP/s``."""
    return _scaled(value / 1e9, (" GFLOP/s", " TFLOP/s", " PFLOP/s", " EFLOP/s"))


def size(value: float | None) -> str:
    """Bytes in powers of 1000: ``812 MB``."""
    return "-" if value is None else _scaled(value, (" B", " kB", " MB", " GB", " TB", " PB"))


def duration(seconds: float | None) -> str:
    """A time: ``0:42``, ``1:02:03``, ``3 d 04:05``."""
    if seconds is None or not 0 <= seconds < 1e11:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        days, hours = divmod(hours, 24)
        return f"{days} d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def safe_text(text: str, *, one_line: bool = False) -> str:
    """A text without anything that a terminal would obey: control characters are shown as escapes.

    Line breaks stay, or become spaces for `one_line`; tabs become spaces.
    """
    text = " ".join(text.split()) if one_line else text.replace("\r\n", "\n").expandtabs(4)
    if text.isprintable():
        return text
    return "".join(
        each if each == "\n" or each.isprintable() or each == "\u3000" else each.encode("unicode_escape").decode()
        for each in text
    )


def _scaled(value: float, units: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return str(value)
    for unit in units:
        if abs(value) < 999.5 or unit == units[-1]:
            short = f"{value:.0f}" if abs(value) >= 99.95 or float(value).is_integer() else f"{value:.1f}"
            return short + unit
        value /= 1000
    return ""
