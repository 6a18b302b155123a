"""A compiled decoder run by the kernels. Loads neither torch nor ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.engines.native.network import Engine
from tsumugu.engines.native.session import NativeSession
from tsumugu.engines.onnx_model import OnnxModel, cores


@dataclass(eq=False)
class NativeModel(OnnxModel):
    """As `OnnxModel`, for a decoder that writes text.

    Attributes:
        kv_cache: how keys and values of what was read are kept: float32 or int8.
    """

    kv_cache: str = field(default="float32", init=False)
    _engine: Engine | None = field(default=None, init=False, repr=False)

    @property
    def engine(self) -> Engine:
        """The network with its threads, opened when it is first needed."""
        if self._engine is None:
            threads = self.threads or cores()
            vocab = self.config.vocab_size
            network, bits = self.interface["network"], 8 if self.kv_cache == "int8" else 32
            self._engine = Engine(self.folder, network, vocab=vocab, threads=threads, cache_bits=bits)
        return self._engine

    def open_session(self, *, batch: int, capacity: int) -> Any:
        """Texts to be continued."""
        return NativeSession(self.engine, self.prefixes, batch=batch, capacity=min(capacity, self.config.max_positions))

    def __call__(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> Any:
        raise InputError("a compiled decoder only continues texts", where="model", mend="use tg.generate")
