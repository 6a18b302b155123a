"""Sentences to vectors, against sentence-transformers on the same weights; lengths vary as in real text."""

from __future__ import annotations

import pydoc_data.topics
import random

from benchmarks.harness import Report, seconds


def sentences(count: int) -> list[str]:
    """Stretches of 5 to 120 words of Python's own documentation."""
    words = [word for word in " ".join(pydoc_data.topics.topics.values()).split() if word.isalpha()]
    chance = random.Random(0)
    result = []
    for _ in range(count):
        length = chance.randint(5, 120)
        start = chance.randrange(len(words) - length)
        result.append(" ".join(words[start : start + length]))
    return result


def run(report: Report) -> None:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    import tsumugu as tg

    texts = sentences(32 if report.smoke else 400)
    ours = tg.pipeline("sentence-embedding", model="minilm")
    theirs = SentenceTransformer(str(tg.pull("minilm").path), device="cpu")
    mine, other = ours.encode(texts[:32]), theirs.encode(texts[:32])
    cosine = (mine * other).sum(-1) / np.linalg.norm(mine, axis=-1) / np.linalg.norm(other, axis=-1)
    assert cosine.min() >= 0.99999, f"the vectors differ: cosine {cosine.min()}"
    report.compare(
        f"MiniLM-L6 fp32, {len(texts)} sentences",
        lambda: seconds(lambda: ours.encode(texts)),
        lambda: seconds(lambda: theirs.encode(texts, batch_size=32, show_progress_bar=False)),
        peer_name="sentence-transformers",
        limit="arithmetic of the matrix products",
    )
