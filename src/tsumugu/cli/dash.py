"""A single dash as an argument: standard input or output, where the parser would take it for an option.

The command line hides each lone dash from the parser behind a character that no argument can hold; parameters that take
one are annotated with `DASH`, which brings it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cyclopts import Parameter, Token, convert

_HIDDEN = "\0-"


def hide_dashes(arguments: Sequence[str]) -> list[str]:
    """The arguments as the parser may see them."""
    return [_HIDDEN if each == "-" else each for each in arguments]


def _convert(type_: Any, tokens: Sequence[Token]) -> Any:
    return convert(type_, [each.evolve(value="-") if each.value == _HIDDEN else each for each in tokens])


DASH = Parameter(converter=_convert)
