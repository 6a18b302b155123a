"""Where a token stands: learned and sinusoidal vectors, rotations of queries and keys, relative biases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tsumugu.blocks.embeddings import Embedding
from tsumugu.core.config import Config, limits


class LearnedPositions(Embedding):
    """One trained vector for each position. `[batch, time]` of positions -> `[batch, time, dim]`.

    Source: Gehring et al. 2017, Convolutional Sequence to Sequence Learning, section 3.1.
    """


class SinusoidalPositions(nn.Module):
    """Fixed sines and cosines, sines in the even columns. `[batch, time]` of positions -> `[batch, time, dim]`.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.5.
    """

    def __init__(self, hidden_size: int, *, base: float = 10000.0) -> None:
        super().__init__()
        self.hidden_size, self.base = hidden_size, base

    def forward(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        even = torch.arange(0, self.hidden_size, 2, device=positions.device, dtype=wide)
        angles = positions[..., None].to(wide) * torch.exp(even * (-math.log(self.base) / self.hidden_size))
        both = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
        return both[..., : self.hidden_size].to(dtype)


class RopeScaling(Config):
    """How rotary frequencies are stretched for texts longer than those of pre-training.

    `linear` divides every frequency by `factor` (Chen et al. 2023, Extending Context Window, section 3.2). `llama3`
    divides the long waves only and blends between two wavelengths (Llama 3.1 model card and release code, 2024).
    """


@dataclass(frozen=True, kw_only=True)
class LinearScaling(RopeScaling):
    """Every frequency divided by `factor`."""

    kind: Literal["linear"] = "linear"
    factor: float = limits(1.0, low=1.0)

    def scale(self, frequencies: Tensor) -> Tensor:
        """`[dim / 2]` -> `[dim / 2]`, radians for each position."""
        return frequencies / self.factor


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling(RopeScaling):
    """Long waves divided by `factor`, short ones kept, those between blended."""

    kind: Literal["llama3"] = "llama3"
    factor: float = limits(8.0, low=1.0)
    low_freq_factor: float = limits(1.0, low=0.0)
    high_freq_factor: float = limits(4.0, low=0.0)
    original_max_positions: int = limits(8192, low=1)

    def check(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            self.refuse("high_freq_factor", "must be greater than low_freq_factor")

    def scale(self, frequencies: Tensor) -> Tensor:
        """`[dim / 2]` -> `[dim / 2]`, radians for each position."""
        wavelength = 2 * math.pi / frequencies
        share = (self.original_max_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (1 - share) * frequencies / self.factor + share * frequencies
        long = wavelength * self.low_freq_factor > self.original_max_positions
        short = wavelength * self.high_freq_factor < self.original_max_positions
        return torch.where(long, frequencies / self.factor, torch.where(short, frequencies, blended))


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of one forward pass, `[batch|1, 1, time, head_dim]`, shared by all layers."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate queries or keys `[batch, heads, time, head_dim]`: dimension i turns with i + head_dim / 2."""
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat((-second, first), dim=-1) * self.sin


class RotaryPositions(nn.Module):
    """Rotary position embedding: positions `[batch|1, time]` -> `Rotation`.

    Tables are made once, in float32 (float64 for a float64 model), grow as needed, and are no parameters.

    Source: Su et al. 2021, RoFormer, section 3.2; the half-split layout is that of GPT-NeoX and LLaMA on the hub.
    """

    def __init__(
        self, head_dim: int, *, theta: float = 10000.0, scaling: LinearScaling | Llama3Scaling | None = None
    ) -> None:
        super().__init__()
        self.head_dim, self.theta, self.scaling = head_dim, theta, scaling
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def frequencies(self, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Radians for each position, `[head_dim / 2]`."""
        exponent = torch.arange(0, self.head_dim, 2, device=device).to(dtype) / self.head_dim
        frequencies = 1.0 / (self.theta**exponent)
        return frequencies if self.scaling is None else self.scaling.scale(frequencies)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        if torch.compiler.is_compiling():  # how long a table must be depends on values, which a graph does not know
            cos, sin = self._turned(positions, dtype)
            return Rotation(cos[:, None], sin[:, None])
        cos, sin = self._table(int(positions.max()) + 1, dtype, positions.device)
        return Rotation(cos[positions][:, None], sin[positions][:, None])

    def _table(self, length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        known = self._tables.get((device, dtype))
        if known is not None and len(known[0]) >= length:
            return known
        length = max(64, 1 << (length - 1).bit_length())
        with torch.inference_mode(False):
            table = self._turned(torch.arange(length, device=device), dtype)
        self._tables[device, dtype] = table
        return table

    def _turned(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines at positions `[...]`, `[..., head_dim]` each."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        angles = positions.to(wide)[..., None] * self.frequencies(dtype=wide, device=positions.device)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def extra_repr(self) -> str:
        return f"{self.head_dim}, theta={self.theta:g}, scaling={self.scaling}"


class RelativePositions(nn.Module):
    """T5 bias: one number for each head and bucket of distance. Gives `[1, heads, queries, keys]` for `Mask.with_bias`.

    Half of the buckets are exact distances, the rest grow logarithmically up to `max_distance`.

    Source: Raffel et al. 2020, Exploring the Limits of Transfer Learning (T5), section 2.1.
    """

    def __init__(
        self, num_heads: int, *, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
    ) -> None:
        super().__init__()
        self.buckets, self.max_distance, self.bidirectional = buckets, max_distance, bidirectional
        self.embedding = Embedding(buckets, num_heads)

    def forward(self, queries: int, keys: int, *, offset: int = 0) -> Tensor:
        device = self.embedding.weight.device
        query = torch.arange(offset, offset + queries, device=device)
        distance = torch.arange(keys, device=device)[None, :] - query[:, None]
        return self.embedding(self.bucket(distance)).permute(2, 0, 1)[None]

    def bucket(self, distance: Tensor) -> Tensor:
        """Which number of a head is for a distance from query to key, `[...]` -> `[...]`."""
        buckets, base = self.buckets, torch.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            base = (distance > 0).long() * buckets
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = buckets // 2
        scale = (buckets - exact) / math.log(self.max_distance / exact)
        log = exact + (torch.log(distance.clamp(min=1).float() / exact) * scale).long()
        return base + torch.where(distance < exact, distance, log.clamp(max=buckets - 1))
