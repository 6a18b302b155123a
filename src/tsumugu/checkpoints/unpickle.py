"""Reading a pickle without running it.

A pickle is a program for a small stack machine, and two of its instructions call whatever they name. Here the program
is read instruction by instruction (`pickletools` from the standard library splits them) and interpreted by hand: data
is built; a name is only ever a name; a call is handed to the reader of the format, which looks it up in a short table
of its own and never calls what the file names. Instructions that this needs are known; every other one is an error.

`torch.load(weights_only=True)` is not used: it calls real constructors with the file's arguments, other code may add
to what it allows, and it has been broken twice (CVE-2025-32434, CVE-2026-24747).

Source: Python's pickle protocol versions 0 to 5, Lib/pickletools.py.
"""

from __future__ import annotations

import pickletools
import struct
from dataclasses import dataclass
from typing import IO, Any, Protocol

OPERATIONS = 5_000_000
"""Instructions that are followed; a tensor takes about forty."""
LARGEST_INDEX = 1 << 32

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    }
)


class PickleError(Exception):
    """The pickle is damaged, or wants something that is not given to it."""


@dataclass(frozen=True)
class Name:
    """Something that a pickle names, module and attribute; it is not looked up anywhere."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Meaning(Protocol):
    """What a format's reader makes of the three instructions that leave the machine. Each raises PickleError."""

    def name(self, name: Name) -> Any:
        """A value for a name, which is allowed at all only if it is known."""

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """A value for a call of what `name` gave."""

    def persistent(self, id: Any) -> Any:
        """A value that lies outside the pickle."""


class _Mark:
    """Where a run of items on the stack begins."""


MARK = _Mark()


def read_pickle(stream: IO[bytes], meaning: Meaning) -> Any:
    """The value that the pickle at the stream's position builds; the stream is left behind its end.

    Raises:
        PickleError: for every fault of the pickle.
    """
    try:
        return _Machine(meaning).run(stream)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error, MemoryError) as error:
        raise PickleError(f"the pickle is damaged ({error})") from error


class _Machine:
    def __init__(self, meaning: Meaning) -> None:
        self.meaning = meaning
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes]) -> Any:
        for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
            if count > OPERATIONS:
                raise PickleError(f"the pickle has more than {OPERATIONS} instructions")
            self.step(code.name, argument)
        (result,) = self.stack
        return result

    def step(self, code: str, argument: Any) -> None:
        """Follow one instruction."""
        stack, push, pop = self.stack, self.stack.append, self.stack.pop
        if code in LITERALS:
            push(argument)
        elif code in CONSTANTS:
            push(CONSTANTS[code])
        elif code in ("PROTO", "FRAME", "STOP"):
            pass
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.remember(argument, stack[-1])
        elif code == "MEMOIZE":
            self.remember(len(self.memo), stack[-1])
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif code == "MARK":
            push(MARK)
        elif code == "EMPTY_TUPLE":
            push(())
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            items = tuple(pop() for _ in range(count))
            push(items[::-1])
        elif code == "TUPLE":
            push(tuple(self.items()))
        elif code == "EMPTY_LIST":
            push([])
        elif code == "LIST":
            push(self.items())
        elif code in ("APPEND", "APPENDS"):
            added = [pop()] if code == "APPEND" else self.items()
            _expect(list, stack[-1]).extend(added)
        elif code == "EMPTY_DICT":
            push({})
        elif code == "DICT":
            pairs = self.items()
            push({})
            self.set(pairs)
        elif code in ("SETITEM", "SETITEMS"):
            self.set([pop(), pop()][::-1] if code == "SETITEM" else self.items())
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            name, module = (pop(), pop()) if code == "STACK_GLOBAL" else argument.split(" ", 1)[::-1]
            push(self.meaning.name(Name(_expect(str, module), _expect(str, name))))
        elif code == "REDUCE":
            arguments = _expect(tuple, pop())
            push(self.meaning.call(pop(), arguments))
        elif code == "BINPERSID":
            push(self.meaning.persistent(pop()))
        elif code == "BUILD":
            # The one object with a state in a state dict is the dict itself: the versions of its modules. Not needed.
            pop()
            _expect(dict, stack[-1])
        else:
            raise PickleError(f"the pickle uses the instruction {code}, which no state dict needs")

    def remember(self, index: int, value: Any) -> None:
        if not 0 <= index < LARGEST_INDEX:
            raise PickleError(f"the pickle numbers a value {index}")
        self.memo[index] = value

    def items(self) -> list[Any]:
        """What lies above the last mark, taken off the stack."""
        position = len(self.stack) - 1
        while self.stack[position] is not MARK:
            position -= 1
        found = self.stack[position + 1 :]
        del self.stack[position:]
        return found

    def set(self, items: list[Any]) -> None:
        target = _expect(dict, self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[check_key(key)] = value


def check_key(key: Any) -> Any:
    """A key of a dictionary, if it is of a kind whose hashing cannot be made to recurse or to collide."""
    if isinstance(key, str | bytes | None) or (isinstance(key, int) and abs(key) < LARGEST_INDEX):
        return key
    raise PickleError(f"the pickle has a dictionary key of type {type(key).__name__}")


def _expect(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise PickleError(f"the pickle has {type(value).__name__} where {kind.__name__} belongs")
    return value
