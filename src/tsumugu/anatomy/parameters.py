"""What the tensors of a checkpoint are: how many numbers, in which parts and types, how large, how alike, how exact.

Tensors are read one after the other, so that a model needs no more memory than its largest tensor, twice.

Sources: effective rank: Roy and Vetterli 2007, "The effective rank: A measure of effective dimensionality"; stable
rank: Rudelson and Vershynin 2007, "Sampling from large matrices"; the error of rounding to a grid of step d, uniform
in [-d/2, d/2]: Widrow and Kollár 2008, "Quantization Noise", section 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsumugu.checkpoints.entries import TensorEntry
from tsumugu.checkpoints.source import Uint8

WIDEST_SPECTRUM = 2048
"""Columns (or rows, whichever are fewer) up to which singular values are found: the cost grows with the cube."""
SPECTRUM_POINTS = 33
_CHUNK = 1 << 22

PARTS = ("embeddings", "attention", "cross-attention", "feed-forward", "norms", "positions", "head", "other")
_FOREIGN = (
    ("norms", r"(norm|ln_\w+|ln\d?|layernorm)\.(weight|bias|gamma|beta)$"),
    ("head", r"^(output|lm_head|score|classifier|cls|pooler|qa_outputs)\b|\.(pooler|classifier)\."),
    ("embeddings", r"embed|wte|wpe|token_embd|position_embd|shared\.weight"),
    ("attention", r"attn|attention"),
    ("feed-forward", r"mlp|ffn|feed_forward|intermediate|fc\d|dense"),
)
"""The part that a tensor of an unknown family is most likely of, by its name."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix.

    Attributes:
        largest, smallest: of them.
        stable_rank: the squared Frobenius norm over the squared largest one.
        effective_rank: e to the entropy of their shares.
        points: 33 of them, evenly spaced from the largest to the smallest.
    """

    largest: float
    smallest: float
    stable_rank: float
    effective_rank: float
    points: tuple[float, ...]


@dataclass(frozen=True)
class Rounding:
    """How far quantised values may be from those they stand for.

    Attributes:
        bits: stored for each number.
        expected: the root mean square error that a grid of the blocks' steps has on average, over that of the values;
            None where a block does not write its step down.
        measured: the same against exact values, where those are given.
    """

    bits: float
    expected: float | None
    measured: float | None = None


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of a checkpoint.

    Attributes:
        name: as the file has it; `ours`: what the family calls it.
        norm: Frobenius; mean, std, low, high: over all numbers.
        zeros, broken: how many are 0, and how many are not finite.
        zero_rows, repeated_rows: rows of a matrix that are 0 throughout, and that equal an earlier one.
    """

    name: str
    ours: tuple[str, ...]
    part: str
    layer: str | None
    shape: tuple[int, ...]
    storage: str
    numel: int
    bytes: int
    parameter: bool
    norm: float
    mean: float
    std: float
    low: float
    high: float
    zeros: int
    broken: int
    zero_rows: int = 0
    repeated_rows: int = 0
    spectrum: Spectrum | None = None
    rounding: Rounding | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; what is absent is left out."""
        found = {key: value for key, value in asdict(self).items() if value is not None}
        return {
            key: None if isinstance(each, float) and not math.isfinite(each) else each for key, each in found.items()
        }


def look_at(
    entries: Mapping[str, TensorEntry],
    names: Mapping[str, tuple[str, ...]],
    *,
    spectra: bool = True,
    exact: Mapping[str, Tensor] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[TensorFacts]:
    """The facts of every tensor, in the file's order.

    Args:
        entries: of a checkpoint.
        names: the file's names -> ours, for those that the family knows.
        spectra: find singular values, of matrices of up to 2,048 columns or rows.
        exact: by the file's names, what quantised tensors stand for.
        progress: called with the name of each tensor that is done.
    """
    found = []
    for name, entry in entries.items():
        ours = names.get(name, ())
        found.append(_facts(entry, ours, spectra=spectra, exact=None if exact is None else exact.get(name)))
        if progress is not None:
            progress(name)
    return found


def part_of(name: str, ours: tuple[str, ...]) -> str:
    """Which part of a network a tensor belongs to: by our name if there is one, else by the look of the file's."""
    if not ours:
        return next((part for part, pattern in _FOREIGN if re.search(pattern, name)), "other")
    module = ours[0].rpartition(".")[0]
    if module.endswith("norm"):
        return "norms"
    for part, words in (
        ("cross-attention", ("cross_attention",)),
        ("attention", ("attention",)),
        ("feed-forward", ("feed_forward",)),
        ("embeddings", ("embeddings", "generator_embeddings")),
        ("head", ("head", "pooler", "next_sentence", "discriminator_head")),
    ):
        if any(word in module.split(".") for word in words):
            return part
    return "positions" if "positions" in module else "other"


def layer_of(name: str, ours: tuple[str, ...]) -> str | None:
    """The layer of a tensor, such as `decoder 3`; None outside of layers."""
    found = re.match(r"([\w.]+)\.layers\.(\d+)\.", ours[0]) if ours else re.search(r"(\w+)\.(\d+)\.", name)
    return f"{found[1]} {found[2]}" if found else None


