"""``tsumugu bench``: what this machine can do, and how much of it a model reaches."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter

from tsumugu.cli.downloads import downloads
from tsumugu.cli.options import Engine, Quantize, Quiet, quantization


def bench(
    model: str = "smollm2",
    /,
    *,
    engine: Engine = "auto",
    quantize: Quantize = "auto",
    threads: Annotated[int, Parameter(help="Threads; 0: all cores.")] = 0,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="One JSON object instead of tables.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure memory and arithmetic, then MODEL at work, in seconds and in shares of what is possible.

    Parameters
    ----------
    model
        A decoder: a folder, a file, org/name[@revision], pypi:dist, or a short name such as smollm2.
    """
    from tsumugu.engines.load import load_model
    from tsumugu.engines.measure import machine_limits, phases
    from tsumugu.engines.onnx_model import cores

    threads = threads or cores()
    with downloads(quiet=quiet or as_json) as watch:
        loaded = load_model(model, engine=engine, quantize=quantization(quantize), threads=threads, progress=watch)
    limits = machine_limits(threads)
    found = phases(loaded, limits, threads=threads)
    kind: Any = getattr(loaded, "interface", {}).get("kind", "torch")
    runs_on = {"native": "native", "native-encoder": "native", "torch": "torch"}.get(kind, "onnx")
    if as_json:
        record = {"model": model, "engine": runs_on, "threads": threads, "limits": asdict(limits)}
        print(json.dumps(record | {"phases": [asdict(each) for each in found]}))
        return
    for count, speed in limits.bandwidth.items():
        print(f"{f'memory, {count} thread' + ('s' if count > 1 else ''):24}{speed / 1e9:8.1f} GB/s")
    print(f"{'float32 products':24}{limits.products / 1e9:8.1f} GFLOP/s\n")
    print(f"{model} on the {runs_on} engine, {threads} thread{'s' if threads > 1 else ''}")
    for phase in found:
        share = f"{phase.reached:5.0%} of what {phase.limit} allows"
        print(f"{phase.work:24}{phase.seconds * 1e3:8.1f} ms{phase.tokens:9.0f} tokens/s   {share}")
