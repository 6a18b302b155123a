"""Read labelled data: a file, a folder of splits, or a data set of the hub, in any of the formats people have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.data.formats import COMPRESSIONS, FORMATS, file_format
from tsumugu.data.hub_datasets import DATASET, open_dataset, splits_of
from tsumugu.data.labelled.checks import Reader
from tsumugu.data.labelled.columns import find_columns, guess_kind
from tsumugu.data.labelled.examples import Example, Examples, Problem, find_kind, labels_of
from tsumugu.data.labelled.labels import LabelSet
from tsumugu.data.labelled.layouts import Layout, find_layout, spacy_pairs
from tsumugu.data.labelled.plain import conll_rows, fasttext_rows, glue_rows, is_fasttext, is_glue
from tsumugu.data.readers import OnError, read_rows
from tsumugu.data.rows import Row
from tsumugu.data.sources import find_source, opened, pieces

OnProblem = Literal["raise", "skip"]
CONLL = ("conll", "bio", "iob", "iob2", "conllu")
NESTED = ("squad", "label-studio", "doccano", "spacy", "prodigy", "jglue")
"""Names that people give to formats that are found by what stands in the file."""

SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
SPLITS |= {"test": "test", "eval": "test"}


def load_examples(
    source: str | Path,
    kind: str | None = None,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
    on_problem: OnProblem = "raise",
    keep: Sequence[str] = (),
    max_characters: int = 1_000_000,
    joiner: str | None = None,
    scheme: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Examples:
    """Labelled examples from a file, each row checked.

    Read are JSON Lines, JSON, CSV, TSV and Parquet (also packed), CoNLL and BIO files, SQuAD 1.1 and 2.0, JGLUE, GLUE,
    fastText, the exports of Doccano, Label Studio, Prodigy and spaCy (JSON), and ``hf:NAME[:SPLIT]`` where the
    `datasets` library is there.

    Args:
        source: the file, or the name of a data set.
        kind: what the data is for: text-classification, pair-classification (nli), similarity (sts),
            token-classification (ner), question-answering, multiple-choice or text-to-text (summarization,
            translation). Guessed from the first row when left out.
        format: overrules the suffix: jsonl, csv, conll, glue, ….
        columns: part to column, such as ``{"text": "review", "label": "stars"}``; found by usual names when left out.
            A dot leads into an object, or into each object of a list, which makes an example of its own: a row with
            opinions gives pairs with ``{"text2": "opinions.target", "label": "opinions.polarity"}``. In CoNLL files
            ``{"tokens": "0", "tags": "-1"}`` are fields by number.
        labels: the labels that may occur, in order: those of training. Inferred from the data when left out.
        on_problem: "skip" passes over rows that cannot be used and tells of them in `problems`.
        keep: columns to keep as `extra`.
        max_characters: longer texts are refused.
        joiner: what stands between tokens; a space when left out, but nothing between Japanese or Chinese ones.
        scheme: IOB1, IOB2, IOE1, IOE2, IOBES or BILOU, read strictly; tags of any are read leniently when left out.
        progress: called with how many rows were read.

    Raises:
        InputError: the data cannot be read, or a row cannot be used; the file, the row and the column are named.
    """
    problems: list[Problem] = []
    note: OnError | None = None if on_problem == "raise" else lambda error: problems.append(Problem.of(error))
    if on_problem not in ("raise", "skip"):
        raise InputError(f"unknown {on_problem!r}", where="on_problem", mend="known: raise, skip")
    rows, names, wanted = _open(str(source), format, columns, note)
    rows = _apart(rows, wanted)
    first = next(rows, None)
    if first is None:
        if problems:
            raise InputError(f"no row can be used; the first: {problems[0]}", where=str(source))
        raise InputError("there are no rows", where=str(source))
    chosen = find_kind(kind) if kind is not None else guess_kind(first, wanted)
    found = find_columns(chosen, first, wanted)
    reader = Reader(
        kind=chosen,
        columns=found,
        keep=tuple(keep),
        max_characters=max_characters,
        joiner=joiner,
        names=next((names[each] for each in found.values() if each in names), None),
        scheme=scheme,
    )
    examples = tuple(_checked(chain([first], rows), reader, labels, note, progress))
    seen = labels_of(chosen, examples)
    if seen is None:
        frozen = None
    elif labels is not None:
        frozen = LabelSet(tuple(labels))
    else:
        frozen = LabelSet.infer(seen)
        if reader.names is not None and set(frozen) <= set(reader.names):
            frozen = LabelSet(tuple(reader.names))
    if not examples:
        raise InputError(f"no row can be used; the first: {problems[0]}", where=str(source))
    return Examples(chosen, examples, frozen, tuple(problems), str(source))


def load_splits(
    source: str | Path | Mapping[str, str | Path],
    kind: str | None = None,
    *,
    labels: Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Examples]:
    """The splits of a data set, by name. All have the labels of the first: one that training never sees is an error.

    Args:
        source: a folder with files such as train.jsonl, valid-v1.3.json or dev.tsv, a mapping from split to file, or
            ``hf:NAME``.
        kind, labels, options: as `load_examples` takes them.

    Raises:
        InputError: there are no splits, or as `load_examples` does.
    """
    files = find_splits(source)
    found: dict[str, Examples] = {}
    for split, paths in files.items():
        parts = []
        for path in paths:
            part = load_examples(path, kind, labels=labels, **options)
            kind = part.kind
            parts.append(part)
        labels = _frozen(parts) if labels is None else labels
        rows = tuple(chain.from_iterable(part.rows for part in parts))
        problems = tuple(chain.from_iterable(part.problems for part in parts))
        frozen = None if labels is None else LabelSet(tuple(labels))
        found[split] = replace(parts[0], rows=rows, problems=problems, labels=frozen)
    return found


def find_splits(source: str | Path | Mapping[str, str | Path]) -> dict[str, list[str | Path]]:
    """The files of each split, training first.

    Raises:
        InputError: there are none.
    """
    if isinstance(source, Mapping):
        return {split: [path] for split, path in source.items()}
    if str(source).startswith(DATASET):
        return {split: [f"{source}:{split}"] for split in splits_of(str(source))}
    folder = Path(source)
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(source), mend="name a folder, or load one file")
    found: dict[str, list[str | Path]] = {}
    for path in sorted(folder.iterdir()):
        split = _split_name(path)
        if split is not None and path.is_file():
            found.setdefault(split, []).append(path)
    if not found:
        raise InputError(
            "no file is named after a split", where=str(source), mend="name them train.jsonl, test.jsonl, …"
        )
    order = ("train", "validation", "test")
    return {split: found[split] for split in sorted(found, key=lambda each: (_rank(each, order), each))}


def _rank(split: str, order: Sequence[str]) -> int:
    return next((at for at, each in enumerate(order) if split.startswith(each)), len(order))


def _split_name(path: Path) -> str | None:
    """``train``, ``validation_matched``: what a file's name says, numbers of shards and versions left out."""
    suffixes = [each[1:].lower() for each in path.suffixes if each[1:].lower() not in COMPRESSIONS]
    if not suffixes or suffixes[-1] not in (*FORMATS, *CONLL, "ndjson", "pq"):
        return None
    stem = path.name.lower()
    for each in path.suffixes:
        if each[1:].lower() in (*FORMATS, *CONLL, *COMPRESSIONS, "ndjson", "pq"):
            stem = stem.removesuffix(each.lower()) if stem.endswith(each.lower()) else stem.replace(each.lower(), "", 1)
    head = re.match(r"(?:.*[-_.])?(train|validation|valid|val|dev|test|eval)(?![a-z])(.*)", stem)
    if head is None:
        return None
    rest = re.sub(r"[-_.]?(v?\d[\d.]*|of|shuf)(?=[-_.]|$)", "", head[2]).strip("-_.")
    return "_".join(each for each in (SPLITS[head[1]], rest) if each)


