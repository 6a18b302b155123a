"""Frozen configuration dataclasses that check themselves and round-trip through JSON.

A configuration is a ``@dataclass(frozen=True, kw_only=True)`` that inherits from `Config`. Types are checked when it is
built; ranges are declared with `limits` beside the field; a `check` method holds what concerns several fields at once.
"""

from __future__ import annotations

import dataclasses
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
        kind: Any = type(self)
        hints = type_hints(kind)
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
        """The text of a JSON file that `from_json` reads back to an equal configuration."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str | None = None) -> Self:
        """Build from plain values. `where` names the file or call in error messages."""
        if where is not None:
            try:
                return cls.from_dict(data)
            except ConfigError as error:
                raise _relocated(error, cls, where, ": ") from None
        place = cls.__name__
        if not isinstance(data, Mapping):
            raise ConfigError(f"expected an object of keys and values, found {_shown(data)}", where=place)
        known = {each.name: each for each in dataclasses.fields(cls)}
        for key in data:
            if key not in known:
                raise ConfigError(f"unknown key {key!r}", where=place, mend=did_you_mean(str(key), known))
        missing = [
            name
            for name, each in known.items()
            if name not in data and each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"missing {', '.join(map(repr, missing))}", where=place)
        return cls(**data)

    @classmethod
    def from_json(cls, source: str | Path) -> Self:
        """Read a JSON file (a `Path`) or JSON text (a `str`)."""
        where = str(source) if isinstance(source, Path) else None
        try:
            data = json.loads(source.read_text("utf-8") if isinstance(source, Path) else source)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"not valid JSON ({error})", where=where or cls.__name__) from None
        return cls.from_dict(data, where=where)

    def _shallow(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    def _where(self, key: str) -> str:
        return f"{type(self).__name__}.{key}"


_HINTS: dict[type, dict[str, Any]] = {}


def type_hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a configuration class."""
    if cls not in _HINTS:
        _HINTS[cls] = get_type_hints(cls)
    return _HINTS[cls]


def _relocated(error: ConfigError, cls: type[Any], place: str, separator: str) -> ConfigError:
    """The error of `cls.key` as one of `place`, which holds that configuration."""
    key = (error.where or "").removeprefix(cls.__name__).removeprefix(".")
    return ConfigError(error.what, where=f"{place}{separator}{key}" if key else place, mend=error.mend)


def _shown(value: Any) -> str:
    """A value for an error message, of bounded length."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses to write out huge numbers and deep nests
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{type(value).__name__} {text[:60]}…"


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value


def _coerce(value: Any, hint: Any, *, where: str) -> Any:
    """`value` as the annotation `hint` asks, or a ConfigError. Ints become floats, lists tuples, dicts Configs."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if any(value == each and type(value) is type(each) for each in arguments):  # True is not 1 here
            return value
        legal = [str(each) for each in arguments]
        raise ConfigError(
            f"{_shown(value)} is not a legal value",
            where=where,
            mend=did_you_mean(value if isinstance(value, str) else "", legal),
        )
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments, where=where)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise ConfigError(f"expected a list, found {_shown(value)}", where=where)
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(value) != len(kinds):
            raise ConfigError(f"expected {len(kinds)} values, found {len(value)}", where=where)
        pairs = zip(value, kinds, strict=True)
        return tuple(_coerce(each, kind, where=f"{where}[{i}]") for i, (each, kind) in enumerate(pairs))
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"expected an object, found {_shown(value)}", where=where)
        key_kind, value_kind = arguments or (Any, Any)
        return {
            _coerce(key, key_kind, where=where): _coerce(each, value_kind, where=f"{where}[{key!r}]")
            for key, each in value.items()
        }
    if isinstance(hint, type) and issubclass(hint, Config):
        if isinstance(value, hint):
            return value
        try:
            return hint.from_dict(value)
        except ConfigError as error:
            raise _relocated(error, hint, where, ".") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{_shown(value)} is too large", where=where) from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"expected {hint.__name__}, found {_shown(value)}", where=where)
    return value


def _coerce_union(value: Any, arguments: tuple[Any, ...], *, where: str) -> Any:
    """`value` as the first of several types that takes it, one that takes it unchanged before all others."""
    if value is None and type(None) in arguments:
        return None
    taken, problems = [], []
    for each in (each for each in arguments if each is not type(None)):
        try:
            taken.append(_coerce(value, each, where=where))
        except ConfigError as error:
            problems.append(error)
    for each in taken:
        if type(each) is type(value):
            return each
    if taken:
        return taken[0]
    names = [each.__name__ for each in arguments if isinstance(each, type) and each is not type(None)]
    if len(problems) == len(names) > 1 and not isinstance(value, Mapping):
        raise ConfigError(f"expected {' or '.join(names)}, found {_shown(value)}", where=where)
    raise problems[0]


def _check_limits(value: Any, metadata: Mapping[str, Any], *, where: str) -> None:
    low, high = metadata.get("low"), metadata.get("high")
    if isinstance(value, tuple):
        for i, each in enumerate(value):
            _check_limits(each, metadata, where=f"{where}[{i}]")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if not isinstance(value, int) and not math.isfinite(value):
        raise ConfigError(f"{value} is not a finite number", where=where)  # nor is it JSON
    if low is not None and value < low:
        raise ConfigError(f"{_shown(value)} is too small", where=where, mend=f"at least {low}")
    if high is not None and value > high:
        raise ConfigError(f"{_shown(value)} is too large", where=where, mend=f"at most {high}")
