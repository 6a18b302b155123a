"""Adapters on disk, exactly as the PEFT library keeps them, so that either side loads what the other has trained.

Source: the PEFT library's documentation, "PEFT checkpoint format": `base_model.model.` before the reference library's
module names, `lora_A` and `lora_B` after them, and the modules of `modules_to_save` under their own names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsumugu.adapters.adapt import DEFAULT, Adapter, attach, need_decoder, set_adapter
from tsumugu.adapters.config import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from tsumugu.adapters.linear import AdaptedLinear, Branch
from tsumugu.adapters.names import HEADS, Target, find_targets, shown
from tsumugu.adapters.prompt import SoftPrompt
from tsumugu.checkpoints.adapter import ADAPTER_CONFIG, AdapterFolder, open_adapter
from tsumugu.core.errors import CheckpointError, ConfigError
from tsumugu.hub.resolve import resolve
from tsumugu.models.base import Family, Model, label_names

TASK_TYPES = {
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "CAUSAL_LM": "causal-lm",
    "SEQ_2_SEQ_LM": "seq2seq-lm",
    "FEATURE_EXTRACTION": "base",
}
"""PEFT's words for our heads."""

PROMPTS = {"PROMPT_TUNING": PromptTuningConfig, "PREFIX_TUNING": PrefixTuningConfig}
"""PEFT's words for methods that put something before a text."""

PREFIX, PROMPT_PREFIX, PROMPT = "base_model.model.", "base_model.", "prompt_embeddings"
"""What names begin with, with LoRA and with a prompt, and what that is called."""

UNKNOWN = (
    "layer_replication",
    "use_bdlora",
    "use_qalora",
    "kasa_config",
    "arrow_config",
    "monteclora_config",
    "velora_config",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "lora_bias",
)
"""Settings of PEFT's under which an adapter computes something else; refused where they are set."""

CHANGED_BASE = ("pissa", "olora", "corda", "loftq")
"""First weights that go with a model whose own weights were changed for them."""


def load_adapter(model: Model, source: str | Path, name: str = DEFAULT, *, trainable: bool = False) -> Model:
    """Add an adapter from its folder to `model`, in place, and make it the active one.

    Args:
        model: the model that it was trained on, with the same head.
        source: a folder in PEFT's layout, or a name on the hub.
        name: what it is called.
        trainable: whether it shall be trained on.

    Raises:
        HubError: the source cannot be found.
        CheckpointError: the files are broken or do not fit the model.
        ConfigError: it is of a kind that is not known, or an adapter of this name is there already.
    """
    attach_folder(model, open_adapter(resolve(source).path), name, trainable=trainable)
    return model


def attach_folder(model: Model, folder: AdapterFolder, name: str = DEFAULT, *, trainable: bool = False) -> None:
    """The same for an adapter that is opened already."""
    branches, plain = _sorted(folder)
    if folder.config.get("peft_type") in PROMPTS:
        made, prompt = _read_prompt(model, folder)
        adapter = Adapter(made, saved=_saved(model, plain, folder), trainable=trainable, prompt=prompt)
        attach(model, name, adapter, {})
        set_adapter(model, name)
        return
    config = read_lora_config(folder)
    targets = {each.theirs: each for each in find_targets(model)}
    spelled = model.keymap.canonical(f"{module}.weight" for module in branches)
    chosen: list[Target] = []
    fitting: dict[str, list[Branch]] = {}
    for module, parts in branches.items():
        theirs = shown(model, spelled[f"{module}.weight"]).removesuffix(".weight")
        target = targets.get(theirs)
        if target is None:
            raise CheckpointError(f"the model has no matrix {module} that can be adapted", where=str(folder.path))
        fitting[theirs] = _branches(model, target, parts, config, folder, module)
        chosen.append(target)
    attach(model, name, Adapter(config, chosen, _saved(model, plain, folder), trainable), fitting)
    set_adapter(model, name)


def read_lora_config(folder: AdapterFolder) -> LoraConfig:
    """PEFT's settings as ours.

    Raises:
        ConfigError: the adapter is of another kind, or has a setting that is not known.
    """
    data, where = folder.config, str(folder.path / ADAPTER_CONFIG)
    if data.get("peft_type") != "LORA":
        raise ConfigError(
            f"adapters of type {data.get('peft_type')!r} are not known",
            where=where,
            mend=f"known: LORA, {', '.join(PROMPTS)}",
        )
    for key in UNKNOWN:
        if data.get(key):
            raise ConfigError(f"{key} is not known here", where=where)
    first = data.get("init_lora_weights")
    if isinstance(first, str) and first.lower().startswith(CHANGED_BASE):
        raise ConfigError(f"with init_lora_weights {first!r} the model's own weights were changed", where=where)
    words = data.get("target_modules")
    modules = data.get("modules_to_save")
    values = {
        "rank": data.get("r", 8),
        "alpha": data.get("lora_alpha", 8),
        "dropout": data.get("lora_dropout", 0.0),
        "targets": words if isinstance(words, list | str) and words else "all-linear",
        "rslora": bool(data.get("use_rslora")),
        "dora": bool(data.get("use_dora")),
        "modules_to_save": modules or (),
    }
    return LoraConfig.from_dict(values, where=where)


def head_of(folder: AdapterFolder) -> str | None:
    """The head that an adapter was trained with, where it says so."""
    return TASK_TYPES.get(str(folder.config.get("task_type")))