def _facts(entry: TensorEntry, ours: tuple[str, ...], *, spectra: bool, exact: Tensor | None) -> TensorFacts:
    tensor = entry.read()
    floating = tensor.dtype.is_floating_point
    sums = _sums(tensor)
    count = max(entry.numel, 1)
    mean = sums["sum"] / count
    rows = tensor.dim() == 2 and floating
    return TensorFacts(
        name=entry.name,
        ours=ours,
        part=part_of(entry.name, ours),
        layer=layer_of(entry.name, ours),
        shape=entry.shape,
        storage=entry.storage,
        numel=entry.numel,
        bytes=entry.data.length,
        parameter=floating,
        norm=math.sqrt(sums["squares"]),
        mean=mean,
        std=math.sqrt(max(sums["squares"] / count - mean**2, 0.0)),
        low=sums["low"],
        high=sums["high"],
        zeros=int(sums["zeros"]),
        broken=int(sums["broken"]),
        zero_rows=int((~tensor.ne(0).any(dim=1)).sum()) if rows else 0,
        repeated_rows=_repeated_rows(tensor) if rows else 0,
        spectrum=_spectrum(tensor) if rows and spectra and not sums["broken"] else None,
        rounding=_rounding(entry, tensor, sums["squares"], exact) if entry.form.unit > 1 else None,
    )


def _sums(tensor: Tensor) -> dict[str, float]:
    """Sums over all finite numbers in float64, a piece at a time."""
    found = dict.fromkeys(("sum", "squares", "zeros", "broken"), 0.0)
    found["low"], found["high"] = math.inf, -math.inf
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        wide = flat[start : start + _CHUNK].double()
        finite = wide.isfinite()
        if not bool(finite.all()):
            found["broken"] += float((~finite).sum())
            wide = wide[finite]
        if wide.numel():
            found["sum"] += float(wide.sum())
            found["squares"] += float(wide.square().sum())
            found["zeros"] += float((wide == 0).sum())
            found["low"] = min(found["low"], float(wide.min()))
            found["high"] = max(found["high"], float(wide.max()))
    if not math.isfinite(found["low"]):
        found["low"] = found["high"] = math.nan
    return found


def _repeated_rows(tensor: Tensor) -> int:
    """Rows that equal one before them, bit for bit (0 and -0 count as equal)."""
    seen: set[bytes] = set()
    for start in range(0, len(tensor), 4096):
        rows = (tensor[start : start + 4096].float() + 0.0).contiguous().numpy()
        seen.update(row.tobytes() for row in rows)
    return len(tensor) - len(seen)


def _spectrum(tensor: Tensor) -> Spectrum | None:
    """By the eigenvalues of the smaller Gram matrix in float64: exact to 1e-8 of the largest."""
    if not 1 < min(tensor.shape) <= WIDEST_SPECTRUM:
        return None
    tall = tensor if tensor.shape[0] >= tensor.shape[1] else tensor.t()
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for start in range(0, len(tall), 8192):
        wide = tall[start : start + 8192].double()
        gram += wide.t() @ wide
    squares = torch.linalg.eigvalsh(gram).clamp(min=0).flip(0)
    values = squares.sqrt()
    total, largest = float(squares.sum()), float(values[0])
    if largest == 0:
        return Spectrum(0.0, 0.0, 0.0, 0.0, (0.0,) * SPECTRUM_POINTS)
    shares = values / values.sum()
    entropy = -float(torch.special.xlogy(shares, shares).sum())
    where = torch.linspace(0, len(values) - 1, SPECTRUM_POINTS, dtype=torch.float64).round().long()
    points = tuple(float(each) for each in values[where])
    return Spectrum(largest, float(values[-1]), total / largest**2, math.exp(entropy), points)


def _rounding(entry: TensorEntry, tensor: Tensor, squares: float, exact: Tensor | None) -> Rounding:
    steps = _steps(entry)
    expected = measured = None
    if steps is not None and squares:
        mean_square = float(np.square(steps.astype(np.float64)).mean()) / 12
        expected = math.sqrt(mean_square * entry.numel / squares)
    if exact is not None and exact.shape == tensor.shape:
        error = (tensor.double() - exact.double()).square().sum()
        measured = math.sqrt(float(error / exact.double().square().sum().clamp(min=1e-300)))
    return Rounding(8 * entry.form.size / entry.form.unit, expected, measured)


def _steps(entry: TensorEntry) -> np.ndarray[Any, Any] | None:
    """The step of each block's grid, `[blocks]`, where a block begins with it as float16.

    Source: ggml's block_q4_0, block_q4_1, block_q5_0, block_q5_1 and block_q8_0, whose first field is the scale.
    """
    if entry.storage not in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        return None
    blocks: Uint8 = entry.raw().reshape(-1, entry.form.size)
    return np.abs(np.ascontiguousarray(blocks[:, :2]).view("<f2")[:, 0].astype(np.float32))
