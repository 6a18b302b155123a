"""Whole texts read by a compiled encoder: padding anywhere in, padding on the right for the graph, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tsumugu.core.errors import InputError
from tsumugu.core.output import Output
from tsumugu.core.tensors import to_numpy

if TYPE_CHECKING:
    from tsumugu.engines.onnx_model import OnnxModel

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """Texts as an encoder reads them, all `[batch, time]`.

    Attributes:
        ids: of tokens.
        real: whether a token is one, and no padding.
        positions: where each token stands; None where that is not asked for.
        segments: which of two texts each is from; None where that is not asked for.
        last: the last token that is no padding; None where that is not asked for. `[batch]`.
    """

    ids: Ids
    real: NDArray[np.bool_]
    positions: Ids | None
    segments: Ids | None
    last: Ids | None = None


def texts_of(model: OnnxModel, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Texts:
    """What was handed to a compiled encoder; see `OnnxModel.__call__`."""
    ids = np.atleast_2d(to_numpy(input_ids))
    vocab = model.config.vocab_size
    if ids.ndim != 2 or ids.shape[1] == 0 or ids.dtype.kind not in "iu":
        raise InputError(
            f"expected whole numbers [batch, time], found {ids.dtype} {list(ids.shape)}", where="input_ids"
        )
    if ids.shape[1] > model.config.max_positions:
        raise InputError(
            f"{ids.shape[1]} tokens are more than the {model.config.max_positions} this model can read",
            where="input_ids",
            mend="truncate the text (truncation=True in the tokenizer)",
        )
    if ids.min() < 0 or ids.max() >= vocab:
        raise InputError(f"a token id is outside the vocabulary of {vocab}", where="input_ids")
    real = np.ones(ids.shape, bool) if attention_mask is None else _like(ids, attention_mask, "attention_mask") != 0
    positions = segments = None
    if model.interface["positions"] is not None:
        positions = _positions(ids, model.interface["positions"], model.config.pad_token_id)
    if model.interface["segments"]:
        segments = np.zeros_like(ids) if token_type_ids is None else _like(ids, token_type_ids, "token_type_ids")
        kinds = model.config.num_segments
        if segments.min() < 0 or segments.max() >= kinds:
            raise InputError(f"a segment is outside the {kinds} that the model knows", where="token_type_ids")
    last = None
    if model.interface.get("last"):
        shown = ids != model.config.pad_token_id if attention_mask is None else real
        last = (shown * np.arange(ids.shape[1])).argmax(1)
    return Texts(ids, real, positions, segments, last)


def read_texts(model: OnnxModel, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Output:
    """NumPy output of a compiled encoder; see `OnnxModel.__call__`."""
    texts = texts_of(model, input_ids, attention_mask, token_type_ids)
    ids, real = texts.ids, texts.real
    given = {"input_ids": ids, "position_ids": texts.positions, "token_type_ids": texts.segments}
    feeds = {name: array.astype(np.int64, copy=False) for name, array in given.items() if array is not None}
    lengths = real.sum(1)
    order = None
    if not (real == (np.arange(ids.shape[1]) < lengths[:, None])).all():
        order = np.argsort(~real, axis=1, kind="stable")
        _require_whole(model, real)
        feeds = {name: np.take_along_axis(array, order, axis=1) for name, array in feeds.items()}
    if texts.last is not None:
        last = texts.last if order is None else np.maximum(lengths, 1) - 1
        feeds["last"] = last[:, None].astype(np.int64)
    # A text of padding alone sees itself; what it gives means nothing on any engine.
    feeds["lengths"] = (np.maximum(lengths, 1) - 1).astype(np.int32)
    feeds["total"] = np.array(ids.shape[1], np.int32)
    names = [each.name for each in model.session.get_outputs()]
    found = dict(zip(names, model.session.run(names, feeds), strict=True))
    if order is not None:
        back = np.argsort(order, axis=1)
        for name, array in found.items():
            if array.ndim == 3 and array.shape[1] == ids.shape[1]:
                found[name] = np.take_along_axis(array, back[..., None], axis=1)
    if "spans" in found:
        spans = found.pop("spans")
        found |= {"start_logits": spans[..., 0], "end_logits": spans[..., 1]}
    return Output(**found)


def _require_whole(model: OnnxModel, real: NDArray[np.bool_]) -> None:
    """Where tokens only know how far apart they are, what is hidden between them would be lost."""
    steps = np.diff(real.astype(np.int8), axis=1, prepend=0)
    if model.interface.get("causal") and model.interface["positions"] is None and ((steps == 1).sum(1) > 1).any():
        what = "padding lies between the tokens of a text"
        raise InputError(what, where="attention_mask", mend="take it out, or choose engine='torch'")


def _positions(ids: Ids, begin: int, pad: int | None) -> Ids:
    """Counted from 0, or, where they begin behind the padding token's own, over tokens that are none."""
    if begin == 0:
        return np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape)
    counted = (ids != pad).astype(np.int64)
    positions: Ids = counted.cumsum(1) * counted + begin - 1
    return positions


def _like(ids: Ids, given: Any, name: str) -> NDArray[Any]:
    array = np.atleast_2d(to_numpy(given))
    if array.shape != ids.shape:
        raise InputError(f"shape {list(array.shape)} is not {list(ids.shape)}, that of input_ids", where=name)
    return array
