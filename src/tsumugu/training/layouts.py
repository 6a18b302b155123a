"""How to spread a run over devices: every layout that obeys the rules and fits, by how fast it should be.

The rules: tensor parallelism stays within a node and divides the heads; pipeline parallelism divides the layers; what
is left is data-parallel and divides the batch; ZeRO stages 2 and 3 are not joined with a pipeline, which would share
out again for every micro-batch what it has just gathered. The time of a step is estimated from operations, memory and
traffic with a handful of constants; `Step` shows what it is made of.

Source: Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters, sections 2 and 3;
Rajbhandari et al. 2020, ZeRO, sections 5 and 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, get_args

from tsumugu.core.errors import ConfigError
from tsumugu.training.flops import Count, Recompute
from tsumugu.training.hardware import Device
from tsumugu.training.memory import Footprint, Layout, Memory

USABLE = 0.92
"""The share of a device's memory that a layout may take; the rest is the driver's, the network's, and fragments."""

KERNELS = 0.7
"""What large matrix products reach of the peak."""

LINKS = 0.6
"""What collective operations reach of a bandwidth."""

TOUCHES = 8.0
"""How often a number that is kept for the backward pass goes to memory or comes from it, both passes together.

These three were fitted to the ten runs of Narayanan et al. 2021, table 1, and reproduce them within 5 %.
"""

HIDDEN = 0.9
"""The share of the computing time behind which traffic of data parallelism may hide, and of it that hides at most."""


@dataclass(frozen=True)
class Step:
    """The estimated seconds of one step.

    Attributes:
        compute: matrix products, without those done again.
        recompute: those done again.
        elementwise: norms, activations and the like, bound by memory.
        tensor: traffic of tensor parallelism.
        pipeline: waiting for the pipeline to fill and drain, and its traffic.
        data: traffic of data parallelism that does not hide behind computing.
        optimizer: updating the weights.
    """

    compute: float
    recompute: float
    elementwise: float
    tensor: float
    pipeline: float
    data: float
    optimizer: float

    @property
    def seconds(self) -> float:
        return sum(asdict(self).values())

    def shares(self) -> dict[str, float]:
        """Each part of the whole, the largest first."""
        return dict(sorted(((name, each / self.seconds) for name, each in asdict(self).items()), key=lambda x: -x[1]))


@dataclass(frozen=True)
class Candidate:
    """A layout with what it needs and how fast it should be.

    Attributes:
        layout: the layout.
        memory: bytes on the fullest device.
        step: the estimated time of a step.
        mfu: operations of the model a second, as a share of all devices' peak.
        bubble: the share of the computing time that the pipeline waits, (p - 1) / m.
        fits: whether the memory suffices.
    """

    layout: Layout
    memory: Memory
    step: Step
    mfu: float
    bubble: float
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "layout": asdict(self.layout),
            "memory": self.memory.as_dict(),
            "seconds_per_step": self.step.seconds,
            "shares": self.step.shares(),
            "mfu": self.mfu,
            "bubble": self.bubble,
            "fits": self.fits,
        }


