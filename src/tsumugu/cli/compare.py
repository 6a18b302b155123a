"""``tsumugu compare``: rank what was evaluated on the same data, and say which differences are more than chance."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from tsumugu.cli.console import stderr, stdout
from tsumugu.core.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from tsumugu.evaluation.comparison import Comparison


def compare(
    results: list[Path],
    /,
    *,
    metric: Annotated[str | None, Parameter(help="The one that ranks; that of the first results.")] = None,
    against: Annotated[str | None, Parameter(help="The system that others are compared with; the best.")] = None,
    test: Annotated[
        Literal["randomization", "bootstrap"] | None, Parameter(help="Of significance; as fits the metric.")
    ] = None,
    format: Annotated[Literal["table", "markdown", "json"], Parameter(help="How it is printed.")] = "table",
    html: Annotated[Path | None, Parameter(help="Also write a report here.")] = None,
    language: Annotated[Literal["en", "ja"], Parameter(help="Of the report.")] = "en",
    confidence: Annotated[float, Parameter(help="Of intervals.")] = 0.95,
    resamples: Annotated[int, Parameter(help="Of the tests.")] = 1000,
    resample_seed: Annotated[int, Parameter(help="Of the tests.")] = 0,
) -> None:
    """Rank systems by what `tsumugu evaluate --output` wrote, a table for each set of data.

    Parameters
    ----------
    results
        Folders with results.json and predictions.jsonl.
    """
    from tsumugu.evaluation.comparison import compare_all, markdown
    from tsumugu.evaluation.results import Settings, load

    if not results:
        raise InputError("no results are named", mend="name folders that tsumugu evaluate --output wrote")
    found = compare_all(
        [load(path) for path in results],
        metric=metric,
        against=against,
        test=test,
        settings=Settings(resamples, confidence, resample_seed),
    )
    if html is not None:
        from tsumugu.evaluation.report import write_comparison

        write_comparison(found, html, language=language)
    if format == "json":
        print(jsonlib.dumps([each.to_dict() for each in found], ensure_ascii=False, indent=2))
    elif format == "markdown":
        print("\n".join(map(markdown, found)), end="")
    else:
        for each in found:
            stdout().print(_table(each))
    if html is not None:
        stderr().print(f"wrote {html}", markup=False)


def _table(found: Comparison) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from tsumugu.evaluation.comparison import p_value

    title = Text(f"{found.source}: {found.kind}, {found.examples:,} examples")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "system", found.metric, "interval", f"to {found.against}", "p", "p (Holm)"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for each in found.ranks:
        score, difference = each.scores[found.metric], each.difference
        row = [str(each.place), each.system, f"{score.value:.4f}", f"{score.low:.4f} to {score.high:.4f}"]
        if difference is not None:
            row += [f"{difference.value:+.4f}", p_value(difference.p), p_value(each.adjusted or 0.0)]
        table.add_row(*map(Text, row))
    return table