def _open(
    source: str, format: str | None, columns: Mapping[str, str] | None, note: OnError | None
) -> tuple[Iterator[Row], dict[str, Sequence[str]], Mapping[str, str] | None]:
    """The flat rows, the names behind numbers of class labels by column, and the mapping of columns that is left."""
    if source.startswith(DATASET):
        opened_set = open_dataset(source)
        return iter(opened_set), dict(opened_set.class_names), columns
    form = (format or "").lower().replace("_", "-")
    suffix = next((each for each in reversed(Path(source).suffixes) if each[1:].lower() not in COMPRESSIONS), "")[1:]
    if suffix == "spacy" or suffix in ("pkl", "pickle"):
        mend = (
            "export JSON: doc.to_json(), or Label Studio's, or Doccano's" if suffix == "spacy" else "export JSON Lines"
        )
        raise InputError(f"a .{suffix} file is not read", where=source, mend=mend)
    if form in CONLL or (not form and suffix.lower() in CONLL):
        token, tag = (_field(columns, part, usual) for part, usual in (("tokens", 0), ("tags", -1)))
        found = find_source(source, "txt", "surrogateescape")
        return conll_rows(found, token=token, tag=tag, on_error=note), {}, None
    if form == "glue" or (not form and suffix.lower() == "tsv" and is_glue(find_source(source, None, "replace"))):
        return glue_rows(find_source(source, "tsv", "surrogateescape"), on_error=note), {}, columns
    if form == "fasttext" or (
        not form and suffix.lower() == "txt" and is_fasttext(find_source(source, None, "replace"))
    ):
        return fasttext_rows(find_source(source, "txt", "surrogateescape"), on_error=note), {}, columns
    if form in NESTED:
        format = None
    elif form and form.split(".")[0] not in (*FORMATS, "ndjson", "pq"):
        raise InputError(
            f"unknown format {format!r}", mend=did_you_mean(form, [*FORMATS, *CONLL, *NESTED, "glue", "fasttext"])
        )
    if form == "txt" or (not form and suffix.lower() == "txt"):
        raise InputError("plain text has no labels", where=source, mend="for tokens with tags say that it is conll")
    if file_format(source, format).rows == "json" and (pairs := _pairs(source)) is not None:
        return spacy_pairs(pairs, source), {}, columns
    rows = read_rows(source, format=format, encoding_errors="surrogateescape", on_error=note)
    return _flat(rows, note), {}, columns


