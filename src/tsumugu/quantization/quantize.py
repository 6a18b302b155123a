"""A model with fewer bits, written once as a GGUF file that engines read number by number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tsumugu.checkpoints.gguf_write import Storage, write_gguf
from tsumugu.checkpoints.load import load_tokenizer
from tsumugu.core.errors import CheckpointError, ConfigError, InputError, UnknownNameError, did_you_mean
from tsumugu.core.registry import FAMILIES
from tsumugu.engines.load import load_merged
from tsumugu.engines.torch import find_kind
from tsumugu.hub.progress import Progress, Silent
from tsumugu.models.decoder import Decoder
from tsumugu.quantization.calibrate import calibrated, matrices
from tsumugu.quantization.grids import GRIDS, Grid, Rounded, nearest
from tsumugu.quantization.texts import calibration_windows
from tsumugu.text.gguf import to_gguf_metadata

METHODS = ("gptq", "nearest")
TOKENS = 16384
REST: Storage = "Q8_0"
"""Of the matrices over the vocabulary, whose errors reach the output directly."""


def quantize(
    source: str | Path,
    target: str | Path,
    *,
    bits: int = 4,
    symmetric: bool | None = None,
    calibrate: str | Path | Sequence[str | Path] | None = None,
    method: str | None = None,
    tokens: int = TOKENS,
    text_column: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a decoder with its matrices in 4 or 8 bits, in groups of 32, as a GGUF file that llama.cpp reads too.

    With texts, layer by layer, each matrix is rounded so that what it gives for their tokens changes least (GPTQ).
    Without, each number goes to the nearest of its group's grid. Matrices over the vocabulary take 8 bits, vectors
    stay as they are. The file appears whole or not at all.

    Args:
        source: what `load_model` takes; an adapter is merged.
        target: a file that ends in .gguf, or a folder for `model.gguf`.
        bits: 4, or 8.
        symmetric: groups with a scale alone (Q4_0, Q8_0), or with a least value too (Q4_1). When left out, 4 bits have
            one and 8 have none.
        calibrate: files, folders or patterns of text like that which the model will read.
        method: gptq, which needs texts, or nearest; by whether there are texts when left out.
        tokens: of the texts that are used.
        text_column: of rows, the one with the text; found by its name when left out.
        progress: watches the download of a model that is not in the cache yet, and the layers.

    Returns:
        The file.

    Raises:
        ConfigError, UnknownNameError: options that do not go together.
        CheckpointError: the family has no GGUF form, or the file cannot be written.
        InputError: the target is no GGUF file, or the texts cannot be read, or are too short.
    """
    grid = grid_for(bits, symmetric)
    texts = [calibrate] if isinstance(calibrate, str | Path) else list(calibrate or ())
    method = method or ("gptq" if texts else "nearest")
    if method not in METHODS:
        raise UnknownNameError(f"unknown method {method!r}", where="method", mend=did_you_mean(method, METHODS))
    if method == "gptq" and not texts:
        raise ConfigError("gptq needs texts", where="calibrate", mend="name files of text, or choose method nearest")
    if method == "nearest" and texts:
        raise ConfigError("nearest reads no texts", where="calibrate", mend="leave them out, or choose method gptq")
    path = target_file(target)
    progress = progress or Silent()
    family, _ = find_kind(source, progress=progress)
    if (gguf := family.gguf) is None:
        have = " and ".join(name for name in FAMILIES if FAMILIES[name].gguf is not None)
        what = f"the {family.name} family has no GGUF form here; {have} have"
        raise CheckpointError(what, where=str(source), mend="quantize= of load_model rounds others for an engine")
    model: Any = load_merged(source, engine="torch", task="causal-lm", progress=progress)
    tokenizer = load_tokenizer(source)
    metadata = {**gguf.metadata(model.config), **to_gguf_metadata(tokenizer, model.config.vocab_size)}
    windows = None
    if texts:
        longest = model.config.max_positions
        windows = calibration_windows(tokenizer, texts, tokens=tokens, longest=longest, column=text_column)
        if int(windows.max()) >= model.config.vocab_size:
            raise InputError("a token id is outside the vocabulary", where="calibrate")
    rounded = _rounded(model, grid, windows, progress, f"rounding {Path(str(source)).name}")
    blocks = {f"{name}.weight": each.blocks() for name, each in rounded.items()}
    tensors = {name: each.detach() for name, each in model.named_parameters()} | blocks
    theirs = {**gguf.keymap(model.config).to_theirs(tensors), **gguf.tensors(model.config)}
    kinds = {name: grid.kind for name, each in theirs.items() if each.dtype == torch.uint8}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, metadata, theirs, storage=REST, blocks=kinds)
    return path


def target_file(target: str | Path) -> Path:
    """The file that is meant: one that ends in .gguf, or `model.gguf` in a folder.

    Raises:
        InputError: it ends as a file of another kind does.
    """
    path = Path(target).expanduser()
    if path.suffix == ".gguf":
        return path
    if path.suffix[1:].isalpha() and not path.is_dir():
        raise InputError("a quantised model is a GGUF file", where=str(target), mend="end the name in .gguf")
    return path / "model.gguf"


def grid_for(bits: int, symmetric: bool | None) -> Grid:
    """The grid with so many bits.

    Raises:
        ConfigError: there is none.
    """
    if bits not in (4, 8):
        raise ConfigError(f"{bits} bits are not known", where="bits", mend="choose 4 or 8")
    if bits == 8 and symmetric is False:
        raise ConfigError("groups of 8 bits have no least value", where="symmetric", mend="choose 4 bits, or leave it")
    return GRIDS["Q8_0" if bits == 8 else "Q4_0" if symmetric else "Q4_1"]


def _rounded(
    model: Decoder, grid: Grid, windows: torch.Tensor | None, progress: Progress, what: str
) -> dict[str, Rounded]:
    """The layers' matrices by the names of their modules."""
    layers: Any = model.decoder.layers
    size = sum(each.nbytes for each in layers.parameters())
    progress.stage(what, size)

    def done(count: int) -> None:
        progress.done(size * count // len(layers))

    if windows is not None:
        return calibrated(model, windows, grid, progress=done)
    found = {}
    for index, layer in enumerate(layers):
        for name, each in matrices(layer):
            found[f"decoder.layers.{index}.{name}"] = nearest(each.weight.detach(), grid)
        done(index + 1)
    return found
