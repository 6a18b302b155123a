"""What all tasks share: a model, its tokenizer, and rows in, results out, in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tsumugu.checkpoints.load import load_tokenizer
from tsumugu.core.errors import InputError, did_you_mean
from tsumugu.engines.load import load_model
from tsumugu.hub.progress import Progress
from tsumugu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tsumugu.engines.onnx_model import OnnxModel
    from tsumugu.models.base import Model


class Task(ABC):
    """A model and a tokenizer that together solve one task.

    Call it with one input for one result, with a list for a list of results, with an iterator for an iterator that
    reads ahead by one batch.

    Args:
        model: with the head that the task needs.
        tokenizer: the model's own.
        batch_size: rows computed together when more than one is given.
        **defaults: options of every call, unless the call says otherwise.

    Attributes:
        engines: what the task runs on; "auto" takes the quickest.
    """

    name: ClassVar[str]
    default_model: ClassVar[str | None] = None
    options: ClassVar[frozenset[str]] = frozenset()
    engines: ClassVar[tuple[str, ...]] = ("torch",)

    def __init__(self, model: Model | OnnxModel, tokenizer: Tokenizer, *, batch_size: int = 8, **defaults: Any) -> None:
        if batch_size < 1:
            raise InputError(f"{batch_size} rows are no batch", where="batch_size", mend="at least 1")
        # A task that runs on torch alone is never handed anything else.
        self.model: Any = model
        self.tokenizer, self.batch_size = tokenizer, batch_size
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
        progress: Progress | None = None,
        **options: Any,
    ) -> Self:
        """Load the model with the task's head, and its tokenizer.

        Raises:
            InputError: the task does not run on that engine.
        """
        chosen = engine or ("torch" if quantize is None else "onnx")
        if chosen == "auto" and "onnx" not in cls.engines:
            chosen = "torch"
        if chosen == "onnx" and "onnx" not in cls.engines:
            raise InputError(f"{cls.name} runs on torch only", where="engine", mend="choose engine='torch'")
        model = load_model(
            source, dtype=dtype, device=device, engine=chosen, quantize=quantize, task=cls.name, progress=progress
        )
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = load_tokenizer(source if tokenizer is None else tokenizer)
        return cls(model, tokenizer, **options)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        chosen = self.defaults | self._checked(options)
        if self._is_one(inputs):
            return self._solve([inputs], **chosen)[0]
        if isinstance(inputs, list | tuple):
            return list(self._stream(inputs, chosen))
        if isinstance(inputs, Iterable) and not isinstance(inputs, bytes | Mapping):
            return self._stream(inputs, chosen)
        raise InputError(f"cannot solve {self.name} for {type(inputs).__name__}", where="inputs", mend="give text")

    def _stream(self, rows: Iterable[Any], options: dict[str, Any]) -> Iterator[Any]:
        rows = iter(rows)
        while batch := list(islice(rows, self.batch_size)):
            for index, row in enumerate(batch):
                if not self._is_one(row):
                    raise InputError(f"cannot solve {self.name} for {type(row).__name__}", where=f"row {index}")
            yield from self._solve(batch, **options)

    def _is_one(self, inputs: Any) -> bool:
        """Whether `inputs` is one input rather than several."""
        return isinstance(inputs, str)

    @abstractmethod
    def _solve(self, rows: list[Any], **options: Any) -> list[Any]:
        """One result for each row; computed together."""

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name not in self.options:
                raise InputError(
                    f"{self.name} has no option {name!r}", where="options", mend=did_you_mean(name, self.options)
                )
        return options