def _field(columns: Mapping[str, str] | None, part: str, usual: int) -> int:
    value = (columns or {}).get(part, str(usual))
    try:
        return int(value)
    except ValueError:
        raise InputError(
            f"{value!r} is no number of a field", where="columns", mend="0 is the first, -1 the last"
        ) from None


def _flat(rows: Iterator[Row], note: OnError | None) -> Iterator[Row]:
    """The rows, those that nest laid out flat."""
    layout: Layout | None = None
    for number, row in enumerate(rows):
        if number == 0:
            layout = find_layout(row)
        try:
            yield from [row] if layout is None else layout(row)
        except InputError as error:
            if note is None:
                raise
            note(error)


def _apart(rows: Iterator[Row], columns: Mapping[str, str] | None) -> Iterator[Row]:
    """Rows in which a mapping leads into a list of objects, taken apart: a row for each object."""
    heads = {column.partition(".")[0] for column in (columns or {}).values() if "." in column}
    for row in rows:
        head = next((each for each in heads if isinstance(row.values.get(each), list)), None)
        if head is None:
            yield row
            continue
        for number, item in enumerate(row.values[head], start=1):
            values = {**row.values, head: item}
            if "id" in values:
                values["id"] = f"{values['id']}-{number}"
            yield Row(row.number, values, row.source, row.unit)


def _pairs(source: str) -> list[tuple[str, Any]] | None:
    """What a JSON file of ``[["text", {…}], …]`` holds; None for every other."""
    found = find_source(source, "json")
    with opened(found) as stream:
        parts = pieces(found, stream)
        start = next(parts, "")
        if re.match(r"\s*\[\s*\[", start) is None:
            return None
        try:
            whole = json.loads(start + "".join(parts))
        except (ValueError, RecursionError) as error:
            raise InputError(f"broken JSON: {error}", where=source) from error
    if not all(isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) for each in whole):
        raise InputError('not pairs of a text and an object: [["text", {"entities": […]}], …]', where=source)
    return [(text, notes) for text, notes in whole]


def _checked(
    rows: Iterable[Row],
    reader: Reader,
    labels: Sequence[str] | None,
    note: OnError | None,
    progress: Callable[[int], None] | None,
) -> Iterator[Example]:
    seen: dict[str, str] = {}
    allowed = None if labels is None else LabelSet(tuple(labels))
    for row in rows:
        try:
            example = reader.example(row)
            if allowed is not None:
                _check_labels(example, allowed, reader, row)
            if "id" in reader.columns:
                before = seen.setdefault(example.id, row.where)
                if before != row.where:
                    raise reader.refuse(row, "id", f"{example.id!r} is also the id of {before}")
        except InputError as error:
            if note is None:
                raise
            note(error)
        else:
            yield example
        if progress is not None:
            progress(1)


def _check_labels(example: Example, allowed: LabelSet, reader: Reader, row: Row) -> None:
    for label in labels_of(reader.kind, [example]) or ():
        if label not in allowed.names:
            part = next(each for each in ("label", "spans", "tags") if each in reader.columns)
            said = f"the label {label!r} is unseen in training"
            raise reader.refuse(row, part, said, did_you_mean(label, allowed.names))


def _frozen(parts: Sequence[Examples]) -> Sequence[str] | None:
    """The labels of the parts of the first split together."""
    if len(parts) == 1 or parts[0].labels is None:
        return parts[0].labels
    return LabelSet.infer(chain.from_iterable(part.labels or () for part in parts))
