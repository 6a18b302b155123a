"""``tsumugu tokenizer``: train one, measure it on texts, and see how it cuts a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from tsumugu.cli.console import progress
from tsumugu.cli.dash import DASH
from tsumugu.cli.inputs import EncodingErrors, InputFormat, TextColumn, one_text
from tsumugu.cli.options import Quiet
from tsumugu.core.errors import InputError
from tsumugu.data.readers import read_rows

if TYPE_CHECKING:
    from tsumugu.text.encoding import Encoding
    from tsumugu.text.measure import Measure, Report

app = App(name="tokenizer", help="Train a tokenizer, measure it on texts, and see how it cuts a text.")

Files = Annotated[
    list[Path],
    DASH,
    Parameter(name="files", negative="", help="Files as run --input takes them; - reads standard input."),
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="JSON instead of tables.")]
Dictionary = Annotated[Literal["unidic-lite", "ipadic", "unidic"], Parameter(help="MeCab's dictionary.")]
Flag = Annotated[bool, Parameter(negative="")]
_COLOURS = ("black on cyan", "black on yellow", "black on green", "black on magenta")


@app.command
def train(
    files: Files,
    /,
    *,
    family: Annotated[
        Literal["bert", "roberta", "gpt2", "llama", "t5"], Parameter(help="Whose special tokens and frame it gets.")
    ],
    vocab_size: Annotated[int, Parameter(("--vocab-size", "-v"), help="Tokens in all, special ones included.")],
    kind: Annotated[
        Literal["bpe", "wordpiece", "unigram", "character"] | None, Parameter(help="Left out: the family's own.")
    ] = None,
    output: Annotated[Path, Parameter(("--output", "-o"), help="The folder to write.")] = Path("tokenizer"),
    force: Annotated[Flag, Parameter(help="Replace the folder if it is there.")] = False,
    language: Annotated[
        Literal["auto", "ja", "en"], Parameter(help="auto looks at the first million characters.")
    ] = "auto",
    segment: Annotated[
        Literal["none", "mecab", "mecab-always"],
        Parameter(help="mecab: in training, no token reaches across words; mecab-always: whenever it runs, too."),
    ] = "none",
    dictionary: Dictionary = "unidic-lite",
    lowercase: Annotated[Flag, Parameter(help="Take capitals for small letters.")] = False,
    nfkc: Annotated[Flag, Parameter(help="Take half-width and full-width forms for the usual ones.")] = False,
    min_frequency: Annotated[int | None, Parameter(help="How often a pair must occur to be merged (2).")] = None,
    character_coverage: Annotated[
        float | None, Parameter(help="How much of the texts the alphabet covers (0.9995); bpe has no such number.")
    ] = None,
    special_token: Annotated[
        list[str] | None, Parameter(negative="", help="A further special token; may be repeated.")
    ] = None,
    text_column: TextColumn = None,
    input_format: InputFormat = None,
    encoding_errors: EncodingErrors = "strict",
    quiet: Quiet = False,
) -> None:
    """Train a tokenizer on FILES, and write it as a folder that tsumugu and other libraries load.

    The same files in the same order give the same tokenizer, byte for byte.
    """
    from tsumugu.cli.console import stdout
    from tsumugu.text.saving import check_target, save_whole
    from tsumugu.text.training import train_tokenizer

    check_target(output, force=force)
    with progress(quiet=quiet) as display:
        bar = display.add_task("reading", total=None)

        def tell(phase: str, count: int) -> None:
            if phase == "reading":
                display.update(bar, completed=count)
            else:
                display.update(bar, description="training", total=None)

        tokenizer = train_tokenizer(
            _texts(files, text_column, input_format, encoding_errors),
            family=family,
            kind=kind,
            vocab_size=vocab_size,
            language=language,
            segment=segment,
            dictionary=dictionary,
            lowercase=lowercase,
            nfkc=nfkc,
            min_frequency=min_frequency,
            character_coverage=character_coverage,
            special_tokens=special_token or (),
            progress=tell,
        )
        save_whole(tokenizer, output, force=force)
    if not quiet:
        stdout().print(f"{output}: {len(tokenizer)} tokens", markup=False)


@app.command
def report(
    tokenizer: str,
    files: Files,
    /,
    *,
    as_json: AsJson = False,
    longest: Annotated[int, Parameter(help="How many of the longest tokens to list.")] = 10,
    dictionary: Dictionary = "unidic-lite",
    text_column: TextColumn = None,
    input_format: InputFormat = None,
    encoding_errors: EncodingErrors = "strict",
    quiet: Quiet = False,
) -> None:
    """Measure a tokenizer on FILES: characters and bytes per token, tokens per word, what is unknown, by script.

    Parameters
    ----------
    tokenizer
        A folder, a file, or a model's name.
    """
    from tsumugu.checkpoints.load import load_tokenizer
    from tsumugu.core.errors import MissingExtraError
    from tsumugu.text.japanese import MecabWords
    from tsumugu.text.measure import measure

    loaded = load_tokenizer(tokenizer)
    try:
        mecab = MecabWords(dictionary)
    except MissingExtraError:
        mecab = None
    with progress(quiet=quiet) as display:
        texts = _texts(files, text_column, input_format, encoding_errors)
        found = measure(loaded, display.track(texts, description="reading"), mecab=mecab, longest=longest)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
        return
    _print_report(found, mecab=mecab is not None)


@app.command
def show(tokenizer: str, text: Annotated[str, DASH], /, *, as_json: AsJson = False) -> None:
    """Show how a tokenizer cuts TEXT: every token with its id, and where it lies in the text.

    Parameters
    ----------
    tokenizer
        A folder, a file, or a model's name.
    text
        A text; - reads standard input.
    """
    import sys

    from tsumugu.checkpoints.load import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    if text == "-":
        text = sys.stdin.read()
    encoded = loaded(text)
    if as_json:
        for row in _pieces(encoded, text):
            print(json.dumps(row, ensure_ascii=False))
        return
    _print_pieces(encoded, text)


def _texts(
    files: list[Path], column: str | None, format: str | None, errors: Literal["strict", "replace"]
) -> Iterator[str]:
    """The texts of all files; every file is checked before the first is read."""
    if not files:
        raise InputError("no file is given", where="files", mend="name one, or - for standard input")
    opened = [read_rows(path, format=format, encoding_errors=errors) for path in files]
    return (one_text(row, column) for rows in opened for row in rows)


def _pieces(encoded: Encoding, text: str) -> list[dict[str, Any]]:
    row = encoded.encodings[0]
    return [
        {"id": index, "token": token, "start": start, "end": end, "text": text[start:end], "special": bool(special)}
        for index, token, (start, end), special in zip(
            row.ids, row.tokens, row.offsets, row.special_tokens_mask, strict=True
        )
    ]


def _print_pieces(encoded: Encoding, text: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from tsumugu.cli.cache_text import printable
    from tsumugu.cli.console import stdout

    line, at, number = Text(), 0, 0
    table = _table("", "id", "token", "start", "end", "text")
    for piece in _pieces(encoded, text):
        start, end = piece["start"], piece["end"]
        colour = "dim" if piece["special"] else _COLOURS[number % len(_COLOURS)]
        if end > at:
            line.append(text[max(at, 0) : max(start, at)])
            line.append(printable(text[max(start, at) : end]), style=colour)
            at = end
        number += not piece["special"]
        cells = (printable(piece["token"]), str(start), str(end), printable(piece["text"]))
        table.add_row(str(piece["id"]), Text(cells[0], style=colour), *(Text(each) for each in cells[1:]))
    assert isinstance(table, Table)
    if stdout().is_terminal:
        line.append(text[at:])
        stdout().print(line)
    stdout().print(table)


def _print_report(found: Report, *, mecab: bool) -> None:
    from rich.text import Text

    from tsumugu.cli.cache_text import printable
    from tsumugu.cli.console import stdout

    table = _table(
        f"{found.texts} texts", "", "chars", "tokens", "chars/token", "bytes/token", "tokens/word", "unknown"
    )
    for name, each in (("all", found.total), *found.languages.items()):
        table.add_row(
            name, *_cells(each), _percent(each.unknown_characters / each.characters if each.characters else 0)
        )
    stdout().print(table)
    table = _table("By script", "", "chars", "tokens", "chars/token", "bytes/token")
    for name, each in found.scripts.items():
        table.add_row(name, *_cells(each)[:-1])
    stdout().print(table)
    stdout().print(
        f"vocabulary: {found.used} of {found.vocabulary} tokens used ({_percent(found.used / found.vocabulary)});"
        f" pieces of one character: {_percent(found.bytes_rate)} of the tokens"
    )
    if "ja" in found.languages and not mecab:
        stdout().print("tokens per Japanese word need MeCab: pip install 'tsumugu[ja]'", markup=False)
    table = _table("Longest tokens", "token", "chars", "times")
    for token, count in found.longest:
        table.add_row(Text(printable(token).replace(" ", "␣")), str(len(token)), str(count))
    stdout().print(table)


def _cells(each: Measure) -> list[str]:
    ratios = (
        each.characters / each.tokens if each.tokens else None,
        each.bytes / each.tokens if each.tokens else None,
        each.tokens / each.words if each.words else None,
    )
    return [str(each.characters), f"{each.tokens:.0f}", *("" if ratio is None else f"{ratio:.3f}" for ratio in ratios)]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "token", "text") else "right", overflow="fold")
    return table
