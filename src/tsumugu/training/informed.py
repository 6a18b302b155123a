"""An informed start for encoders: first weights that know what the corpus tells in seconds.

From fresh weights an encoder that learns from hidden tokens stays for millions of tokens at how frequent each token is,
until its heads have found out where neighbours stand. Here token vectors come from counts of which tokens stand near
one another, positions are waves, and the heads of the first layer look at the neighbours from the beginning.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from tsumugu.blocks.attention import Attention
from tsumugu.checkpoints.atomic import new_file
from tsumugu.core.errors import CheckpointError
from tsumugu.corpus.shards import Corpus
from tsumugu.models.base import Model

WINDOW = 5
"""How far apart two tokens are counted."""
TOKENS = 4_000_000
"""How many tokens of the corpus are counted, at most."""
SPREAD = 0.08
"""The standard deviation of token vectors and of positions."""
SCORE = 12.0
"""What the neighbour's score is above that of other places: nearly all of the attention, in a row of hundreds."""
OFFSETS = (-1, 1, -2, 2, -3, 3, -4, 4)

Floats = npt.NDArray[np.float32]


def token_statistics(corpus: Corpus, size: int, *, seed: int) -> tuple[Floats, Floats]:
    """Vectors of tokens `[vocab, size]`, rows of length 1 or 0, and how often each token occurs, `[vocab]`.

    Tokens that stand near the same tokens get vectors of the same direction: the singular vectors of the positive
    pointwise mutual information of pairs within `WINDOW` tokens of one document, near ones counting more.

    Source: Levy, Goldberg & Dagan 2015, Improving Distributional Similarity with Lessons Learned from Word Embeddings,
    sections 2.2 and 3.3 (smoothed contexts, square roots of singular values); Halko, Martinsson & Tropp 2011, Finding
    Structure with Randomness, algorithm 4.4.
    """
    vocab, (ids, documents) = corpus.vocab_size, _read(corpus)
    keys, weights = [], []
    for apart in range(1, WINDOW + 1):
        near = documents[apart:] == documents[:-apart]
        pairs, times = np.unique(ids[:-apart][near] * vocab + ids[apart:][near], return_counts=True)
        keys += [pairs, pairs % vocab * vocab + pairs // vocab]
        weights += [times / apart] * 2
    pairs, places = np.unique(np.concatenate(keys), return_inverse=True)
    together = np.bincount(places, np.concatenate(weights))
    rows, columns = pairs // vocab, pairs % vocab
    marginal = np.bincount(rows, together, minlength=vocab)
    context = marginal**0.75
    expected = marginal[rows] * (context / max(context.sum(), 1e-12))[columns]
    information = np.log(together / expected)
    kept = information > 0
    indices = torch.from_numpy(np.stack((rows[kept], columns[kept])))
    values = torch.from_numpy(information[kept].astype(np.float32))
    matrix = torch.sparse_coo_tensor(indices, values, (vocab, vocab), check_invariants=True).coalesce()
    vectors = _singular_vectors(matrix, min(size, vocab), seed)
    lengths = vectors.norm(dim=1, keepdim=True)
    directions = torch.where(lengths > 1e-3, vectors / lengths.clamp(min=1e-3), 0.0)
    found = np.zeros((vocab, size), np.float32)
    found[:, : directions.shape[1]] = directions.numpy()
    return found, np.bincount(ids, minlength=vocab).astype(np.float32)


def _read(corpus: Corpus) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first tokens of the corpus and the document that each is from."""
    last = int(np.searchsorted(np.cumsum(corpus.lengths), TOKENS)) + 1
    parts = [corpus.document(number) for number in range(min(last, len(corpus)))]
    documents = np.repeat(np.arange(len(parts)), [len(each) for each in parts])
    return np.concatenate(parts).astype(np.int64)[:TOKENS], documents[:TOKENS]


def _singular_vectors(matrix: Tensor, size: int, seed: int) -> Tensor:
    """Left singular vectors times the roots of their values, `[rows, size]`."""
    generator = torch.Generator().manual_seed(seed)
    wide = min(size + 32, matrix.shape[1])
    flipped = matrix.T.coalesce()
    basis = torch.linalg.qr(torch.sparse.mm(matrix, torch.randn(matrix.shape[1], wide, generator=generator)))[0]
    for _ in range(3):
        basis = torch.linalg.qr(torch.sparse.mm(flipped, basis))[0]
        basis = torch.linalg.qr(torch.sparse.mm(matrix, basis))[0]
    left, values, _ = torch.linalg.svd(torch.sparse.mm(flipped, basis).T, full_matrices=False)
    return (basis @ left)[:, :size] * values[:size].sqrt()


def write_statistics(corpus: Corpus, size: int, path: Path, *, seed: int) -> None:
    """Keep `token_statistics` in a file, so that a run which is killed begins again with the same bits."""
    vectors, counts = token_statistics(corpus, size, seed=seed)
    with new_file(path) as partial:
        save_file({"vectors": vectors, "counts": counts}, partial)


@torch.no_grad()
def start_informed(model: Model, path: Path, *, seed: int) -> None:
    """Put the informed start into a fresh encoder with learned positions and a head for hidden tokens.

    Raises:
        CheckpointError: the file is broken.
    """
    weights = dict(model.named_parameters())
    token, position = weights["embeddings.token.weight"], weights["embeddings.position.weight"]
    try:
        found = load_file(path)
        vectors, counts = torch.from_numpy(found["vectors"]), torch.from_numpy(found["counts"])
        if vectors.shape != token.shape:
            raise ValueError("it is of another network")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"cannot be used ({error})", where=str(path), mend="delete it") from None
    seen = vectors.norm(dim=1, keepdim=True) > 0
    known = vectors * (SPREAD * math.sqrt(token.shape[1]))
    token.copy_(torch.where(seen, known, token.cpu() * (SPREAD / max(float(token.std()), 1e-6))))
    logarithms = (counts + 0.5).log()
    bias = weights.get("head.decoder.bias")
    if bias is not None:
        bias.copy_(logarithms - logarithms.mean())
    # Frequencies spread evenly up to half a turn a position: two positions are alike only where they are the same.
    half = position.shape[1] // 2
    turns = math.pi * (torch.arange(half, dtype=torch.float64) + 0.5) / half
    angles = torch.arange(position.shape[0], dtype=torch.float64)[:, None] * turns
    position.zero_()
    position[:, : 2 * half] = torch.cat((angles.cos(), angles.sin()), 1).to(position) * (SPREAD * math.sqrt(2))
    _look_at_neighbours(model, turns, seed)


def _look_at_neighbours(model: Model, turns: Tensor, seed: int) -> None:
    """Each head of the first layer compares positions, its own turned by so many places.

    A head's key holds some of the waves, its query the same, further by the offset: the product is the sum of cosines
    of their difference, which is greatest where it is 0.

    Source: in the manner of Trockman & Kolter 2023, Mimetic Initialization of Self-Attention Layers.
    """
    attention = model.get_submodule("encoder.layers.0.attention")
    assert isinstance(attention, Attention)
    heads, dim, half = attention.num_heads, attention.head_dim, len(turns)
    generator = torch.Generator().manual_seed(seed)
    width = 2 * half
    query, key = torch.zeros(heads, dim, width), torch.zeros(heads, dim, width)
    pairs = min(dim // 2, half)
    for head in range(heads):
        waves = torch.randperm(half, generator=generator)[:pairs]
        even = 2 * torch.arange(pairs)
        by = turns[waves] * OFFSETS[head % len(OFFSETS)]
        key[head, even, waves] = key[head, even + 1, half + waves] = 1.0
        query[head, even, waves] = query[head, even + 1, half + waves] = by.cos().float()
        query[head, even, half + waves], query[head, even + 1, waves] = -by.sin().float(), by.sin().float()
    query *= SCORE * math.sqrt(dim) / pairs
    for linear, made in ((attention.query, query), (attention.key, key)):
        linear.weight.zero_()
        linear.weight[:, :width] = made.flatten(0, 1).to(linear.weight)
