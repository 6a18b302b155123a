"""What a training run needs before it is started: parameters, memory, operations, time, cost, layout, text.

Nothing is computed on weights: the network is built on the meta device, and everything follows from it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tsumugu.core.errors import ConfigError
from tsumugu.models.base import Model
from tsumugu.models.encoder import Encoder
from tsumugu.objectives.span_corruption import Denoiser
from tsumugu.training.conventions import CONVENTIONS, Shape
from tsumugu.training.flops import Count, count_flops, generation_flops
from tsumugu.training.hardware import Device, Machine
from tsumugu.training.layouts import Candidate, Wish, candidates, reason
from tsumugu.training.memory import Footprint, Layout, Memory, Setup
from tsumugu.training.scaling import LAWS, TOKENS_PER_PARAMETER

LONGEST = 8192
"""The context that is planned with when nothing is said, where a model can read more."""

STEP_TOKENS = 1 << 19
"""The tokens of a step when nothing is said."""

MASKED_SHARE = 0.15
"""The share of positions that masked training predicts. Source: Devlin et al. 2019, BERT, section 3.1."""

SPANS = Denoiser()
"""Pre-training of encoder-decoders when nothing is said: 114 tokens are written where 512 are read."""

MACHINE_MFU = 0.5
"""What a training step reaches of a machine's own rate of matrix products, when nothing is said: between 0.25 (T5, with
its biases) and 0.8 (GPT-2 of width 512) where it was measured, on two cores."""

DAY = 86400.0


@dataclass(frozen=True)
class Budget:
    """How much text the model deserves.

    Attributes:
        rule: 20 tokens for each parameter.
        tokens: by each fitted law, the tokens with which this size is the best for its cost.
        loss: by each law, the loss that the planned tokens lead to, in nats a token of the law's own text.
        best: by each law, the parameters and tokens that make the most of the planned operations.
    """

    rule: float
    tokens: dict[str, float]
    loss: dict[str, float]
    best: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Plan:
    """All that is known about a run before it starts.

    Attributes:
        name, family, head: what is trained.
        parameters: exactly; `embeddings` of them in the token table.
        setup: what was decided, defaults filled in.
        tokens: of the whole run; `steps` of `setup.batch` sequences.
        count: operations of one sequence.
        flops: operations of the whole run, without recomputation.
        conventions: the same by the formulas of papers.
        best: the layout that the rest refers to, None on this machine.
        candidates: layouts, the best first, each with its reason.
        enough: how many devices would do where these are too few, found by doubling.
        memory: bytes of the fullest device.
        mfu: the share of the peak that time is reckoned with; `estimated` if it is the layout's and not given.
        seconds: of training.
        price: of the whole run, in the unit that was given.
        budget: what scaling laws say.
    """

    name: str
    family: str
    head: str
    parameters: int
    embeddings: int
    setup: Setup
    tokens: float
    steps: float
    count: Count
    inference: float | None
    flops: float
    conventions: dict[str, float]
    device: Device | Machine
    devices: int
    best: Candidate | None
    candidates: list[tuple[Candidate, str]]
    enough: int | None
    memory: Memory
    mfu: float
    estimated: bool
    seconds: float
    price: float | None
    budget: Budget

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        each = self.count.tokens
        return {
            "model": {
                "name": self.name,
                "family": self.family,
                "head": self.head,
                "parameters": self.parameters,
                "embedding_parameters": self.embeddings,
            },
            "setup": self.setup.to_dict() | {"tokens": self.tokens, "steps": self.steps},
            "flops": {
                "per_token": self.count.training().total / each,
                "per_token_by_part": {
                    "forward": (self.count.forward * (1 / each)).as_dict(),
                    "backward": (self.count.backward * (1 / each)).as_dict(),
                },
                "per_token_by_convention": self.conventions,
                "inference_per_new_token": self.inference,
                "total": self.flops,
            },
            "hardware": {"devices": self.devices, **asdict(self.device)},
            "memory": self.memory.as_dict(),
            "time": {
                "mfu": self.mfu,
                "mfu_is_estimated": self.estimated,
                "seconds": self.seconds,
                "days": self.seconds / DAY,
                "device_hours": self.seconds * self.devices / 3600,
                "tokens_per_second": self.tokens / self.seconds,
                "cost": self.price,
            },
            "layouts": [each.as_dict() | {"reason": why} for each, why in self.candidates],
            "enough_devices": self.enough,
            "budget": asdict(self.budget),
        }


def make_plan(
    model: Model,
    device: Device | Machine,
    *,
    name: str,
    devices: int = 1,
    context: int | None = None,
    target: int | None = None,
    batch: int | None = None,
    tokens: float | None = None,
    mfu: float | None = None,
    price: float | None = None,
    wish: Wish | None = None,
    shown: int = 5,
    **setup: Any,
) -> Plan:
    """Plan the training of `model`, which may stand on the meta device.

    Args:
        model: with the head that it is trained with.
        device: an accelerator of the table, or this machine as it was measured.
        name: what the plan calls the model.
        devices: how many of them.
        context: tokens of a sequence that are read; as long as the model can, up to 8192.
        target: tokens that an encoder-decoder writes for them; as many as span corruption takes out of such a text.
        batch: sequences in a step; half a million tokens when left out.
        tokens: of the whole run; 20 for each parameter when left out.
        mfu: the share of the peak that is reached; estimated from the layout when left out.
        price: of one device for an hour.
        wish: parts of the layout that are given and not searched.
        shown: how many layouts are kept.
        setup: further fields of `Setup`.

    Raises:
        ConfigError: numbers that do not go together, or no layout obeys the rules.
    """
    if mfu is not None and not 0 < mfu <= 1:
        raise ConfigError(f"{mfu} is no share of the peak", where="mfu", mend="between 0 and 1, such as 0.4")
    if devices < 1:
        raise ConfigError(f"{devices} devices cannot train", where="devices")
    wish = wish or Wish()
    length, written = lengths(model, context, target)
    asked = MASKED_SHARE if isinstance(model, Encoder) and model.head_name in ("masked-lm", "pretraining") else 1.0
    setup.setdefault("asked", asked)
    each = length + written
    if batch is None:
        batch = max(-(-STEP_TOKENS // (each * devices)), 1) * devices
    if isinstance(device, Machine):
        setup["precision"] = "fp32"
    decided = Setup(context=length, target=written, batch=batch, **setup)
    footprint = Footprint(model, decided)
    count = count_flops(model, length, target=written or None, asked=decided.asked)
    parameters = model.num_parameters()
    tokens = TOKENS_PER_PARAMETER * parameters if tokens is None else tokens
    flops = count.training().total / each * tokens
    estimated = mfu is None
    ranked: list[tuple[Candidate, str]] = []
    best, enough = None, None
    if isinstance(device, Machine):
        alone = Layout(micro_batch=wish.micro_batch or min(batch, 8), recompute=wish.recompute or "none")
        memory = footprint.of(alone)
        mfu, peak = mfu or MACHINE_MFU, device.flops
    else:
        found = candidates(footprint, count, device, devices, wish)
        best, memory, peak = found[0], found[0].memory, device.peak_flops(decided.precision)
        ranked = [(each, reason(each, best, device)) for each in _varied(found)[:shown]]
        mfu = mfu or best.mfu
        enough = devices if best.fits else _enough(model, decided, count, device, devices, wish)
    seconds = flops / (devices * peak * mfu)
    return Plan(
        name=name,
        family=model.family.name,
        head=model.head_name,
        parameters=parameters,
        embeddings=footprint.vocab * footprint.hidden,
        setup=decided,
        tokens=tokens,
        steps=tokens / (each * batch),
        count=count,
        inference=_inference(model, length),
        flops=flops,
        conventions=_conventions(model, length),
        device=device,
        devices=devices,
        best=best,
        candidates=ranked,
        enough=enough,
        memory=memory,
        mfu=mfu,
        estimated=estimated,
        seconds=seconds,
        price=None if price is None else price * devices * seconds / 3600,
        budget=_budget(parameters, tokens),
    )


def lengths(model: Model, context: int | None = None, target: int | None = None) -> tuple[int, int]:
    """The tokens that a sequence reads and writes, with what was not given filled in; 0 where nothing is written.

    Raises:
        ConfigError: the model cannot read so many, or does not write.
    """
    longest = min(int(getattr(model, "longest", model.config.max_positions)), 1 << 40)
    writes = getattr(model, "decoder_positions", None) is not None
    if context is None:
        context = 512 if writes else min(longest, LONGEST)
    if context > longest:
        raise ConfigError(f"{context} tokens are more than the {longest} this model can read", where="context")
    if target is not None and not writes:
        raise ConfigError(f"the {model.family.name} family writes no second text", where="target")
    if not writes or getattr(model, "decoder", None) is None:
        return context, 0
    # What span corruption takes out of a text of which so many tokens stay (T5's own setting).
    return context, SPANS.lengths(SPANS.raw_length(context))[1] if target is None else target


def _enough(model: Model, setup: Setup, count: Count, device: Device, devices: int, wish: Wish) -> int | None:
    """The first doubling of `devices` with which a layout fits; the batch grows where it would not divide."""
    for number in (devices << shift for shift in range(1, 13)):
        grown = Footprint(model, setup.replace(batch=-(-setup.batch // number) * number))
        try:
            if candidates(grown, count, device, number, wish)[0].fits:
                return number
        except ConfigError:
            continue
    return None


def _varied(found: list[Candidate]) -> list[Candidate]:
    """The first of each cut into tensor and pipeline, for a list that shows choices and not variants of one."""
    seen: dict[tuple[int, int], Candidate] = {}
    for each in found:
        seen.setdefault((each.layout.tensor, each.layout.pipeline), each)
    return list(seen.values())


def _inference(model: Model, context: int) -> float | None:
    """Operations of writing one more token after a text of that length."""
    if model.head_name not in ("causal-lm", "seq2seq-lm"):
        return None
    return generation_flops(model, context, 2).total - generation_flops(model, context, 1).total


def _conventions(model: Model, context: int) -> dict[str, float]:
    """Training operations a token by the formulas that fit this kind of model."""
    shape = Shape.of(model)
    names = ["3n"] if getattr(model, "decoder_positions", None) is not None else [*CONVENTIONS]
    if "3n" in names and len(names) > 1:
        names.remove("3n")
    if shape.inner != shape.width or shape.feed_forward != 4 * shape.width or shape.matrices != 2:
        names = [each for each in names if each != "megatron"]
    return {each: CONVENTIONS[each](shape, context, "none") for each in names}


def _budget(parameters: int, tokens: float) -> Budget:
    return Budget(
        rule=TOKENS_PER_PARAMETER * parameters,
        tokens={name: law.tokens_for(parameters) for name, law in LAWS.items()},
        loss={name: law.loss(parameters, tokens) for name, law in LAWS.items()},
        best={name: law.optimum(6 * parameters * tokens) for name, law in LAWS.items()},
    )
