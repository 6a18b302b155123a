"""JSON objects from text: one from a line, or many from a file that is never held whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from tsumugu.core.errors import InputError
from tsumugu.data.sources import LONGEST_ROW, Source, pieces

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BLANK = re.compile(r"[ \t\r\n]*")
_MAY_GO_ON = 16  # an error this near to the end of what was read may be a word or an escape that was cut
_decode = json.JSONDecoder().raw_decode


def parse_object(text: str, source: Source, where: str) -> dict[str, Any]:
    """The JSON object that `text` is.

    Raises:
        InputError: it is broken, nested too deep, or not an object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"broken JSON: {error.msg} at column {error.pos + 1}", where=where) from error
    except (ValueError, RecursionError) as error:
        raise _unusable(error, where) from error
    return _checked(value, text, source, where)


def json_objects(source: Source, stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """The objects of an array, or objects that follow each other, one at a time.

    Raises:
        InputError: the JSON is broken (the line is named), ends too early, or holds something else than objects.
    """
    buffer = _Buffer(source, stream)
    mark = buffer.peek()
    if mark == "":
        raise InputError("there is nothing in it", where=source.name)
    in_array = mark == "["
    if in_array:
        buffer.skip()
    number = 0
    while True:
        mark = buffer.peek()
        if in_array and mark == "]" and number == 0:
            break
        if mark == "" and not in_array:
            return
        number += 1
        yield buffer.value(source.row(number))
        if in_array:
            mark = buffer.peek()
            if mark == "]":
                break
            if mark != ",":
                raise buffer.broken("the array is not closed" if mark == "" else "Expecting ',' delimiter")
            buffer.skip()
    buffer.skip()
    if buffer.peek() != "":
        raise buffer.broken("Extra data after the array")


class _Buffer:
    """A window on the text: grows while a value is cut, drops what was read."""

    def __init__(self, source: Source, stream: BinaryIO) -> None:
        self._source = source
        self._pieces = pieces(source, stream)
        self._text, self._at, self._line = "", 0, 1
        self._ended = False

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            match = _BLANK.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._grow(1)

    def skip(self) -> None:
        """Pass the character that `peek` gave."""
        self._at += 1

    def value(self, where: str) -> dict[str, Any]:
        """The object that starts here."""
        if self.peek() != "{":
            raise self.broken("an object {…} is expected")
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _MAY_GO_ON or error.msg.startswith("Unterminated string")
                if not cut or self._ended:
                    raise self.broken(error.msg, error.pos) from error
                have = len(self._text) - self._at
                if have >= LONGEST_ROW:
                    what = f"an object is longer than {LONGEST_ROW >> 20} MiB"
                    raise InputError(what, where=where, mend="split it, or use JSON Lines") from error
                self._grow(min(have, LONGEST_ROW - have))  # doubles: parsing again costs no more than twice
            except (ValueError, RecursionError) as error:
                raise _unusable(error, where) from error
            else:
                start, self._at = self._at, end
                return _checked(value, self._text, self._source, where, start, end)

    def broken(self, reason: str, at: int | None = None) -> InputError:
        """The error for what is found at `at`, or here."""
        line = self._line + self._text.count("\n", 0, self._at if at is None else at)
        return InputError(f"broken JSON: {reason}", where=self._source.line(line))

    def _grow(self, wanted: int) -> None:
        """Read at least `wanted` characters more, unless the text ends."""
        self._line += self._text.count("\n", 0, self._at)
        parts, have = [self._text[self._at :]], 0
        while have < wanted:
            piece = next(self._pieces, "")
            if not piece:
                self._ended = True
                break
            parts.append(piece)
            have += len(piece)
        self._text, self._at = "".join(parts), 0


def _checked(
    value: Any, text: str, source: Source, where: str, start: int = 0, end: int | None = None
) -> dict[str, Any]:
    """`value`, an object whose texts can be written as UTF-8."""
    if not isinstance(value, dict):
        raise InputError("not a JSON object", where=where, mend='write a row as {"text": "…"}')
    if _SURROGATE.search(text, start, len(text) if end is None else end):
        whole = json.dumps(value, ensure_ascii=False)
        try:
            whole.encode()
        except UnicodeEncodeError as error:
            if source.errors != "replace":
                raise InputError(
                    "a \\u escape is half of a surrogate pair", where=where, mend="pass --encoding-errors replace"
                ) from error
            clean: dict[str, Any] = json.loads(whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
            return clean
    return value


def _unusable(error: Exception, where: str) -> InputError:
    deep = isinstance(error, RecursionError)
    return InputError("the JSON is nested too deep" if deep else f"the JSON cannot be used: {error}", where=where)
