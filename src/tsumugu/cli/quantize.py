"""``tsumugu quantize``: a model's weights in fewer bits, as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tsumugu.cli.downloads import downloads, megabytes
from tsumugu.cli.options import Quiet


def quantize(
    model: Annotated[str, Parameter(help="A folder, a file, org/name[@revision], pypi:dist, or a short name.")],
    /,
    *,
    output: Annotated[
        Path, Parameter(("--output", "-o"), help="A file that ends in .gguf, or a folder for model.gguf.")
    ],
    bits: Annotated[Literal[4, 8], Parameter(help="Of each number.")] = 4,
    symmetric: Annotated[
        bool | None,
        Parameter(
            negative="--asymmetric",
            help="Groups with a scale alone: Q4_0; or with a least value too: Q4_1, the choice for 4 bits.",
        ),
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        Parameter(negative="", help="Files, folders or patterns of text to round by; may be repeated."),
    ] = None,
    method: Annotated[
        Literal["gptq", "nearest"] | None, Parameter(help="gptq with texts, nearest without, when left out.")
    ] = None,
    tokens: Annotated[int, Parameter(help="Of the texts, taken evenly from all of them.")] = 16384,
    text_column: Annotated[str | None, Parameter(help="The column with the text; found when left out.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write MODEL, a decoder, with its matrices in 4 or 8 bits, for our engines and for llama.cpp.

    With --calibrate each layer is rounded so that what it gives for these texts changes least. The file is printed; it
    appears whole or not at all.
    """
    from tsumugu.quantization.quantize import quantize as write

    with downloads(quiet=quiet) as watch:
        path = write(
            model,
            output,
            bits=bits,
            symmetric=symmetric,
            calibrate=calibrate,
            method=method,
            tokens=tokens,
            text_column=text_column,
            progress=watch,
        )
    print(path if quiet else f"{path}  ({megabytes(path.stat().st_size)})")
