"""What accelerators can do at most, from their data sheets, and what this machine does, measured.

Operations are dense matrix products (data sheets often print twice that, for sparse ones). Bandwidths are what one
device sends, in bytes a second; memory counts 2^30 bytes a gigabyte, as the makers do.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Literal

from tsumugu.core.errors import ConfigError, UnknownNameError, did_you_mean

Precision = Literal["bf16", "fp16", "fp32"]
"""What matrices are multiplied in; bf16 and fp16 keep a copy of the weights in float32 beside."""

GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """One accelerator, or one machine without any.

    Attributes:
        name: what it is called.
        memory: bytes.
        peak: operations a second by precision; what is absent it has no units for.
        memory_bandwidth: between its memory and its cores.
        link_bandwidth: to the others of its node.
        network_bandwidth: to other nodes, its share of the node's.
        node: how many a node usually has.
    """

    name: str
    memory: int
    peak: dict[str, float]
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    node: int = 8

    def peak_flops(self, precision: Precision) -> float:
        """Operations a second in `precision`.

        Raises:
            ConfigError: it has no units for that precision.
        """
        if precision not in self.peak:
            able = ", ".join(self.peak)
            raise ConfigError(f"{self.name} has no {precision} units", where="precision", mend=f"it has {able}")
        return self.peak[precision]


def _device(
    name: str,
    gigabytes: int,
    *,
    half: float,
    single: float,
    memory: float,
    link: float,
    network: float,
    bf16: bool = True,
    node: int = 8,
) -> Device:
    """Teraflops and gigabytes a second, as data sheets have them."""
    peak = {"bf16": half * 1e12, "fp16": half * 1e12, "fp32": single * 1e12}
    if not bf16:
        del peak["bf16"]
    return Device(name, gigabytes * GIB, peak, memory * 1e9, link * 1e9, network * 1e9, node)


DEVICES = {
    each.name: each
    for each in (
        _device("v100-16gb", 16, half=125, single=15.7, memory=900, link=150, network=12.5, bf16=False),
        _device("v100-32gb", 32, half=125, single=15.7, memory=900, link=150, network=12.5, bf16=False),
        _device("a100-40gb", 40, half=312, single=19.5, memory=1555, link=300, network=25),
        _device("a100-80gb", 80, half=312, single=19.5, memory=2039, link=300, network=25),
        _device("h100-80gb", 80, half=989.4, single=66.9, memory=3350, link=450, network=50),
        _device("h200-141gb", 141, half=989.4, single=66.9, memory=4800, link=450, network=50),
        _device("b200-180gb", 180, half=2250, single=75, memory=8000, link=900, network=50),
        _device("mi300x-192gb", 192, half=1307.4, single=163.4, memory=5300, link=448, network=50),
        _device("l40s-48gb", 48, half=362, single=91.6, memory=864, link=32, network=25),
        _device("l4-24gb", 24, half=121, single=30.3, memory=300, link=32, network=12.5),
        _device("t4-16gb", 16, half=65, single=8.1, memory=320, link=16, network=6.25, bf16=False, node=4),
        _device("rtx-4090-24gb", 24, half=165.2, single=82.6, memory=1008, link=32, network=1.25, node=4),
        _device("rtx-3090-24gb", 24, half=71, single=35.6, memory=936, link=32, network=1.25, node=4),
    )
}
"""Source: the makers' data sheets of the SXM, OAM or PCIe module. Links: NVLink, Infinity Fabric, or PCIe where there
is none, one direction. Network: one adapter for each device, as in the maker's own server (100 Gbit/s with V100, 200
with A100, 400 since H100); a lone workstation's is 10 Gbit/s."""

ALIASES = {
    "v100": "v100-32gb",
    "a100": "a100-80gb",
    "h100": "h100-80gb",
    "h200": "h200-141gb",
    "b200": "b200-180gb",
    "mi300x": "mi300x-192gb",
    "l40s": "l40s-48gb",
    "l4": "l4-24gb",
    "t4": "t4-16gb",
    "rtx-4090": "rtx-4090-24gb",
    "rtx-3090": "rtx-3090-24gb",
}


def find_device(name: str) -> Device:
    """The accelerator called `name`, with or without its memory: h100, a100-40gb.

    Raises:
        UnknownNameError: it is not in the table; the nearest is named.
    """
    word = name.lower().replace("_", "-")
    word = ALIASES.get(word, word)
    if word not in DEVICES:
        raise UnknownNameError(f"unknown accelerator {name!r}", mend=did_you_mean(word, [*DEVICES, *ALIASES]))
    return DEVICES[word]


@dataclass(frozen=True)
class Machine:
    """This machine, measured.

    Attributes:
        cores: how many this process may use.
        flops: float32 operations a second in matrix products, all cores together.
        memory: bytes.
        rows, inner, columns: the products that were timed.
    """

    cores: int
    flops: float
    memory: int
    rows: int
    inner: int
    columns: int


def measure_machine(*, rows: int = 512, inner: int = 768, columns: int = 3072, seconds: float = 1.0) -> Machine:
    """Time matrix products `[rows, inner] @ [inner, columns]` for about so many seconds, and say the best rate.

    The shape matters: small matrices are multiplied at a lower rate. The best of the repetitions is taken, since what
    else the machine does makes a product slower and never quicker. Fewer rows are taken where a product would last.
    """
    import torch

    while 2 * rows * inner * columns > 1_000_000_000 and rows > 16:
        rows //= 2
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    best, until = float("inf"), time.perf_counter() + seconds
    torch.mm(left, right)
    while True:
        started = time.perf_counter()
        torch.mm(left, right)
        ended = time.perf_counter()
        best = min(best, ended - started)
        if ended > until:
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, 2 * rows * inner * columns / best, memory, rows, inner, columns)
