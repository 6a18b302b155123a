"""``tsumugu export``: a model as a graph for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tsumugu.cli.console import progress, stdout
from tsumugu.cli.downloads import downloads
from tsumugu.cli.options import DType, Quiet


def export(
    model: Annotated[str, Parameter(help="A folder, a file, org/name[@revision], pypi:dist, or a short name.")],
    path: Annotated[Path, Parameter(help="A folder, or a file that ends in .onnx or .pt2.")],
    /,
    *,
    to: Annotated[str, Parameter(help="onnx, torch-export, jax or tf.")] = "onnx",
    task: Annotated[
        str | None, Parameter(help="A head, or the task that needs one; the checkpoint's own otherwise.")
    ] = None,
    cache: Annotated[
        bool,
        Parameter(
            negative="",
            help="Of a decoder (onnx, torch-export): take and give keys and values, to write token by token.",
        ),
    ] = False,
    dtype: DType = "float32",
    force: Annotated[
        bool, Parameter(negative="", help="Write over the file, or into the folder, that is there.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as a graph that runs without this package, with its configuration and tokenizer beside it."""
    from tsumugu.engines.torch import load_model
    from tsumugu.exporting.write import export as write
    from tsumugu.exporting.write import ready

    ready(path.expanduser(), to, cache=cache, force=force)
    with downloads(quiet=quiet) as watch:
        loaded = load_model(model, dtype=dtype, task=task, progress=watch)
    with progress(quiet=quiet) as display:
        display.add_task(f"writing {to}", total=None)
        written = write(loaded, path, to, cache=cache, force=force)
    files = [written] if written.is_file() else sorted(each for each in written.rglob("*") if each.is_file())
    for each in files:
        stdout().print(f"{each.stat().st_size:>13,}  {each}", markup=False)
