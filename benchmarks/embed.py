"""Sentences to vectors, whole and in 8 bits, against sentence-transformers and plain ONNX Runtime on the same weights.

Lengths vary as in real text. Plain ONNX Runtime runs the graph that `tg.export` writes, over batches of 32 sorted by
length, as sentence-transformers does; its own optimisations are on. The vectors are compared first; where the shared
data are, the likeness of captions too.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Report
from benchmarks.workers import THREADS, clock

CAPTIONS = Path(__file__).parents[2] / "shared" / "data" / "stsb_captions_en"
LEAST = {"fp32": 0.99999, "int8": 0.99}
"""Cosines with the vectors of the peers."""
LOST = 0.005
"""How much Spearman's rank correlation with people's judgements may fall."""
TOGETHER = 32


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
    import torch
    from sentence_transformers import SentenceTransformer

    import tsumugu as tg

    torch.set_num_threads(THREADS)
    texts = sentences(32 if report.smoke else 1000)
    theirs = SentenceTransformer(str(tg.pull("minilm").path), device="cpu")
    peers = {
        "sentence-transformers": partial(theirs.encode, batch_size=TOGETHER, show_progress_bar=False),
        "onnxruntime": plain_runtime(),
    }
    vectors = {peer: encode(texts[:200]) for peer, encode in peers.items()}
    whole = spearman(peers["sentence-transformers"])
    for name, quantize in (("fp32", None), ("int8", "int8")):
        model = tg.load_model("minilm", engine="auto", quantize=quantize, threads=THREADS)
        ours = tg.pipeline("sentence-embedding", model=model)
        mine = ours.encode(texts[:200])
        cosine = min(float((mine * each).sum(-1).min()) for each in vectors.values())
        assert cosine >= LEAST[name], f"the vectors differ: cosine {cosine}"
        quality = f"cosines from {cosine:.5f}"
        if whole is not None:
            likeness = spearman(ours.encode)
            assert likeness is not None
            assert likeness >= whole - LOST, f"the likeness of captions fell from {whole} to {likeness}"
            quality += f", captions {likeness:.4f} for {whole:.4f}"
        for peer, encode in peers.items():
            report.compare(
                f"MiniLM-L6 {name}, {len(texts)} sentences",
                partial(taken, ours.encode, texts),
                partial(taken, encode, texts),
                peer_name=f"{peer} fp32",
                limit=f"arithmetic of the matrix products; {quality}",
            )


def taken(encode: Callable[[list[str]], Any], texts: list[str]) -> float:
    """Seconds; on one thread the process's own."""
    began = clock()
    encode(texts)
    return clock() - began


def plain_runtime() -> Callable[[list[str]], Any]:
    """Texts to vectors of length 1 by the exported graph and ONNX Runtime alone."""
    import numpy as np
    import onnxruntime

    import tsumugu as tg

    with tempfile.TemporaryDirectory() as folder:
        tg.export("minilm", Path(folder) / "graph", to="onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(Path(folder) / "graph" / "model.onnx", options)
    tokenizer = tg.load_tokenizer("minilm")
    asked = {each.name for each in session.get_inputs()}

    def encode(texts: list[str]) -> Any:
        rows = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        found = None
        for start in range(0, len(order), TOGETHER):
            some = order[start : start + TOGETHER]
            ids = np.zeros((len(some), len(rows[some[0]])), np.int64)
            for place, row in enumerate(some):
                ids[place, : len(rows[row])] = rows[row]
            mask = (ids != 0).astype(np.int64)
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            states = session.run(["last_hidden_state"], {name: given[name] for name in asked})[0]
            found = np.empty((len(rows), states.shape[-1]), np.float32) if found is None else found
            found[some] = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        assert found is not None
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return encode


def spearman(encode: Callable[[list[str]], Any]) -> float | None:
    """Rank correlation of cosines with how alike people find two captions; None where the data are not there."""
    from scipy.stats import spearmanr

    if not CAPTIONS.is_dir():
        return None
    lines = (CAPTIONS / "validation.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    first, second = (encode([row[name] for row in rows]) for name in ("sentence1", "sentence2"))
    return float(spearmanr((first * second).sum(-1), [row["score"] for row in rows]).statistic)
