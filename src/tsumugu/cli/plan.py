"""``tsumugu plan``: what a training run needs, before it is started."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from tsumugu.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from tsumugu.training.hardware import Device, Machine
    from tsumugu.training.planning import Plan

Flag = Annotated[bool, Parameter(negative="")]
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_DAY, _YEAR = 86400.0, 365.25 * 86400


def plan(
    *,
    model: Annotated[
        str,
        Parameter(
            ("--model", "-m"),
            help="A published model such as gpt3-175b or llama2-7b, a recipe (.yaml), a config.json, or a checkpoint.",
        ),
    ],
    gpus: Annotated[int | None, Parameter(help="How many accelerators (8).")] = None,
    gpu: Annotated[str | None, Parameter(help="Which: v100-32gb, a100-80gb, h100, rtx-4090… (a100-80gb).")] = None,
    on: Annotated[
        Literal["this-machine"] | None, Parameter(help="Plan for the cores of this machine, measured for a second.")
    ] = None,
    context: Annotated[
        int | None, Parameter(help="Tokens of a sequence; the longest the model reads, to 8192.")
    ] = None,
    target: Annotated[int | None, Parameter(help="Tokens an encoder-decoder writes; span corruption's share.")] = None,
    batch: Annotated[
        int | None, Parameter(help="Sequences in a step, over all devices; half a million tokens.")
    ] = None,
    tokens: Annotated[str | None, Parameter(help="Of the whole run, as 300B or 3e11; 20 for each parameter.")] = None,
    precision: Annotated[Literal["bf16", "fp16", "fp32"] | None, Parameter(help="bf16, or fp16 on older ones.")] = None,
    mfu: Annotated[float | None, Parameter(help="The share of the peak that is reached; else it is estimated.")] = None,
    price: Annotated[str | None, Parameter(help="Of one device for an hour: 2.5 or 2.5/h.")] = None,
    optimizer: Annotated[
        Literal["adamw", "muon", "lion", "adafactor", "sgd"], Parameter(help="Whose states are kept.")
    ] = "adamw",
    recompute: Annotated[
        Literal["none", "selective", "full"] | None,
        Parameter(help="Compute again in the backward pass: nothing, the scores, whole layers; else chosen."),
    ] = None,
    zero: Annotated[
        Literal[0, 1, 2, 3] | None, Parameter(help="Shared out: 1 optimiser, 2 gradients, 3 weights; else chosen.")
    ] = None,
    tensor: Annotated[int | None, Parameter(help="Tensor-parallel devices; else chosen.")] = None,
    pipeline: Annotated[int | None, Parameter(help="Pipeline stages; else chosen.")] = None,
    micro_batch: Annotated[int | None, Parameter(help="Sequences in one pass of one rank; else chosen.")] = None,
    unfused: Annotated[Flag, Parameter(help="Attention keeps its scores, as before FlashAttention.")] = False,
    full_logits: Annotated[Flag, Parameter(help="All logits are kept at once, as many trainers do.")] = False,
    head: Annotated[str | None, Parameter(help="The head that is trained; the family's own for pre-training.")] = None,
    layouts: Annotated[int, Parameter(help="How many layouts to list.")] = 5,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="One JSON object instead of tables.")] = False,
) -> None:
    """Say what training a model takes: parameters, memory by part, operations, time, cost, a layout, how much text.

    Everything follows from the network, which is built without its weights. Nothing is trained.
    """
    from tsumugu.training.layouts import Wish
    from tsumugu.training.outline import outline
    from tsumugu.training.planning import make_plan

    if on is not None and (gpus is not None or gpu is not None):
        raise ConfigError("--on this-machine is planned without accelerators", where="--gpu, --gpus")
    wanted, rate = None if tokens is None else _number(tokens, "--tokens"), None
    if price is not None:
        rate = _number(price.removesuffix("/h"), "--price")
    network = outline(model, head=head)
    device = _machine(network) if on is not None else _accelerator(gpu)
    chosen = precision or ("bf16" if on is not None or "bf16" in getattr(device, "peak", {}) else "fp16")
    found = make_plan(
        network,
        device,
        name=model,
        devices=1 if on is not None else 8 if gpus is None else gpus,
        context=context,
        target=target,
        batch=batch,
        tokens=wanted,
        mfu=mfu,
        price=rate,
        wish=Wish(tensor, pipeline, micro_batch, zero, recompute),
        shown=layouts,
        precision=chosen,
        optimizer=optimizer,
        fused_attention=not unfused,
        full_logits=full_logits,
    )
    if as_json:
        print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
        return
    from tsumugu.cli.console import stdout

    for table in _tables(found):
        stdout().print(table)
        stdout().print()


def _accelerator(name: str | None) -> Device:
    from tsumugu.training.hardware import find_device

    return find_device(name or "a100-80gb")


def _machine(network: Any) -> Machine:
    """This machine, timed on matrices as wide as the model's."""
    from tsumugu.training.conventions import Shape
    from tsumugu.training.hardware import measure_machine

    shape = Shape.of(network)
    return measure_machine(inner=shape.width, columns=shape.feed_forward)


def _number(text: str, option: str) -> float:
    """A number as 300B, 1.5T, 3e11 or 2,000."""
    word = text.strip().lower().replace(",", "").replace("_", "")
    unit = UNITS.get(word[-1:], 1.0)
    try:
        value = float(word[:-1] if unit != 1.0 else word) * unit
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ConfigError(f"{text!r} is no amount", where=option, mend="such as 300B, 1.5e12 or 2.5")
    return value


