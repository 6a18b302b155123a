"""Opening a checkpoint, whatever its format; loading tensors and tokenizers by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tsumugu.core.errors import CheckpointError

if TYPE_CHECKING:
    from tsumugu.checkpoints.entries import Checkpoint

CONFIG_LIMIT = 1 << 26
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weights that a Hugging Face folder may hold, the preferred first."""
Format = Literal["safetensors", "pytorch", "gguf", "npz"]
SUFFIXES: dict[str, Format] = {
    ".safetensors": "safetensors",
    ".bin": "pytorch",
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".gguf": "gguf",
    ".npz": "npz",
}


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder with weights (and config.json), or one file of weights; no tensor is read yet.

    A folder may hold safetensors or PyTorch weights, whole or sharded, or a single GGUF, safetensors or .npz file.

    Raises:
        CheckpointError: nothing to open, several candidates, or a file that is broken or lies about itself.
    """
    from tsumugu.checkpoints.entries import Checkpoint

    path = Path(path)
    weights = find_weights(path)
    format = format_of_file(weights)
    tensors, metadata = _read(weights, format)
    alone = path.is_file() and format == "gguf"  # its metadata is its config; a neighbour may be another model's
    config = None if alone else read_config(weights.parent)
    return Checkpoint(path, format, tensors, config, metadata)


def find_weights(path: Path) -> Path:
    """The file of weights that `path` names, or that the folder `path` holds."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError("no such file or folder", where=str(path))
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    for suffix in (".safetensors", ".gguf", ".npz"):
        found = sorted(each for each in path.glob(f"*{suffix}") if each.is_file())
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(each.name for each in found[:5])
            raise CheckpointError(
                f"holds {len(found)} {suffix} files ({names})", where=str(path), mend="name one of them"
            )
    raise CheckpointError(
        "holds no weights", where=str(path), mend=f"looked for {', '.join(WEIGHTS)}, *.gguf and *.npz"
    )


def format_of_file(path: Path) -> Format:
    """The format that a file's name promises; the content is checked when it is read."""
    suffix = Path(path.name.removesuffix(".index.json")).suffix
    if suffix not in SUFFIXES:
        raise CheckpointError("is not a known kind of weights", where=str(path), mend=f"known: {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


def read_config(folder: Path) -> dict[str, Any] | None:
    """`config.json` of a folder, or None where there is none."""
    from tsumugu.checkpoints.safetensors import parse_json
    from tsumugu.checkpoints.source import SourceFile

    path = folder / "config.json"
    if not path.exists():
        return None
    file = SourceFile(path)
    if file.size > CONFIG_LIMIT:
        raise CheckpointError("is too large for a configuration", where=str(path))
    return parse_json(file.read(0, file.size), path)


def _read(weights: Path, format: Format) -> tuple[dict[str, Any], dict[str, Any]]:
    from tsumugu.checkpoints.gguf import read_gguf
    from tsumugu.checkpoints.safetensors import read_safetensors, read_sharded

    readers = {"safetensors": read_safetensors, "gguf": read_gguf}
    reader = readers[format]
    return read_sharded(weights, reader) if weights.name.endswith(".index.json") else reader(weights)
