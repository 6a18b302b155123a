"""Labelled text files without a header: CoNLL's columns, GLUE's tab-separated files, and fastText's lines.

Source: Tjong Kim Sang and De Meulder 2003, section 2.1 (a token a line, a blank line behind a sentence); Wang et al.
2018, the files of GLUE, whose fields are never quoted; Joulin et al. 2017, the files of fastText.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

from tsumugu.core.errors import InputError
from tsumugu.data.readers import OnError
from tsumugu.data.rows import Row
from tsumugu.data.sources import Source, lines, opened

MARK = "__label__"
"""What a label begins with in fastText's files."""
_COLA = ("source", "label", "star", "sentence")
_HEADERS = (
    *(("sentence", "label"), ("Quality", "#1 ID"), ("index", "genre", "filename"), ("id", "qid1", "qid2")),
    *(("index", "promptID"), ("index", "question", "sentence"), ("index", "sentence1", "sentence2")),
)
_COMMENT = re.compile(r"# ?[\w.:/-]+\s*=|#\s*\t?id\b")


def conll_rows(source: Source, *, token: int = 0, tag: int = -1, on_error: OnError | None = None) -> Iterator[Row]:
    """The sentences of a CoNLL or BIO file, each with `tokens` and `tags`; the row is the line where it begins.

    Fields are divided by tabs where a line has any, else by spaces. ``-DOCSTART-`` and comments as ``# key = value``
    are left out.

    Args:
        source: checked, not yet open.
        token, tag: which fields, from 0, or from the end below 0.
        on_error: called with what is wrong with a sentence, which is passed over then; raised when left out.
    """
    tokens: list[str] = []
    tags: list[str] = []
    first = 0
    broken: InputError | None = None
    with opened(source) as stream:
        for number, line in enumerate(chain(lines(source, stream), [""]), start=1):
            text = line.rstrip("\r\n")
            fields = text.split("\t") if "\t" in text else text.split()
            if not text.strip() or fields[0] == "-DOCSTART-":
                if broken is not None:
                    if on_error is None:
                        raise broken
                    on_error(broken)
                elif tokens:
                    yield Row(first, {"tokens": tokens, "tags": tags}, source.name, "line")
                tokens, tags, broken = [], [], None
                continue
            if not tokens and _COMMENT.match(text):
                continue
            first = first if tokens else number
            need = max(each + 1 if each >= 0 else -each for each in (token, tag))
            if len(fields) < max(need, 2) and broken is None:
                said = f"{len(fields)} field{'s' * (len(fields) != 1)}, but a token and its tag are needed"
                broken = InputError(said, where=source.line(number), mend="divide them by a tab or a space")
            tokens.append(fields[token] if len(fields) >= need else "")
            tags.append(fields[tag] if len(fields) >= need else "")


def glue_rows(source: Source, *, on_error: OnError | None = None) -> Iterator[Row]:
    """The rows of a tab-separated file of GLUE: no field is quoted, and CoLA's has no header.

    Args:
        source: checked, not yet open.
        on_error: called with what is wrong with a row, which is passed over then; raised when left out.
    """
    header: list[str] = []
    with opened(source) as stream:
        for number, line in enumerate(lines(source, stream), start=1):
            fields = line.rstrip("\r\n").split("\t")
            if not header:
                header = list(_COLA) if _is_cola(fields) else [name.strip() for name in fields]
                if header != list(_COLA):
                    continue
            if len(fields) == len(header):
                yield Row(number, dict(zip(header, fields, strict=True)), source.name, "line")
                continue
            said = f"{len(fields)} fields, but the header has {len(header)}"
            error = InputError(said, where=source.line(number), mend="divide fields by one tab")
            if on_error is None:
                raise error
            on_error(error)


def fasttext_rows(source: Source, *, on_error: OnError | None = None) -> Iterator[Row]:
    """The rows of a file whose lines begin with their labels: ``__label__good a fine film``.

    Args:
        source: checked, not yet open.
        on_error: called with a line that has no label, which is passed over then; raised when left out.
    """
    with opened(source) as stream:
        for number, line in enumerate(lines(source, stream), start=1):
            found = re.match(rf"\s*((?:{MARK}\S+\s*)+)(.*)", line.rstrip("\r\n"))
            if found is not None:
                labels = [each.removeprefix(MARK) for each in found[1].split()]
                yield Row(number, {"text": found[2], "label": labels}, source.name, "line")
            elif line.strip():
                error = InputError(f"does not begin with {MARK}LABEL", where=source.line(number))
                if on_error is None:
                    raise error
                on_error(error)


def is_fasttext(source: Source) -> bool:
    """Whether the first line begins with a label as fastText writes it."""
    with opened(source) as stream:
        return next(lines(source, stream), "").startswith(MARK)


def is_glue(source: Source) -> bool:
    """Whether the first line of a tab-separated file is one of GLUE's."""
    with opened(source) as stream:
        fields = next(lines(source, stream), "").rstrip("\r\n").split("\t")
    return _is_cola(fields) or any(fields[: len(each)] == list(each) for each in _HEADERS)


def _is_cola(fields: list[str]) -> bool:
    return len(fields) == 4 and fields[1] in ("0", "1") and fields[2] in ("", "*")
