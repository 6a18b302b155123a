"""Writing adapters as the PEFT library keeps them; see `files` for their layout."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tsumugu.adapters.adapt import Adapter, adapters_of
from tsumugu.adapters.config import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from tsumugu.adapters.files import PREFIX, PROMPT, PROMPT_PREFIX, TASK_TYPES
from tsumugu.adapters.linear import Branch
from tsumugu.adapters.names import HEADS, Target, saved_modules, shown
from tsumugu.checkpoints.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tsumugu.checkpoints.write import write_adapter_folder
from tsumugu.core.errors import ConfigError
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer


def save_adapter(
    model: Model,
    folder: str | Path,
    name: str | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    base: str | None = None,
) -> Path:
    """Write one adapter of `model`: adapter_config.json and adapter_model.safetensors, as PEFT has them.

    config.json lies beside them where it says more than the model's own: what labels are called, what a task was asked
    with. So do the tokenizer's files if it is given.

    Args:
        model: has the adapter.
        folder: where to; an adapter that is there is replaced.
        name: which one; the active one when left out.
        tokenizer: to be saved with it.
        tensors: written in place of the model's own parameters, under the same names.
        base: what the model is called in adapter_config.json; what it was loaded from when left out.

    Raises:
        InputError: there is no adapter.
        ConfigError: several are active and none is named.
    """
    known = adapters_of(model)
    if name is None:
        if len(known.active) != 1:
            what = f"{len(known.active)} adapters are active"
            raise ConfigError(what, where="name", mend=f"name one of {', '.join(known)}")
        (name,) = known.active
    adapter = known[name]
    written, ranks, alphas = _written(model, name, adapter, tensors or {})
    config = _common(model, adapter, base)
    if isinstance(adapter.config, LoraConfig):
        config |= _lora_settings(adapter.config, adapter.targets, ranks, alphas)
    else:
        config |= _prompt_settings(model, adapter.config)
    files: dict[str, str | bytes] = {ADAPTER_CONFIG: json.dumps(config, indent=2, sort_keys=True) + "\n"}
    if model.head_name in HEADS or model.usage:
        whole = {**model.family.to_hub(model.config, model.head_name), **model.usage}
        files["config.json"] = json.dumps(whole, indent=2) + "\n"
    if tokenizer is not None:
        with tempfile.TemporaryDirectory() as place:
            files |= {path.name: path.read_bytes() for path in tokenizer.save(place)}
    folder = Path(folder).expanduser()
    write_adapter_folder(folder, ADAPTER_WEIGHTS, written, files)
    return folder


def _written(
    model: Model, name: str, adapter: Adapter, instead: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, int], dict[str, float]]:
    """An adapter's tensors by PEFT's names, and the ranks and alphas of modules where they are their own."""
    config = adapter.config
    saved = _whole(model, {path: instead.get(path, each) for path, each in adapter.saved.items()})
    if not isinstance(config, LoraConfig):
        assert adapter.prompt is not None
        tensors = {f"{PROMPT_PREFIX}{key}": each for key, each in saved.items()}
        tensors[PROMPT] = instead.get("prompt.table", adapter.prompt.table)
        return {key: each.detach().cpu() for key, each in tensors.items()}, {}, {}
    tensors = {f"{PREFIX}{key}": each for key, each in saved.items()}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for target in adapter.targets:
        branches = [_branch(model, ours, name) for ours in target.ours]
        paths = [f"{ours}.branches.{name}" for ours in target.ours]
        first = branches[0]
        module = f"{PREFIX}{target.theirs}"
        ups = [instead.get(f"{path}.up", each.up) for path, each in zip(paths, branches, strict=True)]
        tensors[f"{module}.lora_A.weight"] = instead.get(f"{paths[0]}.down", first.down)
        (tensors[f"{module}.lora_B.weight"],) = target.rows.backward(ups)
        if first.magnitude is not None:
            named = {f"{path}.magnitude": each.magnitude for path, each in zip(paths, branches, strict=True)}
            lengths = [instead.get(path, each) for path, each in named.items() if each is not None]
            (tensors[f"{module}.lora_magnitude_vector"],) = target.rows.backward(lengths)
        alpha = first.scale * (first.rank**0.5 if config.rslora else first.rank)
        if first.rank != config.rank:
            ranks[target.theirs] = first.rank
        if abs(alpha - config.alpha) > 1e-9 * config.alpha:
            alphas[target.theirs] = alpha
    return {key: each.detach().cpu() for key, each in tensors.items()}, ranks, alphas


def _whole(model: Model, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters that are trained whole, by the reference library's names."""
    found: dict[str, Tensor] = {}
    for rule in model.keymap.rules:
        if all(name in saved for name in rule.ours):
            given = rule.operation.backward([saved[name] for name in rule.ours])
            found |= {shown(model, name): each for name, each in zip(rule.theirs, given, strict=True)}
    return found


def _common(model: Model, adapter: Adapter, base: str | None) -> dict[str, Any]:
    """What adapter_config.json says of every adapter."""
    if base is None and model.source is not None:
        path = Path(model.source).expanduser()
        base = str(path.resolve()) if path.exists() else model.source
    return {
        "task_type": next((word for word, head in TASK_TYPES.items() if head == model.head_name), None),
        "base_model_name_or_path": base,
        "modules_to_save": saved_modules(model, adapter.saved) or None,
        "inference_mode": True,
    }


def _lora_settings(
    config: LoraConfig, targets: list[Target], ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": [each.theirs for each in targets],
        "rank_pattern": dict(ranks),
        "alpha_pattern": dict(alphas),
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "fan_in_fan_out": any(each.transposed for each in targets),
        "bias": "none",
        "init_lora_weights": True,
    }


def _prompt_settings(model: Model, config: PromptTuningConfig | PrefixTuningConfig) -> dict[str, Any]:
    ours = model.config
    common = {"num_virtual_tokens": config.tokens, "num_layers": ours.num_layers, "num_transformer_submodules": 1}
    if isinstance(config, PromptTuningConfig):
        return common | {
            "peft_type": "PROMPT_TUNING",
            "token_dim": ours.hidden_size,
            "num_attention_heads": ours.num_heads,
            "prompt_tuning_init": "RANDOM",
        }
    return common | {
        "peft_type": "PREFIX_TUNING",
        "token_dim": ours.num_kv_heads * ours.head_dim,
        "num_attention_heads": ours.num_kv_heads,
        "prefix_projection": False,
    }


def _branch(model: Model, path: str, name: str) -> Branch:
    branch = model.get_submodule(path).branches[name]  # type: ignore[index]
    assert isinstance(branch, Branch)
    return branch
