"""Folders that hold an adapter and name the model that it belongs to, in PEFT's layout. No torch is loaded here.

Source: the PEFT library's documentation, "PEFT checkpoint format".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsumugu.checkpoints.entries import TensorEntry
from tsumugu.checkpoints.load import WEIGHTS, read_config
from tsumugu.checkpoints.pytorch import read_pytorch
from tsumugu.checkpoints.safetensors import parse_json, read_safetensors
from tsumugu.checkpoints.source import SourceFile
from tsumugu.core.errors import CheckpointError

ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
CONFIG_LIMIT = 1 << 26


@dataclass(frozen=True)
class AdapterFolder:
    """An opened adapter; no tensor is read yet.

    Attributes:
        path: its folder.
        config: the content of adapter_config.json.
        tensors: by PEFT's names.
        model_config: the content of config.json, where there is one beside it: it knows the labels.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    model_config: Mapping[str, Any] | None


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter, and not a model."""
    return (path / ADAPTER_CONFIG).is_file() and not any((path / name).is_file() for name in WEIGHTS)


def open_adapter(path: Path) -> AdapterFolder:
    """Open an adapter's folder.

    Raises:
        CheckpointError: it holds none, or its files are broken.
    """
    config = read_adapter_config(path)
    if (path / ADAPTER_WEIGHTS).is_file():
        tensors, _ = read_safetensors(path / ADAPTER_WEIGHTS)
    elif (path / ADAPTER_PICKLE).is_file():
        tensors, _ = read_pytorch(path / ADAPTER_PICKLE)
    else:
        raise CheckpointError(f"holds no {ADAPTER_WEIGHTS}", where=str(path))
    return AdapterFolder(path, config, tensors, read_config(path))


def read_adapter_config(path: Path) -> dict[str, Any]:
    """The content of an adapter's adapter_config.json.

    Raises:
        CheckpointError: there is none, or it is no JSON object.
    """
    file = path / ADAPTER_CONFIG
    if not file.is_file():
        raise CheckpointError("holds no adapter", where=str(path), mend=f"looked for {ADAPTER_CONFIG}")
    source = SourceFile(file)
    if source.size > CONFIG_LIMIT:
        raise CheckpointError("is too large for a configuration", where=str(file))
    return parse_json(source.read(0, source.size), file)


def base_of(path: Path) -> str:
    """What the adapter in `path` says its model is, as `resolve` takes it; a path may be relative to the adapter's.

    Raises:
        CheckpointError: it says nothing.
    """
    base = read_adapter_config(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise CheckpointError(
            "does not say which model the adapter is for",
            where=str(path / ADAPTER_CONFIG),
            mend="name the model, and the adapter beside it",
        )
    beside = path / base
    return str(beside) if base.startswith(".") and beside.exists() else base
