"""``tsumugu probe``: what each layer of a model knows about labelled data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from cyclopts import Parameter

from tsumugu.cli.console import progress, stderr, stdout
from tsumugu.cli.downloads import downloads
from tsumugu.cli.options import Device, Quiet
from tsumugu.cli.pages import check_page, write_page
from tsumugu.core.errors import InputError


def probe(
    data: Annotated[str, Parameter(help="Labelled texts, pairs, or texts with spans, in any form that is read.")],
    /,
    *,
    model: Annotated[str, Parameter(("--model", "-m"), help="A folder, a file, a name.")],
    test: Annotated[str | None, Parameter(help="Other data to test the probes on; a fifth of the first else.")] = None,
    kind: Annotated[
        Literal["text-classification", "pair-classification", "token-classification"] | None,
        Parameter(help="Of the data; guessed from its columns."),
    ] = None,
    pooling: Annotated[
        Literal["mean", "cls", "max", "last"], Parameter(help="How a text's tokens become one vector.")
    ] = "mean",
    limit: Annotated[int, Parameter(help="Of more rows, so many are drawn.")] = 2000,
    regularisation: Annotated[float, Parameter(help="Inverse weight of the penalty, as scikit-learn's C.")] = 1.0,
    seed: Annotated[int, Parameter(help="Of the split and of the chance labels.")] = 0,
    html: Annotated[Path | None, Parameter(help="Write a page that needs nothing else.")] = None,
    plot: Annotated[Path | None, Parameter(help="Draw it: an .svg or .png file.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Say what each layer of a model knows: a linear classifier on its states, beside one that learnt chance labels."""
    from tsumugu.anatomy import probing
    from tsumugu.anatomy.pictures import check_target
    from tsumugu.checkpoints.load import load_tokenizer
    from tsumugu.data.labelled.examples import Examples
    from tsumugu.data.labelled.load import load_examples
    from tsumugu.engines.torch import load_model

    check_page(html)
    if plot is not None:
        check_target(plot)
    if limit < 2 or regularisation <= 0:
        raise InputError("--limit takes at least 2, --regularisation more than 0")

    def some(examples: Examples) -> Examples:
        if len(examples) <= limit:
            return examples
        return replace(examples, rows=tuple(Random(seed).sample(examples.rows, limit)))

    learnt = some(load_examples(data, kind))
    asked = None if test is None else some(load_examples(test, learnt.kind))
    with downloads(quiet=quiet) as watch:
        loaded = load_model(model, device=device, progress=watch)
    with progress(quiet=quiet or as_json) as display:
        bars: dict[str, int] = {}

        def look(what: str, done: int) -> None:
            if what not in bars:
                bars[what] = display.add_task(what, total=None)
            display.advance(bars[what], done)  # type: ignore[arg-type]

        found = probing.probe(
            loaded,
            load_tokenizer(model),
            learnt,
            asked,
            pooling=pooling,
            regularisation=regularisation,
            seed=seed,
            watch=look,
        )
    if plot is not None:
        probing.plot(found, plot, title=f"{model}: {len(found.labels)} labels")
        if not quiet:
            stderr().print(f"written: {plot}", markup=False)
    if html is not None:
        write_page(html, probing.render(found, model=model, data=data), quiet=quiet)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    elif html is None:
        for line in probing.in_text(found):
            stdout().print(line, markup=False)
