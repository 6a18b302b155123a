"""``tsumugu prepare``: raw text into a corpus for training; show one, and verify one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from tsumugu.cli.console import progress
from tsumugu.cli.dash import DASH
from tsumugu.cli.inputs import EncodingErrors, InputFormat
from tsumugu.cli.options import Quiet

if TYPE_CHECKING:
    from tsumugu.corpus.shards import Corpus

app = App(name="prepare", help="Prepare raw text for training: clean it, tokenise it once, show and verify the result.")

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="JSON instead of tables.")]
Flag = Annotated[bool, Parameter(negative="")]
_CLEANING = Group("Cleaning", sort_key=10)
_WIDTH = 44  # of an example


@app.default
def prepare(
    inputs: Annotated[
        list[str],
        DASH,
        Parameter(
            name="inputs", negative="", help="Files, folders, patterns, hf:NAME[:SPLIT]; - reads standard input."
        ),
    ],
    /,
    *,
    tokenizer: Annotated[str, Parameter(("--tokenizer", "-t"), help="A folder, a file, or a model's name.")],
    output: Annotated[Path, Parameter(("--output", "-o"), help="The folder to make.")],
    validation: Annotated[
        list[str] | None, Parameter(negative="", help="An input whose documents are held back; may be repeated.")
    ] = None,
    validation_share: Annotated[float, Parameter(help="Hold back this share of the other documents.")] = 0.0,
    document: Annotated[
        Literal["auto", "file", "paragraph", "line"],
        Parameter(help="What a document is in plain text; auto takes a file for one."),
    ] = "auto",
    workers: Annotated[
        int | None, Parameter(("--workers", "-j"), help="Processes; left out: one for each core.")
    ] = None,
    shard_tokens: Annotated[int | None, Parameter(help="The most tokens of a shard (134217728).")] = None,
    force: Annotated[Flag, Parameter(help="Replace the folder if it is there, and begin anew.")] = False,
    normalize: Annotated[
        Literal["none", "nfc", "nfkc"], Parameter(group=_CLEANING, help="Unicode form; nfkc suits Japanese web text.")
    ] = "none",
    near_duplicates: Annotated[
        float | None, Parameter(group=_CLEANING, help="Drop documents this alike to an earlier one, such as 0.8.")
    ] = None,
    keep_duplicates: Annotated[Flag, Parameter(group=_CLEANING, help="Keep documents that are there already.")] = False,
    language: Annotated[
        list[str] | None,
        Parameter(group=_CLEANING, negative="", help="Keep only this language, such as ja; may be repeated."),
    ] = None,
    filter: Annotated[
        list[str] | None,
        Parameter(
            group=_CLEANING,
            negative="",
            help="A rule such as 'characters>=200', or a set: gopher, c4, japanese, repetition; may be repeated.",
        ),
    ] = None,
    keep_newlines: Annotated[Flag, Parameter(group=_CLEANING, help="Leave line ends as they are.")] = False,
    keep_controls: Annotated[Flag, Parameter(group=_CLEANING, help="Leave control characters where they are.")] = False,
    text_column: Annotated[str | None, Parameter(help="The column with the text, of rows that have columns.")] = None,
    input_format: InputFormat = None,
    encoding_errors: EncodingErrors = "strict",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Prepare INPUTS for training. Interrupted, the same command goes on where it was.

    The result is the same, byte for byte, for any number of workers. What was dropped, and why, is printed and kept in
    the folder's report.json.
    """
    import sys

    from tsumugu.corpus.cleaning import Cleaning
    from tsumugu.corpus.prepare import Progress
    from tsumugu.corpus.prepare import prepare as work
    from tsumugu.corpus.shard_writer import SHARD_TOKENS

    cleaning = Cleaning(
        normalize=normalize,
        newlines=not keep_newlines,
        controls=not keep_controls,
        exact_duplicates=not keep_duplicates,
        near_duplicates=near_duplicates,
        languages=tuple(language or ()),
        filters=tuple(filter or ()),
    )
    with progress(quiet=quiet) as display:
        task = display.add_task("reading", total=None)

        def tell(now: Progress) -> None:
            said = f"{now.documents} documents, {now.tokens} tokens"
            display.update(task, completed=now.done, total=now.total or None, description=said)

        try:
            corpus = work(
                inputs,
                output,
                tokenizer=tokenizer,
                cleaning=cleaning,
                validation=validation or (),
                validation_share=validation_share,
                workers=workers,
                text_column=text_column,
                format=input_format,
                encoding_errors=encoding_errors,
                document=document,
                shard_tokens=SHARD_TOKENS if shard_tokens is None else shard_tokens,
                force=force,
                progress=tell,
            )
        except KeyboardInterrupt:
            display.stop()
            print("what is done is kept: the same command goes on from there", file=sys.stderr)
            raise
    if as_json:
        print(json.dumps(_about(corpus), indent=2, ensure_ascii=False))
    elif not quiet:
        _print(corpus)


