"""What all families share: the model, its output, and the record that describes a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from tsumugu.checkpoints.keymap import KeyMap, Readable, Report
from tsumugu.core.config import Config, type_hints
from tsumugu.core.errors import ConfigError, InputError, UnknownNameError, did_you_mean
from tsumugu.core.output import Output as Output
from tsumugu.core.registry import FUNCTIONS
from tsumugu.core.tensors import to_torch

T = TypeVar("T")

HEADS = {
    "base": "hidden states, no head",
    "causal-lm": "the next token",
    "encoder": "hidden states of the encoder alone",
    "masked-lm": "hidden tokens",
    "pretraining": "hidden tokens and whether two texts follow one another",
    "replaced-token": "which tokens were replaced",
    "replaced-token-pair": "which tokens were replaced, beside the generator that replaces them",
    "sequence-classification": "a label for each text",
    "token-classification": "a label for each token",
    "question-answering": "the first and last token of an answer",
    "seq2seq-lm": "the next token of a text that answers another",
}
"""The heads a family may have, by name, and what they predict."""

TASK_HEADS = {
    "feature-extraction": "base",
    "sentence-embedding": "base",
    "sentence-similarity": "base",
    "text-generation": "causal-lm",
    "chat": "causal-lm",
    "fill-mask": "masked-lm",
    "summarization": "seq2seq-lm",
    "translation": "seq2seq-lm",
    "text2text-generation": "seq2seq-lm",
    "text-classification": "sequence-classification",
    "sentiment-analysis": "sequence-classification",
    "zero-shot-classification": "sequence-classification",
    "text-ranking": "sequence-classification",
    "token-classification": "token-classification",
    "ner": "token-classification",
    "question-answering": "question-answering",
    "multiple-choice": "causal-lm",
    "semantic-search": "base",
}
"""The head that a task of a pipeline needs."""

USAGE = ("problem_type", "task_specific_params", "prefix")
"""Keys of config.json that say nothing about the network, but how its answers are meant and what it is to be asked."""


class Model(nn.Module):
    """A network of one family with one head.

    Attributes:
        family: the record of its family.
        config: its hyperparameters.
        head_name: which head it was built with, a key of `HEADS`.
        tied: our names of parameters that are another parameter, mapped to that one.
        end_tokens: what ends a text, where the checkpoint's generation_config.json says so.
        load_report: how the checkpoint fitted, after loading.
        usage: what its config.json says about its use, by the keys of `USAGE`.
        source: what was asked for when it was loaded.
        path: the folder or file it was loaded from.
        beside: small files that are saved with its weights, by name.
        adapters: what was added to the network to be trained in its stead, by name; see `tsumugu.adapters.adapt`.
    """

    family: Family
    config: Any
    head_name: str
    tied: dict[str, str]
    end_tokens: tuple[int, ...] = ()
    load_report: Report | None = None
    usage: Mapping[str, Any] = {}
    source: str | None = None
    path: Path | None = None
    beside: Mapping[str, str] = {}
    adapters: Mapping[str, Any] | None = None

    def __init__(self, family: Family, config: Config, head_name: str) -> None:
        super().__init__()
        self.family, self.config, self.head_name = family, config, head_name
        self.tied = {}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def keymap(self) -> KeyMap:
        """The names of this model's checkpoints on the hub."""
        return self.family.keymap(self.config, self.head_name)

    def num_parameters(self, *, trainable_only: bool = False) -> int:
        """How many numbers the parameters hold; a shared one counts once."""
        return sum(each.numel() for each in self.parameters() if each.requires_grad or not trainable_only)

    def tie(self) -> None:
        """Make every tied parameter the very parameter it is tied to; called after parameters were replaced."""
        for name, source in self.tied.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(owner), leaf, self.get_parameter(source))

    def spread(self, name: str) -> float:
        """The standard deviation that the family gives the first weights of the matrix called `name`."""
        if self.family.spread is not None:
            return self.family.spread(self.config, name)
        return float(self.config.initializer_range)

    def ids(self, tokens: Any) -> Tensor:
        """Token ids from any tensor kind or lists as an integer tensor `[batch, time]` on the model's device.

        Raises:
            InputError: not two-dimensional, not integers, no token, or an id outside the vocabulary.
        """
        given = to_torch(tokens)
        if given.dtype.is_floating_point or given.dtype == torch.bool:
            raise InputError(f"token ids must be integers, found {given.dtype}", where="input_ids")
        if given.dim() == 1:
            given = given[None]
        if given.dim() != 2 or given.shape[1] == 0:
            raise InputError(f"expected ids of shape [batch, time], found {list(given.shape)}", where="input_ids")
        if not _unseen(given):
            low, high, vocab = int(given.min()), int(given.max()), int(self.config.vocab_size)
            if low < 0 or high >= vocab:
                wrong = low if low < 0 else high
                raise InputError(
                    f"token id {wrong} is outside the vocabulary of {vocab}",
                    where="input_ids",
                    mend="use the tokenizer that belongs to this model",
                )
        return given.to(self.device, torch.int64)

    def indices(self, given: Any, name: str, limit: int) -> Tensor | None:
        """Indices into a table of `limit` rows, from any tensor kind or lists, on the model's device; None stays None.

        Raises:
            InputError: one of them is outside the table.
        """
        if given is None:
            return None
        indices = to_torch(given)
        if not _unseen(indices) and indices.numel():
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= limit:
                raise InputError(f"{low if low < 0 else high} is outside 0 to {limit - 1}", where=name)
        return indices.to(self.device, torch.int64)

    def real(self, attention_mask: Any, ids: Tensor) -> Tensor | None:
        """Which of `ids` `[batch, time]` are no padding, from any tensor kind or lists; None if nothing is said.

        Raises:
            InputError: not of the shape of `ids`.
        """
        if attention_mask is None:
            return None
        given = to_torch(attention_mask).to(ids.device)
        if given.shape != ids.shape:
            found = f"shape {list(given.shape)} is not {list(ids.shape)}, that of input_ids"
            raise InputError(found, where="attention_mask")
        return given

    def generate(self, input_ids: Any, **options: Any) -> Any:
        """The same as `tsumugu.generate(model, input_ids, …)`."""
        return FUNCTIONS["generate"](self, input_ids, **options)


