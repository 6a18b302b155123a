"""A model without its weights, from whatever says what it is: a published name, a configuration, a recipe.

Nothing is read but configurations, so that a model of any size is there at once, on the meta device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from tsumugu.checkpoints.load import open_checkpoint
from tsumugu.core.config import Config
from tsumugu.core.errors import ConfigError, UnknownNameError
from tsumugu.core.registry import FAMILIES
from tsumugu.engines.torch import find_family
from tsumugu.hub.names import SHORT_NAMES
from tsumugu.hub.resolve import resolve
from tsumugu.models.base import Family, Model
from tsumugu.models.presets import find_preset

TRAINED = ("causal-lm", "seq2seq-lm", "masked-lm")
"""The heads that a model is pre-trained with; the first that a family has."""


def outline(source: str | Path, *, head: str | None = None) -> Model:
    """The network that `source` describes, on the meta device, with the head that it is pre-trained with.

    Args:
        source: a published model (`gpt3-175b`, `llama2-7b`), a recipe (.yaml), a config.json, a folder with one, a GGUF
            file, or a name that `load_model` takes.
        head: another head, or the task that needs one.

    Raises:
        UnknownNameError: no published model is called so; it names the nearest.
        ConfigError: the file does not say what a model is.
    """
    family, config = _described(source)
    if head is None:
        head = next((each for each in TRAINED if each in family.heads), family.heads[0])
    with torch.device("meta"):
        return family.build(config, family.head(head))


def from_section(section: Any, *, where: str) -> tuple[Family, Config]:
    """The `model` section of a recipe: `family` with `preset` or `config` or both, what `config` says counting more."""
    if not isinstance(section, Mapping) or not isinstance(section.get("family"), str):
        raise ConfigError("the model section names no family", where=where, mend="give model: {family: …}")
    family: Family = FAMILIES[section["family"]]
    values = section.get("config") or {}
    if not isinstance(values, Mapping):
        raise ConfigError("expected keys and values", where=f"{where} model.config")
    if section.get("preset") is not None:
        preset = find_preset(str(section["preset"]), family=family.name)[1]
        values = {**{key: each for key, each in preset.to_dict().items() if each is not None}, **values}
    return family, family.config_class.from_dict(values, where=f"{where} model.config")


def _described(source: str | Path) -> tuple[Family, Config]:
    path = Path(source).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _recipe(path)
    if not path.exists():
        name = str(source)
        if name not in SHORT_NAMES and not any(mark in name for mark in "/:@\\"):
            kind, config = find_preset(name)
            return FAMILIES[kind], config
        path = resolve(name).path
    if path.is_dir() and (path / "config.json").is_file():
        path /= "config.json"
    if path.suffix == ".json":
        data = _json(path)
        family: Family = find_family(data, where=str(path))
        return family, family.from_hub(data)
    checkpoint = open_checkpoint(path)
    if checkpoint.format != "gguf":
        raise ConfigError("there is no config.json that says what the model is", where=str(path))
    architecture = str(checkpoint.metadata.get("general.architecture"))
    for each in (FAMILIES[name] for name in FAMILIES):
        if each.gguf is not None and each.gguf.architecture == architecture:
            return each, each.gguf.config(checkpoint.metadata, checkpoint.tensors)
    raise UnknownNameError(f"no family loads the GGUF architecture {architecture!r}", where=str(path))


def _recipe(path: Path) -> tuple[Family, Config]:
    try:
        recipe = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid YAML ({error})", where=str(path)) from None
    if not isinstance(recipe, Mapping):
        raise ConfigError("expected keys and values", where=str(path))
    return from_section(recipe.get("model"), where=str(path))


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid JSON ({error})", where=str(path)) from None
    if not isinstance(data, dict):
        raise ConfigError("expected an object of keys and values", where=str(path))
    return data
