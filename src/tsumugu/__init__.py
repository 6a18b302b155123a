"""tsumugu (紡ぐ): one small toolkit for the whole life of a language model.

Importing this package loads nothing but itself; every public name below is fetched from its room on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsumugu.adapters.adapt import add_adapter as add_adapter
    from tsumugu.adapters.adapt import merge_adapter as merge_adapter
    from tsumugu.adapters.adapt import set_adapter as set_adapter
    from tsumugu.adapters.adapt import unmerge_adapter as unmerge_adapter
    from tsumugu.adapters.config import LoraConfig as LoraConfig
    from tsumugu.adapters.config import PrefixTuningConfig as PrefixTuningConfig
    from tsumugu.adapters.config import PromptTuningConfig as PromptTuningConfig
    from tsumugu.adapters.files import load_adapter as load_adapter
    from tsumugu.adapters.save import save_adapter as save_adapter
    from tsumugu.checkpoints.load import load_tensors as load_tensors
    from tsumugu.checkpoints.load import load_tokenizer as load_tokenizer
    from tsumugu.checkpoints.load import save_tensors as save_tensors
    from tsumugu.core.errors import TsumuguError as TsumuguError
    from tsumugu.core.tensors import TensorFormat as TensorFormat
    from tsumugu.core.tensors import convert_tensor as convert_tensor
    from tsumugu.corpus.prepare import prepare as prepare
    from tsumugu.corpus.shards import Corpus as Corpus
    from tsumugu.data.labelled.load import load_examples as load_examples
    from tsumugu.data.labelled.load import load_splits as load_splits
    from tsumugu.engines.load import load_model as load_model
    from tsumugu.engines.torch import save_model as save_model
    from tsumugu.evaluation.evaluate import evaluate as evaluate
    from tsumugu.exporting.write import export as export
    from tsumugu.generation.generate import generate as generate
    from tsumugu.hub.resolve import pull as pull
    from tsumugu.quantization.quantize import quantize as quantize
    from tsumugu.tasks.pipeline import pipeline as pipeline
    from tsumugu.text.training import train_tokenizer as train_tokenizer
    from tsumugu.training.pretrain import resume as resume
    from tsumugu.training.pretrain import train as train
    from tsumugu.training.recipe import Recipe as Recipe
    from tsumugu.tuning.finetune import finetune as finetune
    from tsumugu.tuning.recipe import Tuning as Tuning

__version__ = "0.1.0"

_HOMES = {
    "Corpus": "tsumugu.corpus.shards",
    "LoraConfig": "tsumugu.adapters.config",
    "PrefixTuningConfig": "tsumugu.adapters.config",
    "PromptTuningConfig": "tsumugu.adapters.config",
    "Recipe": "tsumugu.training.recipe",
    "Tuning": "tsumugu.tuning.recipe",
    "TensorFormat": "tsumugu.core.tensors",
    "TsumuguError": "tsumugu.core.errors",
    "add_adapter": "tsumugu.adapters.adapt",
    "convert_tensor": "tsumugu.core.tensors",
    "evaluate": "tsumugu.evaluation.evaluate",
    "export": "tsumugu.exporting.write",
    "finetune": "tsumugu.tuning.finetune",
    "generate": "tsumugu.generation.generate",
    "load_adapter": "tsumugu.adapters.files",
    "load_examples": "tsumugu.data.labelled.load",
    "load_model": "tsumugu.engines.load",
    "load_splits": "tsumugu.data.labelled.load",
    "load_tensors": "tsumugu.checkpoints.load",
    "load_tokenizer": "tsumugu.checkpoints.load",
    "merge_adapter": "tsumugu.adapters.adapt",
    "pipeline": "tsumugu.tasks.pipeline",
    "prepare": "tsumugu.corpus.prepare",
    "pull": "tsumugu.hub.resolve",
    "quantize": "tsumugu.quantization.quantize",
    "resume": "tsumugu.training.pretrain",
    "save_adapter": "tsumugu.adapters.save",
    "save_model": "tsumugu.engines.torch",
    "save_tensors": "tsumugu.checkpoints.load",
    "set_adapter": "tsumugu.adapters.adapt",
    "train": "tsumugu.training.pretrain",
    "train_tokenizer": "tsumugu.text.training",
    "unmerge_adapter": "tsumugu.adapters.adapt",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tsumugu' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
