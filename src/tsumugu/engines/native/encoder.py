"""A compiled encoder run by the kernels: texts go through it without padding. Loads neither torch nor ONNX Runtime."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError
from tsumugu.core.output import Output
from tsumugu.core.pooling import PoolingMode
from tsumugu.core.tensors import format_of
from tsumugu.engines.native import library
from tsumugu.engines.native.network import SMALL, WEIGHTS, read_weights, structure
from tsumugu.engines.onnx_encoder import Texts, texts_of
from tsumugu.engines.onnx_model import OnnxModel, cores

PANEL = 32
"""Widths are filled up to it, as in gemm.h."""

Floats = NDArray[np.float32]


class Reader:
    """An encoder and the threads that run it.

    Args:
        folder: of the compiled model.
        record: what `write_encoder` gave.
        threads: that work together.

    Raises:
        CheckpointError: the weights are not all there.
        ConfigError: the kernels cannot be had here.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], *, threads: int) -> None:
        self._alone = threading.Lock()
        self._library = library.load_library()
        self._weights = read_weights(folder / WEIGHTS, record["bytes"])
        start, network = self._weights.ctypes.data, record["network"]
        layers = [structure(library.EncoderLayer, each, start) for each in network["layer"]]
        self._layers = (library.EncoderLayer * len(layers))(*layers)
        values = {**network, "layers": len(layers), "layer": self._layers}
        self.encoder = structure(library.Encoder, values, start)
        self._steps = [
            (structure(library.Dense, each["dense"], start), structure(library.Norm, each["norm"], start))
            for each in record["steps"]
        ]
        threads = threads if len(self._weights) > SMALL else 1
        self._reader = self._library.tsumugu_open_encoder(ctypes.byref(self.encoder), threads)
        if not self._reader:
            raise MemoryError

    def read(self, texts: Texts, *, first: bool = False) -> Floats:
        """What the last layer gives for the real tokens, text by text, `[tokens, hidden in whole panels]`.

        Args:
            first: only of the first token of each text that has any, `[texts, …]`; the last layer computes no other.
        """
        lengths = texts.real.sum(1)
        starts = np.concatenate(([0], np.cumsum(lengths[lengths > 0]))).astype(np.int32)
        states = np.empty((starts[-1], -(-self.encoder.hidden // PANEL) * PANEL), np.float32)
        firsts = np.empty((len(starts) - 1, states.shape[1]), np.float32) if first else None
        given = [
            None if each is None else np.ascontiguousarray(each[texts.real], np.int32)
            for each in (texts.ids, texts.positions, texts.segments)
        ]
        pointers = [None if each is None else each.ctypes.data for each in given]
        with self._alone:
            done = self._library.tsumugu_encode(
                *(self._reader, len(starts) - 1, starts.ctypes.data, *pointers, states.ctypes.data),
                None if firsts is None else firsts.ctypes.data,
            )
        if not done:
            raise MemoryError
        if firsts is None:
            return states
        return firsts if self.encoder.layers else states[starts[:-1]]

    def step(self, number: int, x: Floats) -> Floats:
        """One map of the head, `[rows, width]` -> `[rows, outputs in whole panels]`."""
        dense, norm = self._steps[number]
        x = np.ascontiguousarray(x)
        y = np.empty((len(x), dense.rows), np.float32)
        with self._alone:
            self._library.tsumugu_head(
                self._reader,
                *(ctypes.byref(dense), ctypes.byref(norm)),
                *(len(x), x.ctypes.data, x.shape[1], y.ctypes.data, y.shape[1]),
            )
        return y

    def __del__(self) -> None:
        if getattr(self, "_reader", None):
            self._library.tsumugu_close_encoder(self._reader)


@dataclass(eq=False)
class NativeEncoder(OnnxModel):
    """As `OnnxModel`, for an encoder. What a text gives does not depend on its company, bit for bit."""

    _reader: Reader | None = field(default=None, init=False, repr=False)

    @property
    def reader(self) -> Reader:
        """The network with its threads, opened when it is first needed."""
        if self._reader is None:
            self._reader = Reader(self.folder, self.interface, threads=self.threads or cores())
        return self._reader

    def open_session(self, *, batch: int, capacity: int) -> Any:
        """An encoder continues no texts."""
        raise InputError(
            f"a {self.family.name} model with head {self.head_name!r} does not generate text",
            where="model",
            mend="load a decoder such as smollm2",
        )

    def __call__(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> Output:
        texts = texts_of(self, input_ids, attention_mask, token_type_ids)
        steps = self.interface["steps"]
        first = self.head_name != "base" and bool(steps) and steps[0]["first"]
        states = self.reader.read(texts, first=first)
        answer = self._answer(states, texts, of_text=first)
        found: dict[str, Any]
        if self.head_name != "base":
            found = _answers(self.head_name, answer)
        else:
            found = {"last_hidden_state": _spread(states[:, : self.config.hidden_size], texts.real)}
            if steps:
                found["pooler_output"] = answer
        kind = format_of(input_ids)
        output = Output(**found)
        return output if kind is None else output.converted(kind)

    def pooled(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None, *, mode: PoolingMode) -> Floats:
        """One vector `[batch, dim]` of each text from the states of its tokens; arguments as of a call."""
        texts = texts_of(self, input_ids, attention_mask, token_type_ids)
        lengths = texts.real.sum(1)
        states = self.reader.read(texts, first=mode == "cls")[:, : self.config.hidden_size]
        if mode == "cls":
            return _spread(states, lengths > 0)
        there = lengths > 0
        ends = np.cumsum(lengths[there])
        pieces = np.split(states, ends[:-1]) if len(ends) else []
        match mode:
            case "last":
                found = [piece[-1] for piece in pieces]
            case "max":
                found = [piece.max(0) for piece in pieces]
            case "mean":
                found = [piece.sum(0) / np.float32(len(piece)) for piece in pieces]
            case "mean_sqrt_len":
                found = [piece.sum(0) / np.sqrt(np.float32(len(piece))) for piece in pieces]
        return _spread(np.reshape(found, (-1, states.shape[1])), there)

    def _answer(self, x: Floats, texts: Texts, *, of_text: bool) -> Floats:
        """What the head gives: `[batch, time, outputs]`, or `[batch, outputs]` of whole texts.

        Args:
            of_text: states are those of first tokens already.
        """
        steps, lengths = self.interface["steps"], texts.real.sum(1)
        there = lengths > 0
        for number, step in enumerate(steps):
            if step["first"] and not of_text:
                x, of_text = x[(np.cumsum(lengths) - lengths)[there]], True
            x = self.reader.step(number, x)
        if not steps:
            return x
        x = x[:, : steps[-1]["outputs"]]
        return _spread(x, there) if of_text else _spread(x, texts.real)


def _answers(head: str, answer: Floats) -> dict[str, Any]:
    """By the names of the torch output."""
    if head == "question-answering":
        return {"start_logits": answer[..., 0], "end_logits": answer[..., 1]}
    return {"logits": answer[..., 0] if head == "replaced-token" else answer}


def _spread(values: Floats, real: NDArray[np.bool_]) -> Floats:
    """Values where something is real, and 0 elsewhere."""
    spread = np.zeros((*real.shape, values.shape[-1]), np.float32)
    spread[real] = values
    return spread
