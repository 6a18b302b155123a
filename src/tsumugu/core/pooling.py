"""How the states of a text's tokens become one vector: the ways by name, and as NumPy computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

PoolingMode = Literal["mean", "cls", "max", "last", "mean_sqrt_len"]
POOLING_MODES: tuple[str, ...] = get_args(PoolingMode)


def pool(states: Floats, real: NDArray[np.int64], mode: PoolingMode = "mean") -> Floats:
    """`tsumugu.blocks.heads.pool` for arrays: states `[batch, time, dim]` and what is real `[batch, time]`."""
    import numpy as np

    rows, weights = np.arange(len(states)), real.astype(np.float32)
    counts = np.maximum(weights.sum(1), np.float32(1e-9))[:, None]
    found: Floats
    match mode:
        case "cls":
            found = states[rows, (real != 0).argmax(1)]
        case "max":
            found = np.where(real[..., None] != 0, states, np.float32("-inf")).max(1)
        case "last":
            found = states[rows, ((real != 0) * np.arange(real.shape[1])).argmax(1)]
        case "mean":
            found = (weights[:, None] @ states)[:, 0] / counts
        case "mean_sqrt_len":
            found = (weights[:, None] @ states)[:, 0] / np.sqrt(counts)
    return found
