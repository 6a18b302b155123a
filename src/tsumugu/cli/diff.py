"""``tsumugu diff``: what changed between two checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter

from tsumugu.cli.console import progress, stdout
from tsumugu.cli.options import Quiet


def diff(
    first: Annotated[str, Parameter(help="A model: a folder, a file, a name.")],
    second: Annotated[str, Parameter(help="Another one.")],
    /,
    *,
    most: Annotated[int, Parameter(help="How many changed tensors are shown.")] = 20,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="Print everything as one JSON object.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Say what differs: configuration, tokenizer, and tensors by how much. Leaves with 1 if something does, as diff."""
    from tsumugu.anatomy.diff import compare

    with progress(quiet=quiet or as_json) as display:
        bar = display.add_task("comparing", total=None)
        found = compare(first, second, watch=lambda name: display.update(bar, advance=1, description=name[-48:]))
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        for line in lines_of(found, most):
            stdout().print(line, markup=False)
    if not found["same"]:
        raise SystemExit(1)


def lines_of(found: dict[str, Any], most: int) -> Iterator[str]:
    """The differences in words."""
    tensors = found["tensors"]
    if found["same"]:
        yield f"nothing differs ({tensors['equal']:,} tensors are equal, number by number)"
        return
    for key, (one, other) in found["config"].items():
        yield f"config     {key}: {one!r} -> {other!r}"
    for key, value in found["tokenizer"].items():
        yield f"tokenizer  {key}: {value}"
    for key in ("removed", "added"):
        for each in tensors[key][:most]:
            yield f"{key:<10} {each['name']} {_by(each['shape'])}"
        if len(tensors[key]) > most:
            yield f"{key:<10} … {len(tensors[key]) - most:,} more"
    for each in tensors["reshaped"][:most]:
        yield f"reshaped   {each['name']}: {_by(each['first'])} -> {_by(each['second'])}"
    changed = tensors["changed"]
    if changed:
        width = min(max(len(each["name"]) for each in changed[:most]), 60)
        yield f"changed    {'':<{width}}  relative    cosine   numbers"
        for each in changed[:most]:
            cosine = "-" if each["cosine"] is None else f"{each['cosine']:.5f}"
            relative = "-" if each["relative"] is None else f"{each['relative']:.2e}"
            yield f"           {each['name']:<{width}}  {relative:>8}  {cosine:>8}  {each['share']:7.1%}"
        if len(changed) > most:
            yield f"           … {len(changed) - most:,} more"
    yield f"{len(changed):,} tensors changed, {tensors['equal']:,} are equal"


def _by(shape: list[int]) -> str:
    return "×".join(map(str, shape)) or "a number"
