"""Vectors as points on a plane: along their principal axes, or so that neighbours stay neighbours.

Principal axes keep distances as far as two axes can. UMAP and t-SNE keep who is near whom: groups show that the
principal axes lay over each other, but how far groups lie apart, how large they are and how an axis runs mean nothing.
Both measure by the cosine, as vectors of texts are compared. With the same seed the same vectors give the same points.

Sources: Pearson 1901, "On lines and planes of closest fit to systems of points in space"; McInnes, Healy and Melville
2018, "UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction"; van der Maaten and Hinton 2008,
"Visualizing Data using t-SNE".
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from tsumugu.core.errors import InputError, MissingExtraError, did_you_mean

Points = npt.NDArray[np.float64]
"""`[n, 2]`."""
Projection = Literal["pca", "umap", "tsne"]
PROJECTIONS: tuple[str, ...] = get_args(Projection)
_LEAST = 5


@dataclass(frozen=True)
class Plane:
    """Points `[n, 2]`, and what stands at the two axes."""

    points: Points
    axes: tuple[str, str]


def project(vectors: npt.NDArray[Any], way: str = "pca", *, neighbours: int = 15, seed: int = 0) -> Plane:
    """Vectors `[n, dim]` on a plane.

    Args:
        way: pca, umap or tsne.
        neighbours: of each point that UMAP keeps near; of t-SNE the perplexity, which is the same in kind. Fewer where
            there are fewer points.
        seed: of UMAP and t-SNE.

    Raises:
        InputError: no such way, or too few vectors for it.
        MissingExtraError: umap-learn or scikit-learn is not installed.
    """
    if way not in PROJECTIONS:
        raise InputError(f"unknown projection {way!r}", where="projection", mend=did_you_mean(way, PROJECTIONS))
    if way == "pca":
        if len(vectors) < 2:
            raise InputError("one vector is no picture", mend="give at least two texts")
        points, shares = principal(vectors)
        return Plane(points, (f"first axis ({shares[0]:.0%} of the variance)", f"second axis ({shares[1]:.0%})"))
    if len(vectors) < _LEAST:
        raise InputError(f"{len(vectors)} vectors have no neighbourhoods; {_LEAST} at least", mend="or project by pca")
    if neighbours < 2:
        raise InputError(f"{neighbours} neighbours are too few", where="neighbours", mend="at least 2")
    near = min(neighbours, (len(vectors) - 1) // (1 if way == "umap" else 3) or 1)
    ways: dict[str, Callable[..., Points]] = {"umap": _umap, "tsne": _tsne}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn of settings that are meant
        points = ways[way](vectors.astype(np.float32), near, seed)
    name, what = ("UMAP", "neighbours") if way == "umap" else ("t-SNE", "perplexity")
    return Plane(points - points.mean(0), (f"{name}, {what} {near}, seed {seed}", ""))


def principal(vectors: npt.NDArray[Any]) -> tuple[Points, npt.NDArray[np.float64]]:
    """Points `[n, 2]` on the two axes along which vectors `[n, dim]` vary most, and the shares of variance of these.

    The largest coordinate on each axis is positive, so that the same vectors give the same picture.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    found = min(2, len(values))
    points[:, :found] = left[:, :found] * values[:found]
    signs = np.sign(points[np.abs(points).argmax(0), [0, 1]])
    shares = np.zeros(2)
    total = (values**2).sum()
    if total > 0:
        shares[:found] = values[:found] ** 2 / total
    return points * np.where(signs == 0, 1, signs), shares


def _umap(vectors: npt.NDArray[np.float32], neighbours: int, seed: int) -> Points:
    hidden = sys.modules.get("tensorflow")
    if hidden is None:
        # umap looks for TensorFlow, which takes half a minute to load and has no part in this.
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        from umap import UMAP
    except ImportError:
        raise MissingExtraError("umap-learn", extra="umap", purpose="projecting by UMAP") from None
    finally:
        if hidden is None:
            del sys.modules["tensorflow"]
    way = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(way.fit_transform(vectors), np.float64)


def _tsne(vectors: npt.NDArray[np.float32], neighbours: int, seed: int) -> Points:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise MissingExtraError("scikit-learn", extra="eval", purpose="projecting by t-SNE") from None
    way = TSNE(perplexity=neighbours, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(way.fit_transform(vectors), np.float64)
