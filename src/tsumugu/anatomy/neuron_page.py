"""Neurons as a page: how selective they are, and their texts, each token coloured by what the neuron gives there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from tsumugu.anatomy.charts import bars
from tsumugu.anatomy.neurons import Neuron, Place, Token
from tsumugu.anatomy.page import fill, tint

Part = tuple[str, float, str, bool]
"""Some characters, the value, the colour ("" between tokens), and whether they excite the neuron the most."""

_AROUND = 300  # characters shown on each side of the token


def render(found: Sequence[Neuron], tokens: Sequence[Sequence[Sequence[Token]]], *, model: str, texts: int) -> str:
    """One HTML page that needs nothing else.

    Args:
        tokens: of `activations`.
        model: its name; `texts`: how many were read.
    """
    names = {f"{each.layer}:{each.number}": each.selectivity for each in found}
    rows = [
        (each, [(place, list(_parts(each, place, told))) for place, told in zip(each.places, some, strict=True)])
        for each, some in zip(found, tokens, strict=True)
    ]
    return fill(
        "neurons.html",
        model=model,
        texts=texts,
        neurons=rows,
        labelled=any(each.label is not None for each in found),
        chart=Markup(bars(names, label="Selectivity", unit="standard deviations")) if len(names) > 1 else None,
    )


def _parts(neuron: Neuron, place: Place, tokens: Sequence[Token]) -> Iterator[Part]:
    """The text around the best token, cut into tokens; those that share characters are one, with their best value."""
    first, last = max(place.start - _AROUND, 0), min(place.end + _AROUND, len(place.text))
    most = max((abs(each.value - neuron.mean) for each in tokens), default=0.0) or 1.0
    if first:
        yield "…", 0.0, "", False
    at = first
    for token in _apart(tokens):
        if token.start < first or token.end > last:
            continue
        if token.start > at:
            yield place.text[at : token.start], 0.0, "", False
        best = token.start <= place.start < token.end
        yield place.text[token.start : token.end], token.value, tint((token.value - neuron.mean) / most), best
        at = token.end
    yield place.text[at:last], 0.0, "", False
    if last < len(place.text):
        yield "…", 0.0, "", False


def _apart(tokens: Sequence[Token]) -> Iterator[Token]:
    held: Token | None = None
    for each in tokens:
        if held is not None and each.start < held.end:
            held = Token(held.start, max(held.end, each.end), max(held.value, each.value))
            continue
        if held is not None:
            yield held
        held = each
    if held is not None:
        yield held
