"""``tsumugu data``: check labelled data, and say what is in them, before a model learns from them."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tsumugu.cli.console import stderr, stdout
from tsumugu.cli.evaluate import reading_options
from tsumugu.core.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from tsumugu.data.labelled.examples import Examples
    from tsumugu.data.labelled.report import DataReport, Lengths


def data(
    files: list[str],
    /,
    *,
    kind: Annotated[str | None, Parameter(help="Of the data; guessed from its columns.")] = None,
    format: Annotated[str | None, Parameter(help="Overrules the suffix: jsonl, conll, glue, …")] = None,
    columns: Annotated[list[str] | None, Parameter(negative="", help="PART=COLUMN, such as text=review.")] = None,
    skip: Annotated[bool, Parameter(negative="", help="Pass over bad rows, and say which.")] = False,
    problems: Annotated[Path | None, Parameter(help="Write what is wrong with them here, as JSON Lines.")] = None,
    tokenizer: Annotated[str | None, Parameter(help="A model in whose tokens lengths are counted too.")] = None,
    languages: Annotated[bool, Parameter(negative="", help="Tell the languages too (extra clean).")] = False,
    json: Annotated[bool, Parameter(negative="", help="The report as JSON.")] = False,
) -> None:
    """Check labelled data and report classes, lengths, languages, duplicates and leaks between splits.

    Parameters
    ----------
    files
        A folder with train, validation and test files, hf:NAME, or files, the one to train on first.
    """
    from tsumugu.data.labelled.report import describe

    options = reading_options(format, columns, skip=skip or problems is not None)
    splits = _splits(files, kind, options)
    found = describe(splits, count_tokens=_counter(tokenizer), language=_identifier() if languages else None)
    lost = [problem for examples in splits.values() for problem in examples.problems]
    if problems is not None:
        from tsumugu.data.writers import open_writer

        with open_writer(problems) as writer:
            for each in lost:
                writer.write({"where": each.where, "what": each.what, "mend": each.mend})
    else:
        for each in lost:
            stderr().print(f"passed over: {each}", style="dim", markup=False)
    if json:
        print(jsonlib.dumps(found.to_dict(), ensure_ascii=False, indent=2))
        return
    for table in _tables(found):
        stdout().print(table)
    for warning in found.warnings:
        stdout().print(f"! {warning}", markup=False)


def _splits(files: Sequence[str], kind: str | None, options: dict[str, Any]) -> dict[str, Examples]:
    from tsumugu.data.hub_datasets import DATASET
    from tsumugu.data.labelled.load import load_splits

    if len(files) == 1 and (Path(files[0]).is_dir() or files[0].startswith(DATASET)):
        return load_splits(files[0], kind, **options)
    names = [Path(each).name for each in files]
    if len(set(names)) < len(names):
        names = list(files)
    if len(set(names)) < len(names):
        raise InputError("a file is named twice")
    return load_splits(dict(zip(names, files, strict=True)), kind, **options)


def _counter(source: str | None) -> Callable[[str], int] | None:
    if source is None:
        return None
    from tsumugu.checkpoints.load import load_tokenizer

    tokenizer = load_tokenizer(source)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _identifier() -> Callable[[str], str]:
    from tsumugu.corpus.languages import LanguageIdentifier

    identifier = LanguageIdentifier()
    return lambda text: identifier.language(text)[0]


def _tables(found: DataReport) -> Iterator[Table]:
    names = list(found.splits)
    main = _new(found.kind, "", *names)
    rows: list[tuple[str, list[str]]] = [
        ("examples", [f"{each.rows:,}" for each in found.splits.values()]),
        ("passed over", [f"{each.skipped:,}" for each in found.splits.values()]),
        ("characters", [_lengths(each.characters) for each in found.splits.values()]),
    ]
    if all(each.tokens is not None for each in found.splits.values()):
        rows.append(("tokens", [_lengths(each.tokens) for each in found.splits.values() if each.tokens]))
    if any(each.languages for each in found.splits.values()):
        shares = [", ".join(f"{code} {n:,}" for code, n in [*e.languages.items()][:4]) for e in found.splits.values()]
        rows.append(("languages", shares))
    if any(each.unanswered for each in found.splits.values()):
        rows.append(("without answer", [f"{each.unanswered:,}" for each in found.splits.values()]))
    twice = [f"{each.duplicates[0]:,}, {each.duplicates[1]:,} nearly" for each in found.splits.values()]
    for name, cells in [*rows, ("duplicates", twice)]:
        main.add_row(name, *cells)
    main.caption = "characters: least, median, 95 %, most"
    main.caption_justify = "left"
    yield main
    labels = list(dict.fromkeys(label for each in found.splits.values() for label in each.labels))
    if labels:
        table = _new("labels", "label", *names)
        for label in labels[:40]:
            table.add_row(_text(label), *(_share(each.labels, label) for each in found.splits.values()))
        if len(labels) > 40:
            table.add_row(f"… {len(labels) - 40} more", *("" for _ in names))
        yield table
    if found.leaks:
        table = _new("in both", "", "exactly", "nearly", "context only", "first")
        for leak in found.leaks:
            first = ", ".join(f"{later} = {earlier}" for later, earlier in leak.examples[:2])
            counts = (leak.exact, leak.normalized, leak.shared)
            table.add_row(_text(f"{leak.split}, {leak.of}"), *(f"{each:,}" for each in counts), _text(first))
        yield table


def _share(labels: dict[str, int], label: str) -> str:
    total = sum(labels.values())
    return f"{labels.get(label, 0):,} ({labels.get(label, 0) / total:.1%})" if total else "0"


def _lengths(each: Lengths) -> str:
    return f"{each.least:,} / {each.median:,} / {each.p95:,} / {each.most:,}"


def _text(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _new(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for at, column in enumerate(columns):
        table.add_column(_text(column), justify="right" if at else "left")
    return table
