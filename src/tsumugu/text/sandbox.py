"""The Jinja sandbox that chat templates run in, with a budget for what they may compute.

Jinja's own sandbox keeps a template away from Python's attributes and from changing its input. It does not stop
a loop in a loop, or a text that doubles itself. Here every turn of a loop, every value that a literal, an
operator, a filter or a call makes, and everything written is charged to the budget of the run.
"""

from __future__ import annotations

import contextvars
import datetime
import functools
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 1 << 20
MAX_CHARGE = 1 << 26
MAX_SECONDS = 5.0
_MAX_BITS = 1 << 16
_WIDE = re.compile(r"\d{6,}|%[^a-zA-Z%]*\*")
_running: contextvars.ContextVar[Budget | None] = contextvars.ContextVar("budget", default=None)


class TooMuch(Exception):
    """A template has used up its budget."""


class Refusal(TemplateError):
    """The template itself rejects the conversation, through ``raise_exception``."""


class Budget:
    """What one run may cost: characters and list items made, turns of loops, and seconds."""

    def __init__(self) -> None:
        self._left, self._deadline = MAX_CHARGE, time.monotonic() + MAX_SECONDS
        mark = secrets.token_hex(16)
        self.marks = (f"\0<{mark}>", f"\0</{mark}>")

    def __enter__(self) -> Budget:
        self._token = _running.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _running.reset(self._token)

    def charge(self, cost: int) -> None:
        """Raise `TooMuch` when the budget is used up."""
        self._left -= cost + 1
        if self._left < 0:
            raise TooMuch("it makes more text than any conversation needs")
        if time.monotonic() > self._deadline:
            raise TooMuch(f"it ran for more than {MAX_SECONDS:g} seconds")


def charge(cost: int) -> None:
    """Charge the run that is under way. Outside of one (constants are folded while compiling) costs must be small."""
    budget = _running.get()
    if budget is not None:
        budget.charge(cost)
    elif cost > MAX_SOURCE:
        raise TooMuch("it makes more text than any conversation needs")


def _size(value: Any) -> int:
    """Characters or items of a value, without looking into the items."""
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | set) else 0


def _charge_deep(*values: Any, characters: bool) -> None:
    """Charge for every value inside of lists and dicts, as often as it occurs; with or without the length of texts.

    Lists may share their parts: [x, x] of [x, x] of … is small in memory and endless when written.
    """
    stack = list(values)
    while stack:
        value = stack.pop()
        charge(len(value) if characters and isinstance(value, str | bytes) else 0)
        if isinstance(value, dict):
            stack.extend((*value.keys(), *value.values()))
        elif isinstance(value, list | tuple | set):
            stack.extend(value)


def _charged(value: Any) -> Any:
    charge(_size(value))
    return value


def _written(value: Any) -> Any:
    _charge_deep(value, characters=True)
    return value


def _literal(value: Any) -> Any:
    _charge_deep(value, characters=False)
    return value


def _turn(cost: int) -> str:
    charge(cost)
    return ""


def _concatenate(*values: Any) -> str:
    _charge_deep(*values, characters=True)
    return "".join(map(str, values))


