"""What all tasks share: a model, its tokenizer, and rows in, results out, in order."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tsumugu.checkpoints.load import load_tokenizer
from tsumugu.core.errors import ConfigError, InputError, did_you_mean
from tsumugu.data.rows import Row, listed, text_column, text_of
from tsumugu.engines.load import is_compiled, load_merged
from tsumugu.hub.progress import Progress
from tsumugu.tasks.usual import renamed
from tsumugu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tsumugu.engines.onnx_model import OnnxModel
    from tsumugu.models.base import Model

ROWS = 8
"""Rows computed together by a task that does not sort them by length."""

SOLVING = ("seq2seq-lm", "sequence-classification", "token-classification", "question-answering")
"""Heads that are trained for a task; another task has no use for them."""

WINDOW = 1024
"""Rows that are handed to a task which sorts them by length."""


class Task(ABC):
    """A model and a tokenizer that together solve one task.

    Call it with one input for one result, with a list for a list of results, with an iterator for an iterator that
    reads ahead by one batch.

    Args:
        model: with the head that the task needs.
        tokenizer: the model's own.
        batch_size: rows computed together at most; left out, 8, or of a task that `sorts` as many as are quick.
        **defaults: options of every call, unless the call says otherwise.

    Attributes:
        name: what the task is called.
        default_model: the model when none is named.
        options: names of what a call may ask for, beside `batch_size`.
        usual: further names that the usual pipeline has for them; None where nothing here depends on it.
        heads: further heads than the usual one that the task can use.
        sorts: whether `_solve` computes rows of like length together, so that it is handed many at once.
        columns: names of the columns that hold an input of several texts; the usual ones first. Without any, an input
            is one text.
        needs_model: whether there is a model at all.
        engines: what the task runs on; "auto" takes the quickest.
        head: the head that it needs, where it runs on compiled engines and a model may have been made for another.
        loads: the head that its model is loaded with, where the task's name does not say it.
    """

    name: ClassVar[str]
    default_model: ClassVar[str | None] = None
    options: ClassVar[frozenset[str]] = frozenset()
    usual: ClassVar[Mapping[str, str | None]] = {}
    engines: ClassVar[tuple[str, ...]] = ("torch",)
    head: ClassVar[str | None] = None
    loads: ClassVar[str | None] = None
    needs_model: ClassVar[bool] = True
    heads: ClassVar[tuple[str, ...]] = ()
    sorts: ClassVar[bool] = False
    columns: ClassVar[tuple[tuple[str, ...], ...]] = ()

    def __init__(
        self, model: Model | OnnxModel, tokenizer: Tokenizer, *, batch_size: int | None = None, **defaults: Any
    ) -> None:
        needed = _needed_head(self)
        if needed is not None and model.head_name not in (needed, *self.heads):
            raise InputError(
                f"the model was loaded with head {model.head_name!r}, and {self.name} needs {needed!r}",
                where="model",
                mend="name its source instead, or load it with task=",
            )
        # A task that runs on torch alone is never handed anything else.
        self.model: Any = model
        self.tokenizer, self.batch_size = tokenizer, _rows(batch_size)
        self.defaults = self._checked(defaults)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        tokenizer: Tokenizer | str | Path | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        engine: str | None = None,
        quantize: str | None = None,
        kv_cache: str = "float32",
        adapter: str | Path | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Self:
        """Load the model with the task's head, and its tokenizer. An adapter is merged into it.

        Raises:
            InputError: the task does not run on that engine, or the model was made for another task.
        """
        chosen = "torch" if engine is None and quantize is None and kv_cache == "float32" else engine
        if chosen == "auto" and "onnx" not in cls.engines:
            chosen = "torch"
        if (chosen or "onnx") not in ("auto", *cls.engines):
            on = "torch only" if cls.engines == ("torch",) else " or ".join(cls.engines)
            raise InputError(f"{cls.name} runs on {on}", where="engine", mend="choose engine='torch'")
        wanted = cls.loads or cls.name
        if adapter is not None or not is_compiled(source, chosen, task=wanted, quantize=quantize):
            cls._require_fitting(source, adapter, progress)
        model = load_merged(
            source,
            dtype=dtype,
            device=device,
            engine=chosen,
            quantize=quantize,
            kv_cache=kv_cache,
            task=wanted,
            adapter=adapter,
            progress=progress,
        )
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = load_tokenizer(source if tokenizer is None else tokenizer)
        return cls(model, tokenizer, **options)

    @classmethod
    def _require_fitting(cls, source: str | Path, adapter: str | Path | None, progress: Progress | None) -> None:
        """Refuse a model that was made for another task, before its weights are read."""
        needed = _needed_head(cls)
        if needed not in SOLVING:
            return
        from tsumugu.engines.torch import find_head
        from tsumugu.models.base import HEADS

        try:
            found = find_head(source, adapter=adapter, progress=progress)
        except ConfigError:  # of a class that we know nothing of
            return
        if found in (*SOLVING, "causal-lm") and found not in (needed, *cls.heads):
            raise InputError(
                f"the model gives {HEADS[found]}, and {cls.name} needs {HEADS[needed]}",
                where=str(source),
                mend="name a model that was trained for it",
            )

    def __call__(self, inputs: Any, **options: Any) -> Any:
        if "batch_size" in options:
            sized = copy(self)
            sized.batch_size = _rows(options.pop("batch_size"))
            return Task.__call__(sized, inputs, **options)
        chosen = self.defaults | self._checked(options)
        if self._is_one(inputs):
            return self._solve([inputs], **chosen)[0]
        if isinstance(inputs, list | tuple):
            return list(self._stream(inputs, chosen, self.window))
        if isinstance(inputs, Iterable) and not isinstance(inputs, bytes | Mapping):
            return self._stream(inputs, chosen, self.batch_size or ROWS)
        raise InputError(f"cannot solve {self.name} for {type(inputs).__name__}", where="inputs", mend="give text")

    def each(self, rows: Sequence[Any], **options: Any) -> list[Any]:
        """One result for each row, whatever a call does to lists in the usual pipeline."""
        return list(self._stream(rows, self.defaults | self._checked(options), self.window))

    @property
    def window(self) -> int:
        """How many rows are best handed over at once."""
        return max(WINDOW, self.batch_size or 0) if self.sorts else self.batch_size or ROWS

    @property
    def longest(self) -> int:
        """The longest text, in tokens, that the model and its tokenizer are for."""
        reads = getattr(self.model, "longest", self.model.config.max_positions)
        return int(min(reads, self.tokenizer.model_max_length or reads))

    def _stream(self, rows: Iterable[Any], options: dict[str, Any], window: int) -> Iterator[Any]:
        rows = iter(rows)
        done = 0
        while batch := list(islice(rows, window)):
            for index, row in enumerate(batch, done):
                if not self._is_one(row):
                    raise InputError(f"cannot solve {self.name} for {type(row).__name__}", where=f"row {index}")
            yield from self._solve(batch, **options)
            done += len(batch)

    def _is_one(self, inputs: Any) -> bool:
        """Whether `inputs` is one input rather than several."""
        return isinstance(inputs, str)

    @abstractmethod
    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        """One result for each row; computed together."""

    @classmethod
    def rows(cls, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The rows that texts on a command line make: one each, or one of them all where an input is several texts."""
        if not cls.columns:
            return [{"text": text} for text in texts]
        names = cls.columns[0]
        if len(texts) != len(names):
            raise InputError(f"expected {' and '.join(names)}, found {len(texts)} texts", where="text")
        return [dict(zip(names, texts, strict=True))]

    @classmethod
    def read(cls, row: Row, column: str | None = None) -> Any:
        """The input that a row holds.

        Args:
            row: of a file, or of `rows`.
            column: where its texts are, with commas between several; found by the usual names when left out.

        Raises:
            InputError: there are no such columns, or no texts in them.
        """
        if not cls.columns:
            return text_of(row, text_column(row, column))
        return dict(zip(cls.columns[0], cls._texts_of(row, column), strict=True))

    @classmethod
    def _texts_of(cls, row: Row, column: str | None) -> list[str]:
        """The texts of an input that is several."""
        if column is None:
            names = next((names for names in cls.columns if all(name in row.values for name in names)), None)
        else:
            names = tuple(each.strip() for each in column.split(","))
        if names is None or len(names) != len(cls.columns[0]):
            usual = " and ".join(map(repr, cls.columns[0]))
            raise InputError(
                f"the columns {usual} are needed (columns: {listed(row.values)})",
                where=row.where,
                mend="name them with --text-column, with a comma",
            )
        return [text_of(row, name) for name in names]

    @classmethod
    def record(cls, result: Any) -> dict[str, Any]:
        """A result as columns, to stand beside those of the row that was read."""
        return {"result": result}

    @classmethod
    def lines(cls, result: Any) -> Iterator[str]:
        """A result as a terminal shows it."""
        yield json.dumps(cls.record(result), ensure_ascii=False)

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        options = renamed(options, {"num_workers": None, **self.usual})
        for name in options:
            if name not in self.options:
                raise InputError(
                    f"{self.name} has no option {name!r}", where="options", mend=did_you_mean(name, self.options)
                )
        return options


def _rows(batch_size: int | None) -> int | None:
    if batch_size is not None and batch_size < 1:
        raise InputError(f"{batch_size} rows are no batch", where="batch_size", mend="at least 1")
    return batch_size


def _needed_head(task: Task | type[Task]) -> str | None:
    """The head that a task needs; what runs on compiled engines says it itself, so that nothing loads torch to tell."""
    if "onnx" in task.engines:
        return task.head
    from tsumugu.models.base import TASK_HEADS

    return TASK_HEADS.get(task.name)