@app.command
def show(
    folder: Path,
    /,
    *,
    documents: Annotated[int, Parameter(("--documents", "-n"), help="How many documents to begin to show.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show a prepared corpus: how much it holds, what was dropped and why, how its documents begin."""
    from tsumugu.cli.cache_text import printable
    from tsumugu.cli.console import stdout
    from tsumugu.corpus.shards import Corpus

    corpus = Corpus.open(folder)
    if as_json:
        print(json.dumps(_about(corpus), indent=2, ensure_ascii=False))
        return
    _print(corpus)
    chosen = {key: value for key, value in corpus.settings.items() if value not in (None, False, [], 0.0, "none")}
    stdout().print("settings: " + json.dumps(chosen, ensure_ascii=False), markup=False)
    tokenizer = corpus.tokenizer() if documents else None
    for number in range(min(documents, corpus.documents)):
        assert tokenizer is not None
        text = tokenizer.decode(corpus.document(number)[:100].tolist())
        begin = printable(" ".join(text.split()))[:160]
        stdout().print(f"{number}  ({corpus.lengths[number]} tokens)  {begin}", markup=False)


@app.command
def verify(folder: Path, /, *, quiet: Quiet = False) -> None:
    """Read a prepared corpus whole and compare it with its checksums. Exit code 2 says that it is broken."""
    from tsumugu.cli.console import stdout
    from tsumugu.corpus.shards import Corpus

    corpus = Corpus.open(folder)
    with progress(quiet=quiet) as display:
        task = display.add_task("verifying", total=None)
        corpus.verify(lambda done, total: display.update(task, completed=done, total=total))
    if not quiet:
        held = f" and {corpus.validation.documents} held back" if corpus.validation else ""
        stdout().print(f"{folder}: {corpus.documents} documents{held}, all as they were prepared", markup=False)


def _about(corpus: Corpus) -> dict[str, Any]:
    """What `show` and `prepare` say as JSON."""
    about: dict[str, Any] = {"path": str(corpus.path), "checksum": corpus.checksum, "training": _figures(corpus)}
    if corpus.validation is not None:
        about["validation"] = _figures(corpus.validation)
    return {**about, "settings": corpus.settings, "report": corpus.source_report}


def _figures(corpus: Corpus) -> dict[str, Any]:
    import numpy as np

    least, median, most = np.quantile(corpus.lengths, [0, 0.5, 1]).astype(int).tolist()
    return {
        "documents": corpus.documents,
        "tokens": corpus.tokens,
        "characters": corpus.characters,
        "bytes": corpus.bytes,
        "characters_per_token": None if corpus.characters is None else corpus.characters / corpus.tokens,
        "bytes_per_token": corpus.bytes / corpus.tokens,
        "shards": len(corpus.shards),
        "size": corpus.tokens * corpus.dtype.itemsize,
        "document_tokens": {"least": least, "median": median, "most": most},
    }


def _print(corpus: Corpus) -> None:
    from tsumugu.cli.console import stdout

    report = corpus.source_report
    if report:
        read, dropped = report["read"]["documents"], report["dropped"]
        found = _table(f"{read} documents read", "dropped as", "documents", "share", "characters")
        for reason, each in dropped.items():
            if each["documents"]:
                share = f"{100 * each['documents'] / read:.2f} %"
                found.add_row(reason, str(each["documents"]), share, str(each["characters"]))
        if not found.row_count:
            found.add_row("nothing", "0", "", "0")
        stdout().print(found)
        for reason, each in dropped.items():
            for example in each["examples"][:1]:
                stdout().print(f"{reason}: {_example(example)}", style="dim", markup=False, no_wrap=True)
        if report["languages"]:
            stdout().print("languages: " + ", ".join(f"{name} {count}" for name, count in report["languages"].items()))
    kept = _table(str(corpus.path), "", "documents", "tokens", "chars/token", "bytes/token", "median", "longest")
    for name, each in (("training", corpus), ("validation", corpus.validation)):
        if each is not None:
            about = _figures(each)
            kept.add_row(
                name,
                str(about["documents"]),
                str(about["tokens"]),
                "" if about["characters_per_token"] is None else f"{about['characters_per_token']:.3f}",
                f"{about['bytes_per_token']:.3f}",
                str(about["document_tokens"]["median"]),
                str(about["document_tokens"]["most"]),
            )
    stdout().print(kept)
    if corpus.validation is None and corpus.settings.get("validation_share"):
        stdout().print(
            "no document was held back: there are too few for this share; name some with --validation", markup=False
        )


def _example(example: dict[str, Any]) -> str:
    from tsumugu.cli.cache_text import printable

    value = example["value"]
    value = "" if value is None else f" ({value if isinstance(value, str) else format(value, 'g')})"
    return printable(f"{Path(example['where']).name}{value}  {example['text'][:_WIDTH]}".rstrip())


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        left = column in ("", "dropped as")
        found.add_column(column, justify="left" if left else "right", no_wrap=True)
    return found
