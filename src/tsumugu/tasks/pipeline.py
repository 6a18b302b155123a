"""`pipeline`: a task by its usual name, ready to be called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsumugu.checkpoints.load import load_tokenizer
from tsumugu.core.errors import InputError
from tsumugu.core.registry import PROMPTED, TASKS
from tsumugu.engines.load import is_compiled, load_merged
from tsumugu.hub.progress import Progress
from tsumugu.tasks.base import Task
from tsumugu.tasks.usual import at_revision, loading
from tsumugu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tsumugu.engines.onnx_model import OnnxModel
    from tsumugu.models.base import Model

HEAD_TASKS = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "base": "feature-extraction",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "seq2seq-lm": "text2text-generation",
}
"""The task that a model is for, by its head, when none is named."""

LOADING = ("dtype", "device", "engine", "quantize", "kv_cache", "adapter", "progress")
"""Options that are about loading a model, not about its task."""


def pipeline(
    task: str | None = None,
    model: Model | OnnxModel | str | Path | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    **options: Any,
) -> Task:
    """A task with its model.

    Args:
        task: the usual name, as `tsumugu run --help` lists them, also `translation_en_to_de` and the like. Taken from
            the model's head when left out.
        model: a source as `load_model` takes it, or a loaded model; the task's default when left out, if it has one.
        tokenizer: a source or a tokenizer; the model's own when left out.
        **options: `dtype`, `device`, `engine`, `quantize`, `kv_cache`, `adapter` (it is merged), `batch_size`,
            `progress`, and options of the task for every call. What the usual pipeline calls them is known, too: a
            `device` that is a number, `device_map`, `torch_dtype`, `revision`, `model_kwargs`.

    Raises:
        UnknownNameError: there is no such task; the nearest is named.
        InputError: the task needs a model to be named, or another kind of model.
    """
    options = loading(options)
    model = at_revision(model, options.pop("revision", None))
    if task is None:
        if model is None:
            raise InputError("name a task, or hand in a model", where="task")
        if isinstance(model, str | Path):
            model = load_merged(model, **{key: options.pop(key) for key in LOADING if key in options})
        assert not isinstance(model, str | Path)
        task = HEAD_TASKS.get(model.head_name)
        if task is None:
            raise InputError(f"no task is for a model with head {model.head_name!r} alone", where="task")
    named = "translation" if _languages(task) else task
    if named in PROMPTED and (
        named not in TASKS
        or (
            not _compiled_for(TASKS[task].name, model, options)
            and (
                _compiled_for("causal-lm", model, options)
                or _only_writes(model, options.get("adapter"), options.get("progress"))
            )
        )
    ):
        kind: type[Task] = PROMPTED[named]
    else:
        kind = TASKS[task]
    options = _languages(task) | options
    if model is not None and not isinstance(model, str | Path):
        if not isinstance(tokenizer, Tokenizer):
            source = tokenizer if tokenizer is not None else model.path
            if source is None:
                raise InputError("the model was not loaded from files", where="tokenizer", mend="pass tokenizer=")
            tokenizer = load_tokenizer(source)
        return kind(model, tokenizer, **options)
    source = model if model is not None else kind.default_model
    if source is None and kind.needs_model:
        raise InputError(f"{kind.name} has no default model", where="model", mend="name one")
    load: Callable[..., Task] = kind.load
    return load(source, tokenizer=tokenizer, **options)


def _compiled_for(task: str, model: Model | OnnxModel | str | Path | None, options: Mapping[str, Any]) -> bool:
    """Whether a model lies in the cache compiled for a task: then it has a head for that, and torch need not tell."""
    if not isinstance(model, str | Path) or options.get("adapter") is not None:
        return False
    engine, quantize = options.get("engine"), options.get("quantize")
    if engine is None and quantize is None:
        return False
    return is_compiled(model, engine, task=task, quantize=quantize)


def _only_writes(
    model: Model | OnnxModel | str | Path | None, adapter: str | Path | None, progress: Progress | None
) -> bool:
    """Whether a model goes on with texts and has no head for a task, so that the task is put to it as a prompt."""
    if model is None:
        return False
    if not isinstance(model, str | Path):
        return model.head_name == "causal-lm"
    from tsumugu.engines.torch import find_head

    return find_head(model, adapter=adapter, progress=progress) == "causal-lm"


def _languages(task: str) -> dict[str, str]:
    """`src_lang` and `tgt_lang` of a task's name like translation_en_to_ja; nothing where it names none."""
    found = re.fullmatch(r"translation[-_]([\w-]+?)[-_]to[-_]([\w-]+)", task)
    return {} if found is None else {"src_lang": found[1], "tgt_lang": found[2]}
