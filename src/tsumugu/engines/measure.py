"""What this machine can do at most, and how much of it a model reaches, phase by phase."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tsumugu.core.errors import InputError
from tsumugu.engines.native.library import Network, load_library
from tsumugu.engines.native.network import Engine
from tsumugu.engines.session import open_session

BYTES = 256 << 20
"""More than caches hold."""
SIDE = 1536
"""Rows and columns of the matrices whose product is timed."""
PROMPT, TOKENS, ROWS, LONG = 64, 32, 8, 512


@dataclass(frozen=True)
class Limits:
    """What the machine can do.

    Attributes:
        bandwidth: numbers of threads -> bytes that they read from memory in a second.
        products: multiplications and additions of float32 matrices in a second, by NumPy's own library, on all cores.
    """

    bandwidth: dict[int, float]
    products: float


@dataclass(frozen=True)
class Phase:
    """What a model does in one kind of work.

    Attributes:
        work: in words.
        seconds: of one token, or of the whole prompt.
        tokens: in a second.
        reached: share of the limit.
        limit: which one it is.
    """

    work: str
    seconds: float
    tokens: float
    reached: float
    limit: str


def machine_limits(threads: int) -> Limits:
    """Measure memory and arithmetic; takes about two seconds.

    Raises:
        ConfigError: the kernels cannot be had here, which read memory as quickly as it goes.
    """
    library = load_library()
    memory = np.ones(BYTES // 4, np.float32)
    network, bandwidth = Network(), {}
    for count in dict.fromkeys((1, threads)):
        engine = library.tsumugu_open(network, count)
        read = partial(library.tsumugu_read, engine, memory.ctypes.data, memory.size)
        bandwidth[count] = BYTES / quickest(read)
        library.tsumugu_close(engine)
    matrix = np.ones((SIDE, SIDE), np.float32)
    return Limits(bandwidth, 2 * SIDE**3 / quickest(lambda: matrix @ matrix))


def phases(model: Any, limits: Limits, *, threads: int) -> list[Phase]:
    """Let a decoder work and compare with the limits.

    Raises:
        InputError: the model does not write text, or an encoder reads for it.
    """
    if getattr(model.config, "decoder_start_token_id", None) is not None:
        what = "an encoder-decoder reads and writes by different weights, and only decoders are measured"
        raise InputError(what, where="model", mend="name a decoder such as smollm2")
    weights, products = _weights(model)
    bandwidth = limits.bandwidth[threads]
    longest = int(model.config.max_positions)
    if longest < PROMPT + TOKENS:
        raise InputError(f"the model reads {longest} tokens, too few to be measured", where="model")
    found = []
    for rows in (1, ROWS):
        seconds = _step(model, rows)
        reading, computing = weights / bandwidth, rows * products / limits.products
        limit = "memory" if reading >= computing else "float32 arithmetic"
        work = "one text, a token" if rows == 1 else f"{rows} texts, a token each"
        found.append(Phase(work, seconds, rows / seconds, max(reading, computing) / seconds, limit))
    long = min(LONG, longest - 1)
    seconds = quickest(
        lambda: open_session(model, batch=1, capacity=long).start([_prompt(model, long, time.time_ns())]), 3
    )
    reached = long * products / limits.products / seconds
    found.append(Phase(f"reading {long} tokens", seconds, long / seconds, reached, "float32 arithmetic"))
    return found


def _step(model: Any, rows: int) -> float:
    """Seconds of one more token for some texts, in the median."""
    session = open_session(model, batch=rows, capacity=PROMPT + TOKENS)
    logits = session.start([_prompt(model, PROMPT, row) for row in range(rows)])
    taken = []
    for _ in range(TOKENS):
        tokens = logits.argmax(-1)
        began = time.perf_counter()
        logits = session.step(tokens)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _prompt(model: Any, length: int, seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, model.config.vocab_size, length).tolist()
    return found


def _weights(model: Any) -> tuple[float, float]:
    """Bytes of weights that a step reads, and the multiplications and additions of a token."""
    engine = getattr(model, "engine", None)
    if isinstance(engine, Engine):
        return engine.weight_bytes, engine.products
    table = model.config.vocab_size * model.config.hidden_size
    if (folder := getattr(model, "folder", None)) is not None:
        size = (folder / "weights.bin").stat().st_size
        return size, 2 * size * 8 / model.bits
    count = model.num_parameters() - (0 if model.config.tie_embeddings else table)
    return 4.0 * count, 2.0 * count


def quickest(work: Callable[[], object], rounds: int = 5) -> float:
    """Seconds of the quickest of some rounds."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)
