"""Sentence embedding: one vector for a text, pooled and normalised as the checkpoint's own files say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import CheckpointError, InputError, did_you_mean
from tsumugu.core.pooling import POOLING_MODES, PoolingMode, pool
from tsumugu.core.tensors import TensorFormat, convert_tensor
from tsumugu.engines.onnx_model import OnnxModel
from tsumugu.tasks.base import Task
from tsumugu.tasks.batching import outputs
from tsumugu.text.encoding import Encoding


@dataclass(frozen=True)
class Pooling:
    """How token states become one vector.

    Attributes:
        mode: mean, cls, max, last or mean_sqrt_len.
        normalize: scale to length 1.
        max_tokens: longer texts are cut; None for the model's own limit.
        lower: texts are lower-cased first.
    """

    mode: PoolingMode = "mean"
    normalize: bool = False
    max_tokens: int | None = None
    lower: bool = False


class SentenceEmbedding(Task):
    """Texts to vectors of `dim` numbers.

    Called with a text it gives one vector, with a list one for each, as lists or, with `return_tensors`, as tensors.
    `encode` gives one array for all. The checkpoint's sentence-transformers files (modules.json, 1_Pooling/config.json,
    sentence_bert_config.json) decide on pooling, normalisation and length; without them it is the mean, not normalised.

    Options of a call:
        return_tensors: pt, tf, jax or np.
        pooling: mean, cls, max, last or mean_sqrt_len, instead of the checkpoint's.
        normalize: True or False, instead of the checkpoint's.

    Source: Reimers & Gurevych 2019, Sentence-BERT, section 3.
    """

    name = "sentence-embedding"
    default_model = "minilm"
    engines = ("torch", "onnx", "native")
    options = frozenset({"return_tensors", "pooling", "normalize"})
    sorts = True

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        folder = self.model.path if self.model.path is not None and self.model.path.is_dir() else None
        self.pooling = Pooling() if folder is None else read_pooling(folder)

    def encode(
        self,
        texts: Sequence[str],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Vectors `[texts, dim]`, float32, in the order of the texts.

        Texts of like length are computed together, so that little is spent on padding.

        Args:
            texts: any number; an empty text is the model's special tokens alone.
            pooling, normalize: instead of the checkpoint's own.
            progress: called with how many texts were finished.
        """
        mode = self._mode(pooling)
        unit = self.pooling.normalize if normalize is None else normalize
        rows = [text.lower() for text in texts] if self.pooling.lower else list(texts)
        reads = getattr(self.model, "longest", self.model.config.max_positions)
        limit = min(self.pooling.max_tokens or reads, reads)
        vectors = np.empty((len(rows), self.model.config.hidden_size), dtype=np.float32)
        encoded = self.tokenizer(rows, truncation=True, max_length=limit) if rows else Encoding({"input_ids": []})
        pooled = getattr(self.model, "pooled", None)
        call = None if pooled is None else partial(pooled, mode=mode)
        for group, output, real in outputs(self.model, self.tokenizer, encoded, rows=self.batch_size, call=call):
            found = self._vectors(output.last_hidden_state, real, mode) if call is None else output
            if unit:
                found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
            vectors[group] = found
            if progress is not None:
                progress(len(group))
        return vectors

    def _vectors(self, states: Any, real: NDArray[np.int64], mode: PoolingMode) -> NDArray[np.float32]:
        """One vector a row; on torch they are pooled where the model is, so that little leaves a GPU."""
        if isinstance(self.model, OnnxModel):
            return pool(states, real, mode)
        import torch

        from tsumugu.blocks.heads import pool as pool_tensors

        with torch.inference_mode():
            vectors = pool_tensors(states, torch.from_numpy(real).to(states.device), mode)
            array: NDArray[np.float32] = vectors.float().cpu().numpy()
        return array

    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        wanted = options.get("return_tensors")
        to = None if wanted is None else TensorFormat.parse(wanted)
        vectors = self.encode(rows, pooling=options.get("pooling"), normalize=options.get("normalize"))
        return [vector.tolist() if to is None else convert_tensor(vector, to) for vector in vectors]

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        return {"embedding": result}

    def _mode(self, wanted: str | None) -> PoolingMode:
        if wanted is None:
            return self.pooling.mode
        if wanted not in POOLING_MODES:
            raise InputError(f"unknown pooling {wanted!r}", where="pooling", mend=did_you_mean(wanted, POOLING_MODES))
        return cast(PoolingMode, wanted)


def read_pooling(folder: Path) -> Pooling:
    """What a checkpoint's sentence-transformers files ask for; the mean when there are none.

    Raises:
        CheckpointError: the files are broken, or ask for a module that is not known.
    """
    modules = _read(folder / "modules.json", list)
    if modules is None:
        return Pooling()
    mode: PoolingMode = "mean"
    normalize = False
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            mode = _pooling_mode(_inside(folder, str(module.get("path", ""))) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise CheckpointError(f"the sentence-transformers module {kind!r} is not known", where=str(folder))
    settings = _read(folder / "sentence_bert_config.json", dict) or {}
    limit = settings.get("max_seq_length")
    return Pooling(
        mode=mode,
        normalize=normalize,
        max_tokens=limit if isinstance(limit, int) and limit > 0 else None,
        lower=bool(settings.get("do_lower_case", False)),
    )


POOLING_KEYS: dict[str, PoolingMode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
"""The switches of 1_Pooling/config.json and our names."""


def pooling_files(pooling: Pooling, dim: int) -> dict[str, str]:
    """The sentence-transformers files that say this, by name, to lie beside a model of width `dim`."""
    kinds = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        *([("2_Normalize", "Normalize")] if pooling.normalize else []),
    ]
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(kinds)
    ]
    switches = {key: mode == pooling.mode for key, mode in POOLING_KEYS.items()}
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": dim, **switches},
        "sentence_bert_config.json": {"max_seq_length": pooling.max_tokens, "do_lower_case": pooling.lower},
    }
    return {name: json.dumps(values, indent=2) + "\n" for name, values in files.items()}


def _pooling_mode(path: Path) -> PoolingMode:
    config = _read(path, dict) or {}
    chosen = [mode for key, mode in POOLING_KEYS.items() if config.get(key)]
    unknown = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    unknown = [key for key in unknown if key not in POOLING_KEYS]
    if unknown or len(chosen) > 1:
        raise CheckpointError(f"pooling by {', '.join([*unknown, *chosen])} is not known", where=str(path))
    return chosen[0] if chosen else "mean"


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise CheckpointError(f"{name!r} leads out of the folder", where=str(folder / "modules.json"))
    return path


def _read(path: Path, kind: type) -> Any:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"not valid JSON ({error})", where=str(path)) from None
    if not isinstance(data, kind):
        raise CheckpointError(f"expected a {kind.__name__}", where=str(path))
    return data