def _tables(found: Plan) -> list[Table]:
    tables = [_summary(found), _operations(found), _memory(found)]
    if found.candidates:
        tables.append(_layouts(found))
    return [*tables, _text(found)]


def _summary(found: Plan) -> Table:
    setup = found.setup
    table = _table(f"{found.name}: {found.family}, {found.head}", "", "")
    table.add_row("parameters", f"{found.parameters:,} ({short(found.parameters)})")
    read = f"{setup.context:,} tokens" + (f" read, {setup.target:,} written" if setup.target else "")
    table.add_row("a sequence", read)
    table.add_row("a step", f"{setup.batch:,} sequences, {short(setup.batch * found.count.tokens)} tokens")
    table.add_row("the run", f"{short(found.tokens)} tokens, {found.steps:,.0f} steps, {found.flops:.3g} operations")
    table.add_row("hardware", _hardware(found))
    table.add_row("utilisation", f"{found.mfu:.1%} of the peak ({'estimated' if found.estimated else 'as given'})")
    hours = found.seconds * found.devices / 3600
    table.add_row("time", f"{duration(found.seconds)} ({short(found.tokens / found.seconds)} tokens a second)")
    table.add_row("device hours", f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}")
    if found.price is not None:
        table.add_row("cost", f"{found.price:,.0f}" if found.price >= 10 else f"{found.price:.2g}")
    return table


def _hardware(found: Plan) -> str:
    from tsumugu.training.hardware import GIB, Machine

    if isinstance(found.device, Machine):
        device = found.device
        return (
            f"{device.cores} cores, {device.flops / 1e9:.1f} GFLOP/s in float32 products "
            f"[{device.rows}, {device.inner}] x [{device.inner}, {device.columns}], {device.memory / GIB:.1f} GiB"
        )
    peak = found.device.peak_flops(found.setup.precision) / 1e12
    return f"{found.devices:,} x {found.device.name}, {peak:g} TFLOP/s each in {found.setup.precision}"


def _operations(found: Plan) -> Table:
    tokens, count = found.count.tokens, found.count
    table = _table("Operations for a token", "", "forward", "backward", "share")
    whole = count.training().total
    for name in ("projections", "scores", "feed_forward", "head", "embeddings"):
        forward, backward = getattr(count.forward, name), getattr(count.backward, name)
        if forward or backward:
            share = f"{(forward + backward) / whole:.1%}"
            table.add_row(name.replace("_", "-"), short(forward / tokens), short(backward / tokens), share)
    table.add_row("all", short(count.forward.total / tokens), short(count.backward.total / tokens), "100%")
    said = ", ".join(f"{name} {short(each)}" for name, each in found.conventions.items())
    table.caption = f"training: {short(whole / tokens)}; by the formulas of papers: {said}"
    if found.inference is not None:
        table.caption += f"\nwriting one more token: {short(found.inference)}"
    table.caption_justify = "left"
    return table


def _memory(found: Plan) -> Table:
    from tsumugu.training.hardware import GIB
    from tsumugu.training.layouts import USABLE

    table = _table("Memory of the fullest device", "", "GiB")
    for name, each in found.memory.as_dict().items():
        table.add_row("all" if name == "total" else name.replace("_", " "), f"{each / GIB:.2f}")
    share = "" if found.best is None else f", of which {USABLE:.0%} may be used"
    table.caption = f"it has {found.device.memory / GIB:.1f}{share}"
    table.caption_justify = "left"
    return table


def _layouts(found: Plan) -> Table:
    from tsumugu.training.hardware import GIB

    columns = ("", "DP", "TP", "PP", "micro", "ZeRO", "again", "GiB", "MFU")
    fits = found.best is not None and found.best.fits
    table = _table("Layouts, the best first" if fits else "No layout fits; the smallest first", *columns)
    reasons = []
    for number, (each, why) in enumerate(found.candidates, 1):
        layout = each.layout
        numbers = (layout.data, layout.tensor, layout.pipeline, layout.micro_batch, layout.zero)
        shares = (f"{each.memory.total / GIB:.1f}", f"{each.mfu:.1%}")
        table.add_row(str(number), *(str(number) for number in numbers), layout.recompute, *shares)
        reasons.append(f"{number}  {why}")
    if not fits:
        enough = "no number of them that was tried" if found.enough is None else f"{found.enough:,}"
        reasons.append(f"enough would be: {enough}")
    table.caption = "\n".join(reasons)
    table.caption_justify = "left"
    return table


def _text(found: Plan) -> Table:
    budget = found.budget
    table = _table("How much text", "law", "best tokens", "loss as planned", "better for these operations")
    table.add_row("20 a parameter", short(budget.rule), "", "")
    for name, tokens in budget.tokens.items():
        parameters, best = budget.best[name]
        better = f"{short(parameters)} parameters, {short(best)} tokens"
        table.add_row(name, short(tokens), f"{budget.loss[name]:.3f}", better)
    return table


def short(number: float) -> str:
    """Three digits and a unit: 175B, 1.07T, 314."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if 999.5 * size >= number >= 0.9995 * size or (unit == "T" and number >= size):
            return f"{number / size:.3g}{unit}" if number < 999.5 * size else f"{number / size:,.0f}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours, days or years, whichever reads best."""
    for name, size in (("years", _YEAR), ("days", _DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            count = seconds / size
            return f"{count:,.0f} {name}" if count >= 100 else f"{count:.1f} {name}"
    return f"{seconds:.1f} seconds"


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    if columns == ("", ""):
        table.show_header = False
    for column in columns:
        left = column in ("", "law", "again", "better for these operations")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    return table
