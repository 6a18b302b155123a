"""``tsumugu neurons``: which texts excite single neurons the most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tsumugu.cli.console import progress, stdout
from tsumugu.cli.downloads import downloads
from tsumugu.cli.inputs import InputFormat, InputPath, TextColumn, Texts, one_label, one_text, read_inputs
from tsumugu.cli.options import Device, Quiet
from tsumugu.cli.pages import check_page, write_page
from tsumugu.core.errors import InputError


def neurons(
    *texts: Texts,
    model: Annotated[str, Parameter(("--model", "-m"), help="A folder, a file, a name.")],
    input: InputPath = None,
    input_format: InputFormat = None,
    text_column: TextColumn = None,
    label_column: Annotated[str | None, Parameter(help="Find neurons that tell these labels apart.")] = None,
    neuron: Annotated[
        str | None, Parameter(help="LAYER:NUMBER, counted from 1; the most selective ones when left out.")
    ] = None,
    top: Annotated[int, Parameter(help="Texts for each neuron.")] = 5,
    shown: Annotated[int, Parameter(help="Neurons that are shown.")] = 10,
    html: Annotated[Path | None, Parameter(help="Write a page that needs nothing else.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object a neuron.")] = False,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Say which texts of a corpus excite the neurons of a model's feed-forwards the most."""
    which = None if neuron is None else _place(neuron)
    if min(top, shown) < 1:
        raise InputError("--top and --shown take at least 1")
    check_page(html)
    inputs = read_inputs(texts, input, format=input_format)
    from tsumugu.anatomy import neurons as anatomy
    from tsumugu.checkpoints.load import load_tokenizer
    from tsumugu.engines.torch import load_model

    with downloads(quiet=quiet) as watch:
        loaded = load_model(model, device=device, progress=watch)
    rows = (
        (one_text(row, text_column), None if label_column is None else one_label(row, label_column))
        for row in inputs.rows
    )
    with progress(quiet=quiet or as_json) as display:
        bar = display.add_task("reading", total=inputs.total)
        read = 0

        def watched(count: int) -> None:
            nonlocal read
            read += count
            display.advance(bar, count)

        found = anatomy.neurons(
            loaded,
            load_tokenizer(model),
            rows,
            which=which,
            top=top,
            shown=shown,
            watch=watched,
        )
    if html is not None:
        from tsumugu.anatomy import neuron_page

        told = anatomy.activations(loaded, load_tokenizer(model), found)
        write_page(html, neuron_page.render(found, told, model=model, texts=read), quiet=quiet)
    if as_json:
        for each in found:
            print(json.dumps(each.to_dict(), ensure_ascii=False))
    elif html is None:
        for line in anatomy.in_text(found):
            stdout().print(line, markup=False)


def _place(text: str) -> tuple[int, int]:
    layer, colon, number = text.partition(":")
    if not (colon and layer.isdecimal() and number.isdecimal()):
        raise InputError(f"{text!r} names no neuron", where="--neuron", mend="write LAYER:NUMBER, such as 3:120")
    return int(layer), int(number)