def estimate(footprint: Footprint, count: Count, layout: Layout, device: Device) -> Candidate:
    """What a layout needs, and how long a step should take with it."""
    setup, memory = footprint.setup, footprint.of(layout)
    peak = device.peak_flops(setup.precision)
    batches = max(setup.batch // (layout.data * layout.micro_batch), 1)
    model = count.training().total
    rate = peak * KERNELS * layout.tensor * layout.pipeline
    compute = layout.micro_batch * model / rate
    again = layout.micro_batch * (count.training(layout.recompute).total - model) / rate

    plain = replace(layout, recompute="none")
    touched = (
        footprint.layer_activations(plain)
        * layout.micro_batch
        / layout.pipeline
        * TOUCHES
        * (4 / 3 if layout.recompute == "full" else 1)
    )
    elementwise = touched / device.memory_bandwidth

    link, network = device.link_bandwidth * LINKS, device.network_bandwidth * LINKS
    # Each part of a layer sums its result over the tensor-parallel ranks, forward and backward, and when done again.
    ring = 2 * (layout.tensor - 1) / layout.tensor
    states = layout.micro_batch * setup.width * footprint.hidden
    sums = sum(each.count * each.tokens * (3 if each.read else 2) for each in footprint.runs) / layout.pipeline
    tensor = ring * states * sums * (3 if layout.recompute == "full" else 2) / link
    send = 0.0
    if layout.pipeline > 1:
        far = layout.tensor * layout.data * layout.pipeline > device.node
        send = 2 * states * setup.context / layout.tensor / (network if far else link)

    near = layout.tensor * layout.data <= device.node
    spread = (layout.data - 1) / layout.data / (link if near else network)
    weights = setup.width * footprint.weights(layout)
    stage = compute + again + elementwise + tensor
    if layout.zero >= 2:
        # Gradients are summed, and with stage 3 weights fetched for either pass, in every micro-batch, meanwhile.
        traffic = weights * spread * (3 if layout.zero == 3 else 1)
        data = batches * max(traffic - HIDDEN * stage, (1 - HIDDEN) * traffic) + (
            weights * spread if layout.zero == 2 else 0.0
        )
    else:
        # Once a step, while the last micro-batch goes backward.
        data = max(2 * weights * spread - HIDDEN * 2 / 3 * stage, (1 - HIDDEN) * 2 * weights * spread)
    states_bytes = memory.weights + memory.gradients + memory.optimizer + memory.master_weights
    waits = layout.pipeline - 1
    step = Step(
        compute=batches * compute,
        recompute=batches * again,
        elementwise=batches * elementwise,
        tensor=batches * tensor,
        pipeline=waits * stage + (batches + waits) * send,
        data=data,
        optimizer=2 * states_bytes / device.memory_bandwidth,
    )
    return Candidate(
        layout,
        memory,
        step,
        mfu=setup.batch * model / step.seconds / (peak * layout.devices),
        bubble=waits / batches,
        fits=memory.total <= USABLE * device.memory,
    )


@dataclass(frozen=True)
class Wish:
    """Parts of a layout that are given; what is None is chosen."""

    tensor: int | None = None
    pipeline: int | None = None
    micro_batch: int | None = None
    zero: int | None = None
    recompute: Recompute | None = None

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{value} is too small", where=name, mend="at least 1")


def candidates(
    footprint: Footprint, count: Count, device: Device, devices: int, wish: Wish | None = None
) -> list[Candidate]:
    """Every layout of so many devices that obeys the rules: those that fit, the fastest first, then those that do not.

    Raises:
        ConfigError: no layout obeys the rules.
    """
    layouts = _layouts(footprint, device, devices, wish or Wish())
    found = [estimate(footprint, count, layout, device) for layout in layouts]
    if not found:
        raise ConfigError(
            f"no layout of {devices} devices divides {_facts(footprint)} and a batch of {footprint.setup.batch}",
            mend="take another number of devices, or a batch that it divides",
        )
    return sorted(found, key=_order)


def reason(candidate: Candidate, best: Candidate, device: Device) -> str:
    """Why a layout stands where it does, in a line."""
    layout, share = candidate.layout, candidate.step.shares()
    if not candidate.fits:
        needed, has = candidate.memory.total / 2**30, USABLE * device.memory / 2**30
        return f"does not fit: {needed:.1f} GiB of the {has:.1f} that may be used"
    said = []
    if layout.recompute != "none":
        said.append(f"{_percent(share['recompute'])} computing again")
    if layout.tensor > 1:
        said.append(f"{_percent(share['tensor'])} tensor-parallel traffic")
    if layout.pipeline > 1:
        said.append(f"{_percent(share['pipeline'])} waiting in the pipeline")
    if layout.data > 1:
        said.append(f"{_percent(share['data'])} data-parallel traffic")
    costs = ", ".join(said) or "nothing is cut, nothing computed again"
    if candidate is best:
        return f"fastest that fits: {costs}"
    return f"{_percent(candidate.step.seconds / best.step.seconds - 1)} slower: {costs}"


def _percent(share: float) -> str:
    return "under 1%" if share < 0.01 else f"{share:.0%}"


def _order(each: Candidate) -> tuple[bool, float, int, int]:
    layout = each.layout
    size = each.step.seconds if each.fits else each.memory.total
    return not each.fits, size, layout.pipeline, layout.tensor


def _layouts(footprint: Footprint, device: Device, devices: int, wish: Wish) -> Iterator[Layout]:
    """All layouts that obey the rules and the wish."""
    again: Sequence[Recompute] = get_args(Recompute) if wish.recompute is None else (wish.recompute,)
    if wish.recompute is None and footprint.setup.fused_attention:
        again = ("none", "full")  # fused kernels keep no scores that could be computed again
    wide = [each for each in _divisors(devices) if each <= device.node] if wish.tensor is None else [wish.tensor]
    deep = _divisors(devices) if wish.pipeline is None else [wish.pipeline]
    for tensor, pipeline in product(wide, deep):
        data, left = divmod(devices, tensor * pipeline)
        if left or data == 0 or not _divides(footprint, tensor, pipeline) or footprint.setup.batch % data:
            continue
        each_rank = footprint.setup.batch // data
        counts = _divisors(each_rank) if wish.micro_batch is None else [wish.micro_batch]
        stages = (range(4) if data > 1 else range(1)) if wish.zero is None else [wish.zero]
        for micro_batch, zero, recompute in product(counts, stages, again):
            if each_rank % micro_batch == 0 and not (zero > 1 and pipeline > 1):
                yield Layout(data, tensor, pipeline, micro_batch, zero, recompute)


def _divides(footprint: Footprint, tensor: int, pipeline: int) -> bool:
    """Whether the heads divide among tensor-parallel devices, and the layers among the stages of a pipeline."""
    runs = footprint.runs
    if pipeline > 1 and (len(runs) > 1 or runs[0].count % pipeline):
        return False
    return all(each.layer.attention.num_heads % tensor == 0 for each in runs)


def _divisors(number: int) -> list[int]:
    small = [each for each in range(1, int(number**0.5) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})


def _facts(footprint: Footprint) -> str:
    layers = " and ".join(str(each.count) for each in footprint.runs)
    return f"{layers} layers, {footprint.runs[0].layer.attention.num_heads} heads"
