"""Arguments of the usual pipeline that are about loading, in our words, so that calls written for it run unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsumugu.core.errors import InputError

WITHOUT_EFFECT = ("use_fast", "trust_remote_code", "num_workers", "use_auth_token", "token")
"""What changes nothing: there is one kind of tokenizer, no code of a checkpoint is ever run, no process reads ahead,
and the Hub's own library knows who is logged in."""

ONLY_NONE = ("config", "feature_extractor", "image_processor", "processor", "pipeline_class")
"""What a checkpoint's files say, or a task's name."""


BOOKKEEPING = ("transformers_version", "_from_model_config", "bos_token_id")
"""What a configuration of generation says beside how texts are written."""

WRITING: Mapping[str, str | None] = {"pad_token_id": None, "use_cache": None, "padding": None, "tokenizer": None}
"""What changes no text: how rows are padded, and whether what was read is kept."""


def loading(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with those of the usual pipeline that are about loading in our words.

    `torch_dtype` is `dtype`, a number or a `device_map` of one device is `device`, `model_kwargs` are options like the
    others, and `framework` may be "pt". Those that change nothing are left out.

    Raises:
        InputError: what is asked for cannot be had, or is said twice.
    """
    found = dict(options)
    for name, value in dict(found.pop("model_kwargs", None) or {}).items():
        if found.setdefault(name, value) is not value:
            raise InputError(f"{name} is said twice", where="model_kwargs")
    for name in WITHOUT_EFFECT:
        value = found.pop(name, None)
        if name.endswith("token") and isinstance(value, str):
            raise InputError("is not taken here", where=name, mend="set HF_TOKEN, or hf auth login")
    for name in ONLY_NONE:
        if found.pop(name, None) is not None:
            raise InputError("is not taken: the checkpoint's own files say it", where=name, mend="leave it out")
    if (framework := found.pop("framework", None)) not in (None, "pt"):
        raise InputError(f"{framework!r} does not compute here", where="framework", mend="leave it out, or say pt")
    _rename(found, "torch_dtype", "dtype")
    if found.get("dtype", "") is None:
        del found["dtype"]
    if "device_map" in found:
        found["device_map"] = _one_device(found["device_map"])
    _rename(found, "device_map", "device")
    device = found.get("device", "cpu")
    if device is None:
        del found["device"]
    elif isinstance(device, int):
        found["device"] = "cpu" if device < 0 else f"cuda:{device}"
    return found


def at_revision(source: Any, revision: str | None) -> Any:
    """A model of the Hub at a branch, a tag or a commit.

    Raises:
        InputError: the model is not one of the Hub's.
    """
    if revision in (None, "main") or source is None:
        return source
    if not isinstance(source, str) or "@" in source or Path(source).exists():
        raise InputError(f"{revision!r} is of no use for this model", where="revision", mend="leave it out")
    return f"{source}@{revision}"


def renamed(options: Mapping[str, Any], names: Mapping[str, str | None]) -> dict[str, Any]:
    """Options of a call by our names; those whose name here is None are left out.

    Raises:
        InputError: one is said twice.
    """
    found = dict(options)
    for theirs, ours in names.items():
        if ours is None:
            found.pop(theirs, None)
        else:
            _rename(found, theirs, ours)
    return found


def configured(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of generation, with what a `generation_config` says where the call says nothing.

    Raises:
        InputError: it is neither the usual object nor a mapping.
    """
    found = dict(options)
    config = found.pop("generation_config", None)
    if config is None:
        return found
    values = config.to_diff_dict() if callable(getattr(config, "to_diff_dict", None)) else config
    if not isinstance(values, Mapping):
        raise InputError(f"expected a configuration, found {type(config).__name__}", where="generation_config")
    known = {name: value for name, value in values.items() if value is not None and name not in BOOKKEEPING}
    return known | found


def hypothesis(template: str, label: str) -> str:
    """The sentence about a label.

    Raises:
        InputError: there is no place for it.
    """
    try:
        sentence = template.format(label)
    except (IndexError, KeyError, ValueError):
        sentence = template
    if sentence == template:
        said = f"{template!r} has no place for the label"
        raise InputError(said, where="hypothesis_template", mend="put {} where it goes")
    return sentence


def _rename(options: dict[str, Any], theirs: str, ours: str) -> None:
    if theirs not in options:
        return
    value = options.pop(theirs)
    if value is not None and options.setdefault(ours, value) is not value:
        raise InputError(f"{theirs} and {ours} are the same", where=theirs, mend=f"give {ours} alone")


def _one_device(given: Any) -> Any:
    """The device of a `device_map`: models are not spread over several."""
    places = set(given.values()) if isinstance(given, Mapping) else {given}
    if len(places) != 1 or "disk" in places:
        raise InputError("a model lies on one device", where="device_map", mend="name it with device=")
    (place,) = places
    if place in ("auto", "balanced", "balanced_low_0", "sequential"):
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return place