def fitted(folder: AdapterFolder, family: Family, config: Any, head: str) -> tuple[Any, set[str]]:
    """A model's configuration with the adapter's labels, and our names of the parameters that the adapter brings."""
    _, plain = _sorted(folder)
    given = family.keymap(config, head).plan(plain, None)
    ours = {name for rule in given.rules for name in rule.ours}
    if head in HEADS and folder.model_config is not None:
        return config.replace(labels=label_names(folder.model_config)), ours
    rows = [given.entries[rule.theirs[0]].shape[0] for rule in given.rules if rule.ours[0] == "head.classifier.weight"]
    if rows and rows[0] != len(config.labels):
        return config.replace(labels=label_names({"num_labels": rows[0]})), ours
    return config, ours


def _sorted(folder: AdapterFolder) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The tensors of branches by module and part, and those of whole modules by the reference library's name."""
    branches: dict[str, dict[str, Any]] = {}
    plain: dict[str, Any] = {}
    prefix = PROMPT_PREFIX if folder.config.get("peft_type") in PROMPTS else PREFIX
    for key, entry in folder.tensors.items():
        if key == PROMPT:
            continue
        if not key.startswith(prefix):
            raise CheckpointError(f"tensor {key!r} is no adapter's", where=str(folder.path))
        name = key.removeprefix(prefix)
        found = re.fullmatch(r"(.+)\.lora_(A|B|magnitude_vector)(?:\.weight)?", name)
        if found is not None:
            branches.setdefault(found[1], {})[found[2]] = entry
        elif ".lora_" in name:
            raise CheckpointError(f"{key} adapts no matrix", where=str(folder.path), mend="adapt linear layers only")
        else:
            plain[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = entry
    return branches, plain


def _branches(
    model: Model, target: Target, parts: Mapping[str, Any], config: LoraConfig, folder: AdapterFolder, module: str
) -> list[Branch]:
    where = str(folder.path)
    weights = [_linear(model, name).weight for name in target.ours]
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    wanted: dict[str, tuple[int | None, ...]] = {
        "A": (None, weights[0].shape[1]),
        "B": (sum(each.shape[0] for each in weights), None),
    }
    if config.dora:
        wanted["magnitude_vector"] = (wanted["B"][0],)
    if parts.keys() != wanted.keys():
        raise CheckpointError(
            f"expected lora_{', lora_'.join(wanted)}, found lora_{', lora_'.join(parts)}", where=module
        )
    for part, shape in wanted.items():
        found = parts[part].shape
        if len(found) != len(shape) or any(one not in (None, other) for one, other in zip(shape, found, strict=True)):
            raise CheckpointError(f"lora_{part} of {module} is {list(found)}, which does not fit", where=where)
    if parts["A"].shape[0] != parts["B"].shape[1]:
        raise CheckpointError(f"lora_A and lora_B of {module} have different ranks", where=where)
    tensors = {part: entry.read(wide).clone().to(weights[0].device) for part, entry in parts.items()}
    down = nn.Parameter(tensors["A"])
    ups = target.rows.forward([tensors["B"]])
    lengths = target.rows.forward([tensors["magnitude_vector"]]) if config.dora else [None] * len(ups)
    alpha = _by_pattern(folder.config.get("alpha_pattern"), module, config.alpha)
    scale = config.scale_of(down.shape[0], alpha)
    return [
        Branch(
            down,
            nn.Parameter(up.contiguous()),
            scale=scale,
            dropout=config.dropout,
            magnitude=None if length is None else nn.Parameter(length.contiguous()),
        )
        for up, length in zip(ups, lengths, strict=True)
    ]


def _read_prompt(model: Model, folder: AdapterFolder) -> tuple[PromptTuningConfig | PrefixTuningConfig, SoftPrompt]:
    decoder, where = need_decoder(model), str(folder.path)
    deep = folder.config["peft_type"] == "PREFIX_TUNING"
    entry, config = folder.tensors.get(PROMPT), decoder.config
    width = 2 * config.num_layers * config.num_kv_heads * config.head_dim if deep else config.hidden_size
    if entry is None or len(entry.shape) != 2 or entry.shape[0] < 1 or entry.shape[1] != width:
        found = "absent" if entry is None else f"{list(entry.shape)}"
        raise CheckpointError(f"{PROMPT} is {found}, expected [tokens, {width}]", where=where)
    kind = PrefixTuningConfig if deep else PromptTuningConfig
    made = kind(tokens=entry.shape[0], modules_to_save=tuple(folder.config.get("modules_to_save") or ()))
    return made, SoftPrompt(nn.Parameter(entry.read(torch.float32).clone()), deep=deep)


def _by_pattern(patterns: Any, module: str, default: float) -> float:
    """What `alpha_pattern` says of a module: the first key that is, as a regular expression, the end of its name."""
    for key, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?{key}", module):
            return float(value)
    return default


def _saved(model: Model, plain: Mapping[str, Any], folder: AdapterFolder) -> dict[str, nn.Parameter]:
    wanted = {name: tuple(each.shape) for name, each in model.named_parameters(remove_duplicate=False)}
    plan = model.keymap.plan(plain, wanted)
    if plan.report.unused or plan.report.mismatched:
        plan.report.__class__(unused=plan.report.unused, mismatched=plan.report.mismatched).require(str(folder.path))
    dtypes = dict(model.named_parameters())
    return {
        name: nn.Parameter(tensor.to(dtypes[name].device, dtypes[name].dtype, copy=True).contiguous())
        for name, tensor in plan.tensors()
        if name in dtypes
    }


def _linear(model: Model, path: str) -> nn.Linear | AdaptedLinear:
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    return layer
