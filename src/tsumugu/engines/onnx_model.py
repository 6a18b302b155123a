"""A compiled model, run by ONNX Runtime: NumPy in, NumPy out. Loads no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.core.output import Output
from tsumugu.core.registry import FUNCTIONS
from tsumugu.core.tensors import format_of
from tsumugu.engines import onnx_store
from tsumugu.engines.onnx_encoder import read_texts
from tsumugu.engines.onnx_seq2seq_session import OnnxSeq2SeqSession
from tsumugu.engines.onnx_session import OnnxSession
from tsumugu.engines.onnx_store import ENCODER, GRAPH
from tsumugu.engines.prefixes import Prefixes
from tsumugu.engines.session_scoring import SessionScorer


@dataclass(frozen=True)
class FamilyName:
    """What is known of a family without loading it."""

    name: str


@dataclass(eq=False)
class OnnxModel:
    """A model of one family with one head, compiled.

    Attributes:
        family: its name.
        head_name: what it predicts, a key of `tsumugu.models.base.HEADS`.
        config: its hyperparameters, as attributes.
        end_tokens: what ends a text.
        bits: of its matrices: 32, 8 or 4.
        folder: the compiled files.
        path, source: the checkpoint, and what was asked for.
        interface: how the graph is called.
        usage: what its config.json says about its use.
        prefixes: what is kept of texts that were read.
    """

    family: FamilyName
    head_name: str
    config: Any
    end_tokens: tuple[int, ...]
    bits: int
    folder: Path
    path: Path
    source: str
    interface: Mapping[str, Any]
    usage: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 0
    device: str = field(default="cpu", init=False)
    prefixes: Prefixes = field(default_factory=Prefixes, init=False, repr=False)
    _session: Any = field(default=None, init=False, repr=False)
    _encoder: Any = field(default=None, init=False, repr=False)

    @property
    def session(self) -> Any:
        """ONNX Runtime's session, opened when it is first needed."""
        if self._session is None:
            self._session = open_graph(self.folder, GRAPH, threads=self.threads)
        return self._session

    @property
    def encoder(self) -> Any:
        """The same of what is read once by an encoder-decoder."""
        if self._encoder is None:
            self._encoder = open_graph(self.folder, ENCODER, threads=self.threads)
        return self._encoder

    def open_session(self, *, batch: int, capacity: int) -> OnnxSession | OnnxSeq2SeqSession:
        """Texts to be continued, or written."""
        if self.interface["kind"] == "encoder-decoder":
            return OnnxSeq2SeqSession(
                self.encoder,
                self.session,
                layers=self.interface["layers"],
                heads=self.interface["kv_heads"],
                head_dim=self.interface["head_dim"],
                context_dim=self.config.head_dim,
                reach=self.interface["reach"],
                vocab=self.config.vocab_size,
                start_token=self.config.decoder_start_token_id,
                batch=batch,
                capacity=capacity,
            )
        if self.interface["kind"] != "decoder":
            raise InputError(
                f"a {self.family.name} model with head {self.head_name!r} does not generate text",
                where="model",
                mend="load a decoder such as smollm2",
            )
        return OnnxSession(
            self.session,
            self.prefixes,
            layers=self.interface["layers"],
            kv_heads=self.interface["kv_heads"],
            head_dim=self.interface["head_dim"],
            vocab=self.config.vocab_size,
            positioned=self.interface["positions"] is not None,
            batch=batch,
            capacity=capacity,
        )

    def open_scorer(self, *, prefix: Sequence[int]) -> SessionScorer:
        """Says how likely texts go on as proposed, after `prefix`."""
        if self.head_name != "causal-lm":
            raise InputError(
                f"a {self.family.name} model with head {self.head_name!r} does not score texts",
                where="model",
                mend="load a decoder such as smollm2",
            )

        def opened(rows: int, room: int) -> Any:
            return self.open_session(batch=rows, capacity=room)

        limit, vocab = int(self.config.max_positions), int(self.config.vocab_size)
        return SessionScorer(opened, prefix=prefix, limit=limit, vocab=vocab)

    def __call__(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> Output:
        """Read whole texts; tensors of the kind of `input_ids` come back, NumPy for lists.

        What is said of a text by its first token is said by the first that is no padding.

        Args:
            input_ids: `[batch, time]`.
            attention_mask: `[batch, time]`, non-zero where a token is real.
            token_type_ids: `[batch, time]`, which of two texts a token is from.

        Raises:
            InputError: a decoder, other shapes, or an id outside the vocabulary.
        """
        if self.interface["kind"] != "encoder":
            what = f"a compiled {self.interface['kind']} only writes texts"
            raise InputError(what, where="model", mend="use tg.generate")
        found = read_texts(self, input_ids, attention_mask, token_type_ids)
        kind = format_of(input_ids)
        return found if kind is None else found.converted(kind)

    def generate(self, input_ids: Any, **options: Any) -> Any:
        """The same as `tsumugu.generate(model, input_ids, …)`."""
        return FUNCTIONS["generate"](self, input_ids, **options)


def open_compiled(
    folder: Path, *, path: Path, source: str, threads: int = 0, kind: type[OnnxModel] | None = None
) -> OnnxModel:
    """The model in a folder that `compile_model` made."""
    record = onnx_store.read_record(folder)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in record["config"].items()}
    return (kind or OnnxModel)(
        family=FamilyName(record["family"]),
        head_name=record["head"],
        config=SimpleNamespace(**values),
        end_tokens=tuple(record["end_tokens"]),
        bits=record["bits"],
        folder=folder,
        path=path,
        source=source,
        interface=record["interface"],
        usage=record["usage"],
        threads=threads,
    )


def open_graph(folder: Path, name: str, *, threads: int = 0) -> Any:
    """ONNX Runtime's session of a compiled graph, which needs no further optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])


def cores() -> int:
    """How many cores this process may use: as many as OMP_NUM_THREADS says, else all that it is let on."""
    if (said := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(said):
        return int(said)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
