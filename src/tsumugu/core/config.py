"""Frozen configuration dataclasses that check themselves and round-trip through JSON.

A configuration is a ``@dataclass(frozen=True, kw_only=True)`` that inherits from `Config`. Types are checked when it is
built; ranges are declared with `limits` beside the field; a `check` method holds what concerns several fields at once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from tsumugu.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


def limits(
    default: Any = dataclasses.MISSING, *, low: float | None = None, high: float | None = None, help: str = ""
) -> Any:
    """A dataclass field whose number must lie in [low, high]; `help` is its one-line explanation."""
    metadata = {"low": low, "high": high, "help": help}
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configurations.

    Raises:
        ConfigError: a value has the wrong type or lies outside its limits, or `from_dict` meets an unknown or missing
            key; the message names the key, and for an unknown one the nearest known.
    """

    def __post_init__(self) -> None:
        hints = type_hints(type(self))
        for each in dataclasses.fields(self):
            value = _coerce(getattr(self, each.name), hints[each.name], where=self._where(each.name))
            _check_limits(value, each.metadata, where=self._where(each.name))
            object.__setattr__(self, each.name, value)
        self.check()

    def check(self) -> None:
        """Conditions between fields; raise with `self.refuse`."""

    def refuse(self, key: str, what: str, *, mend: str | None = None) -> typing.NoReturn:
        """Raise a `ConfigError` about the field `key`."""
        raise ConfigError(what, where=self._where(key), mend=mend)

    def replace(self, **changes: Any) -> Self:
        """A copy with some values changed, checked again; unknown names are refused."""
        return type(self).from_dict({**self._shallow(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, nested configurations included."""
        return {key: _plain(value) for key, value in self._shallow().items()}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str | None = None) -> Self:
        """Build from plain values. `where` names the file or section in error messages."""
        place = where or cls.__name__
        if not isinstance(data, Mapping):
            raise ConfigError(f"expected an object of keys and values, found {type(data).__name__}", where=place)
        known = {each.name: each for each in dataclasses.fields(cls)}
        for key in data:
            if key not in known:
                raise ConfigError(f"unknown key {key!r}", where=place, mend=did_you_mean(str(key), known))
        missing = [
            name
            for name, each in known.items()
            if name not in data
            and each.default is dataclasses.MISSING
            and each.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"missing {', '.join(map(repr, missing))}", where=place)
        return cls(**data)

    @classmethod
    def from_json(cls, source: str | Path) -> Self:
        """Read a JSON file (a `Path`) or JSON text (a `str`)."""
        text, where = (source.read_text("utf-8"), str(source)) if isinstance(source, Path) else (source, None)
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"not valid JSON ({error})", where=where or cls.__name__) from None
        return cls.from_dict(data, where=where)

    def _shallow(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    def _where(self, key: str) -> str:
        return f"{type(self).__name__}.{key}"


@functools.cache
def type_hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a configuration class."""
    return get_type_hints(cls)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value


def _coerce(value: Any, hint: Any, *, where: str) -> Any:
    """`value` as the annotation `hint` asks, or a ConfigError. Ints become floats, lists tuples, dicts configurations."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in arguments:
            return value
        legal = [str(each) for each in arguments]
        raise ConfigError(f"{value!r} is not a legal value", where=where, mend=did_you_mean(str(value), legal))
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        problem: ConfigError | None = None
        for each in (each for each in arguments if each is not type(None)):
            try:
                return _coerce(value, each, where=where)
            except ConfigError as error:
                problem = problem or error
        assert problem is not None
        raise problem
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise ConfigError(f"expected a list, found {value!r}", where=where)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_coerce(each, arguments[0], where=f"{where}[{i}]") for i, each in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"expected {len(arguments)} values, found {len(value)}", where=where)
        return tuple(
            _coerce(each, kind, where=where) for each, kind in zip(value, arguments, strict=True)
        )
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"expected an object, found {value!r}", where=where)
        return dict(value)
    if isinstance(hint, type) and issubclass(hint, Config):
        return value if isinstance(value, hint) else hint.from_dict(value, where=where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) and hint is not bool:
        raise ConfigError(f"expected {hint.__name__}, found {value!r}", where=where)
    if not isinstance(value, hint):
        raise ConfigError(f"expected {hint.__name__}, found {value!r}", where=where)
    return value


def _check_limits(value: Any, metadata: Mapping[str, Any], *, where: str) -> None:
    low, high = metadata.get("low"), metadata.get("high")
    for each in value if isinstance(value, tuple) else (value,):
        if not isinstance(each, int | float) or isinstance(each, bool):
            continue
        if math.isnan(each):
            raise ConfigError("nan is not a number", where=where)
        if low is not None and each < low:
            raise ConfigError(f"{each} is too small", where=where, mend=f"at least {low}")
        if high is not None and each > high:
            raise ConfigError(f"{each} is too large", where=where, mend=f"at most {high}")