@dataclass(frozen=True)
class GGUF:
    """How a family is kept in GGUF files.

    Attributes:
        architecture: the value of `general.architecture`.
        config: metadata and tensors -> configuration.
        metadata: configuration -> metadata, without the tokenizer's.
        keymap: the names in the file.
        tensors: configuration -> tensors of the file that are no parameters.
    """

    architecture: str
    config: Callable[[Mapping[str, Any], Mapping[str, Readable]], Config]
    metadata: Callable[[Any], dict[str, Any]]
    keymap: Callable[[Any], KeyMap]
    tensors: Callable[[Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: its key in the registry.
        summary: what it is, in one line.
        model_types: the values of `model_type` in config.json that it loads.
        config_class: its hyperparameters.
        build: configuration and head -> a model with unset weights.
        keymap: configuration and head -> the names on the hub.
        from_hub: the content of config.json -> configuration.
        to_hub: configuration and head -> the content of config.json.
        architectures: class names that config.json may have in `architectures` -> our heads, the default first.
        gguf: how it is kept in GGUF files, if it is.
        fit: configuration, a checkpoint's tensors, and the plain values beside them -> the configuration, where
            config.json leaves something open.
        spread: configuration and our name of a matrix -> the standard deviation of its first weights; where None, it
            is the configuration's `initializer_range` for all of them.
    """

    name: str
    summary: str
    model_types: tuple[str, ...]
    config_class: type[Config]
    build: Callable[[Any, str], Model]
    keymap: Callable[[Any, str], KeyMap]
    from_hub: Callable[[Mapping[str, Any]], Config]
    to_hub: Callable[[Any, str], dict[str, Any]]
    architectures: Mapping[str, str]
    gguf: GGUF | None = None
    fit: Callable[[Any, Mapping[str, Readable], Mapping[str, Any]], Config] | None = None
    spread: Callable[[Any, str], float] | None = None

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads it can be built with, the default first."""
        return tuple(dict.fromkeys(self.architectures.values()))

    def architecture(self, head: str, *, prefix: str = "") -> str:
        """The class name of `head`, the first one beginning with `prefix`."""
        return next(cls for cls, name in self.architectures.items() if name == head and cls.startswith(prefix))

    def head(self, task: str | None, architectures: list[str] | None = None) -> str:
        """The head that `task` (a head or a pipeline's task) asks for; else the one that config.json names."""
        if task is not None:
            name = TASK_HEADS.get(task, task)
            if name not in self.heads:
                raise ConfigError(
                    f"the {self.name} family has no head {task!r}",
                    where="task",
                    mend=did_you_mean(task, self.heads),
                )
            return name
        for cls in architectures or []:
            if cls in self.architectures:
                return self.architectures[cls]
        if architectures:
            raise ConfigError(
                f"architecture {architectures[0]!r} is not one that the {self.name} family builds",
                where="config.json",
                mend=f"choose with task=: {', '.join(self.heads)}",
            )
        return self.heads[0]


def _unseen(tensor: Tensor) -> bool:
    """Whether the values of a tensor are not there to be checked: on the meta device, or while a graph is traced."""
    return tensor.device.type == "meta" or torch.compiler.is_compiling()


def preset(presets: Mapping[str, T], name: str, *, family: str) -> T:
    """The preset called `name`, in capitals or not, with the family's name before it or not.

    Raises:
        UnknownNameError: there is none; it names the nearest.
    """
    word = name.lower().removeprefix(f"{family}-")
    if word not in presets:
        raise UnknownNameError(f"{family} has no preset {name!r}", mend=did_you_mean(word, presets))
    return presets[word]


def translate(data: Mapping[str, Any], names: Mapping[str, str], kind: type[Any]) -> dict[str, Any]:
    """The values of config.json under the names of `kind`.

    Absent keys stay out. So does null, except where `kind` knows it: a model without an end token is not one with the
    default end token.
    """
    hints = type_hints(kind)
    return {
        ours: data[theirs]
        for theirs, ours in names.items()
        if theirs in data and (data[theirs] is not None or type(None) in get_args(hints[ours]))
    }


def label_names(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of a classifier from config.json's `id2label` (or `num_labels`), in order of their ids."""
    table = data.get("id2label")
    if isinstance(table, Mapping) and table:
        try:
            by_id = {int(key): str(value) for key, value in table.items()}
        except ValueError:
            raise ConfigError("ids must be numbers", where="config.json id2label") from None
        if sorted(by_id) != list(range(len(by_id))):
            raise ConfigError("ids must run from 0 without a gap", where="config.json id2label")
        return tuple(by_id[index] for index in range(len(by_id)))
    count = data.get("num_labels", 2)
    if not isinstance(count, int) or not 0 < count < 1 << 20:
        raise ConfigError(f"expected a number of labels, found {count!r}", where="config.json num_labels")
    return tuple(f"LABEL_{index}" for index in range(count))


def label_tables(labels: tuple[str, ...]) -> dict[str, Any]:
    """`id2label` and `label2id` as config.json writes them."""
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
