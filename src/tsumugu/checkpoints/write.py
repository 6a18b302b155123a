"""Writing checkpoints: a folder in Hugging Face's layout, and single files.

Source: `model.safetensors.index.json` as huggingface_hub writes it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import torch

from tsumugu.checkpoints.atomic import new_file, said_clearly, sync, temporary
from tsumugu.checkpoints.entries import STORAGES
from tsumugu.checkpoints.gguf_write import write_gguf as write_gguf
from tsumugu.checkpoints.safetensors import shards_of, stays_inside
from tsumugu.core.errors import CheckpointError, InputError

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
MAX_SHARD_BYTES = 5_000_000_000


def write_safetensors_folder(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
    extra_files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write config.json, model.safetensors (or shards and their index) and other files into `folder`.

    A new folder appears whole. In an existing one all files are first written aside; then shards get names that the
    weights there do not use, other files are replaced, and one last rename makes the new weights the ones that are
    loaded. So whenever the process ends, either the old or the new weights are whole. Files that belong to neither
    stay.

    Args:
        max_shard_bytes: weights above this are split; a single tensor may be larger.
        metadata: safetensors' own; `{"format": "pt"}` by default, which the reference library asks for.
        extra_files: content by file name, such as tokenizer.json or 1_Pooling/config.json.

    Raises:
        InputError: a tensor of a type that safetensors lacks, or a file name that leaves the folder.
        CheckpointError: the folder cannot be written.
    """
    folder = Path(folder)
    files = _text_files(config, extra_files or {})
    _check_types(tensors)
    shards = _shards(tensors, max_shard_bytes)
    with said_clearly(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = not folder.exists() or not any(folder.iterdir())
        aside = temporary(folder if fresh else folder / "weights")
        try:
            aside.mkdir()
            names = _shard_names(folder, len(shards))
            for name, shard in zip(names, shards, strict=True):
                _save(aside / name, {key: tensors[key] for key in shard}, dict(metadata or {"format": "pt"}))
            if len(shards) > 1:
                listed = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
                size = sum(tensor.nbytes for tensor in tensors.values())
                files[INDEX] = _json({"metadata": {"total_size": size}, "weight_map": listed})
            for name, content in files.items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).write_bytes(content)
                sync(aside / name)
            sync(aside)
            if fresh:
                aside.replace(folder)
                sync(folder.parent)
            else:
                _move_in(aside, folder, names, list(files))
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def write_adapter_folder(
    folder: Path, weights: str, tensors: Mapping[str, torch.Tensor], files: Mapping[str, str | bytes]
) -> None:
    """Write one safetensors file called `weights`, and text files, into `folder`.

    A new folder appears whole. In an existing one each file is replaced when all are written, the weights last.

    Raises:
        InputError: a tensor of a type that safetensors lacks, or a file name that leaves the folder.
        CheckpointError: the folder cannot be written.
    """
    _check_types(tensors)
    if not all(map(stays_inside, files)):
        raise InputError("a file's name leaves the folder", where=str(folder))
    with said_clearly(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = not folder.exists() or not any(folder.iterdir())
        aside = temporary(folder if fresh else folder / "adapter")
        try:
            aside.mkdir()
            for name, content in files.items():
                (aside / name).write_bytes(content.encode() if isinstance(content, str) else content)
                sync(aside / name)
            _save(aside / weights, tensors, {"format": "pt"})
            sync(aside)
            if fresh:
                aside.replace(folder)
                sync(folder.parent)
            else:
                for name in (*files, weights):
                    (aside / name).replace(folder / name)
                sync(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _move_in(aside: Path, folder: Path, names: list[str], files: list[str]) -> None:
    """Move finished files into a folder that is in use; the last rename is the one that counts."""
    before = _weights_in(folder)
    last = INDEX if INDEX in files else SINGLE
    shards = [name for name in names if name != SINGLE]
    try:
        for name in shards:
            (aside / name).replace(folder / name)
        for name in sorted(files, key=lambda name: (name == CONFIG, name == INDEX)):
            if name != INDEX:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).replace(folder / name)
        sync(folder)
        (aside / last).replace(folder / last)
    except BaseException:
        for name in shards:
            (folder / name).unlink(missing_ok=True)
        raise
    # A whole file is preferred to an index, so the old one goes first.
    for path in before:
        if path.name not in (last, *names):
            path.unlink(missing_ok=True)
    sync(folder)


def _weights_in(folder: Path) -> list[Path]:
    """The safetensors files that make up the weights of a folder, the one that is preferred first."""
    found = [path for path in (folder / SINGLE, folder / INDEX) if path.is_file()]
    with contextlib.suppress(CheckpointError):
        found += [folder / name for name in shards_of(folder / INDEX) if name.endswith(".safetensors")]
    return found


def _shard_names(folder: Path, count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    plain = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    if not any((folder / name).exists() for name in plain):
        return plain
    token = secrets.token_hex(4)
    return [name.replace("model-", f"model-{token}-") for name in plain]


def _shards(tensors: Mapping[str, torch.Tensor], limit: int) -> list[list[str]]:
    """Names in order, split wherever the next tensor would exceed the limit."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _text_files(config: Mapping[str, Any], extra: Mapping[str, str | bytes]) -> dict[str, bytes]:
    files = {CONFIG: _json(config)}
    for name, content in extra.items():
        if not stays_inside(name) or name in (CONFIG, SINGLE, INDEX):
            raise InputError(f"{name!r} cannot be the name of an extra file")
        files[name] = content.encode() if isinstance(content, str) else content
    return files


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file; tensors may be views of each other and lie in memory in any order."""
    _check_types(tensors)
    with new_file(path) as partial:
        _save(partial, tensors, dict(metadata or {"format": "pt"}))


def _save(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(_own_memory(tensors), path, metadata)
    path.chmod(mode)  # the package's own file can be read by its owner only
    sync(path)


def _check_types(tensors: Mapping[str, torch.Tensor]) -> None:
    legal = {form.torch_name for form in STORAGES.values()} - {"complex128"}
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in legal or tensor.layout is not torch.strided:
            raise InputError(f"tensor {name!r} of type {kind} has no place in safetensors", mend="cast it first")


def _own_memory(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors row by row on the CPU, no two on the same memory, as the package asks."""
    found: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        start = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if start in taken else plain
        taken.add(start)
    return found


def write_npz(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write one uncompressed .npz file, so that it can be mapped.

    Raises:
        InputError: an array of a type that numpy itself does not have, such as bfloat16.
    """
    legal = {form.torch_name for form in STORAGES.values()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc" or array.dtype.name not in legal:
            raise InputError(
                f"tensor {name!r} of type {array.dtype.name} has no place in .npz",
                mend="cast it to float32, or write .safetensors",
            )
    with new_file(path) as partial, ZipFile(partial, "w", ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