class _Charging(NodeTransformer):
    """Adds a charge to the body of every loop and macro, to every literal list, and to every concatenation."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        node.body.insert(0, _charge_for(node))
        return self.generic_visit(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        node.body.insert(0, _charge_for(node))
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("_concatenate", *node.nodes, line=node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call("_literal", node, line=node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("_literal", node, line=node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("_literal", node, line=node.lineno) if node.ctx == "load" else node


def _charge_for(node: nodes.Node) -> nodes.Node:
    written = sum(len(each.data) for each in node.find_all(nodes.TemplateData))
    return nodes.ExprStmt(_call("_turn", nodes.Const(written), line=node.lineno)).set_lineno(node.lineno)


def _call(name: str, *arguments: nodes.Expr, line: int) -> nodes.Call:
    function = nodes.ImportedName(f"{__name__}.{name}")
    call = nodes.Call(function, list(arguments), [], None, None)
    return call.set_lineno(line)  # type: ignore[return-value]


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` encloses what the assistant says."""

    tags = {"generation"}  # noqa: RUF012  (jinja's interface)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_enclose"), [], [], body).set_lineno(line)

    def _enclose(self, caller: Callable[[], str]) -> str:
        budget = _running.get()
        start, end = budget.marks if budget is not None else ("", "")
        return f"{start}{caller()}{end}"


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, set up as chat templates expect it."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_written
        )
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]
        self.globals.update(raise_exception=_refuse, strftime_now=_now)
        self.filters["tojson"] = _to_json
        self.filters = {name: _watched(name, each) for name, each in self.filters.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Charging().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            charge(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator in ("*", "**") and isinstance(right, int) and isinstance(left, int):
            growth = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * abs(right)
            if growth > _MAX_BITS:
                raise TooMuch("it computes a number of absurd size")
        elif operator == "*":
            times, sized = (left, right) if isinstance(left, int) else (right, left)
            charge(_size(sized) * times if isinstance(times, int) and times > 0 else 0)
        return _charged(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_growth(__obj.__name__, owner, args)
        return _charged(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        run = super().wrap_str_format(value)
        if run is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, args, kwargs)
            return run(*args, **kwargs)

        return checked


# Filters that take a list or dict without writing it out.
_READERS = frozenset(
    [
        "length",
        "count",
        "first",
        "last",
        "list",
        "sort",
        "select",
        "selectattr",
        "reject",
        "rejectattr",
        "map",
        "sum",
        "min",
        "max",
        "unique",
        "groupby",
        "batch",
        "slice",
        "items",
        "dictsort",
        "random",
        "reverse",
        "default",
        "d",
        "attr",
    ]
)


def _watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is charged for what it makes, and refused when its arguments would make it enormous."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        values = [each for each in args if not isinstance(each, Environment | Context | nodes.EvalContext)]
        if values and isinstance(values[0], str):
            _check_growth(name, values[0], (*values[1:], *kwargs.values()))
            if name == "format":
                _check_format(*values, kwargs)
        elif values and name not in _READERS:
            if not isinstance(values[0], str | Mapping) and isinstance(values[0], Iterable):
                at = len(args) - len(values)  # items that come lazily are made here, to be counted
                values[0] = list(values[0])
                args = (*args[:at], *values)
            glue = values[1] if name == "join" and len(values) > 1 else kwargs.get("d", "")
            charge(_size(glue) * _size(values[0]) if name == "join" else 0)
            _charge_deep(values[0], characters=True)
        return _charged(function(*args, **kwargs))

    return run


def _check_growth(name: str, text: str, args: Iterable[Any]) -> None:
    """Charge for what a method or filter of a text will make, before it makes it."""
    args = list(args)
    if any(isinstance(each, int) and abs(each) > MAX_SOURCE for each in args):
        raise TooMuch("it asks for a text of absurd width")
    if name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        charge(text.count(args[0]) * len(args[1]))
    elif name == "join" and args and isinstance(args[0], list | tuple):
        charge(sum(map(_size, args[0])) + len(text) * len(args[0]))
    elif name in ("expandtabs", "indent"):
        width = next((each for each in args if isinstance(each, int)), 8)
        charge((text.count("\t") + text.count("\n")) * abs(width))


def _check_format(text: str, *arguments: Any) -> None:
    _charge_deep(*arguments, characters=True)
    if _WIDE.search(text) or ("{" in text and any(map(_has_wide, arguments))):
        raise TooMuch("it asks for a text of absurd width")


def _has_wide(values: Any) -> bool:
    values = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else (values,)
    return any(isinstance(each, int) and abs(each) >= 100_000 for each in values)


def _refuse(message: str) -> None:
    raise Refusal(str(message))


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
