"""What fewer bits cost: perplexity and size of SmolLM2-135M, rounded to the nearest and by calibration texts.

The file that the model comes in has 4-bit numbers already, which some grid would give back exactly. So channels are
first multiplied by factors from 0.8 to 1.25, and divided by them where they are read: the same function, with numbers
on no grid. Every row is measured on the native engine, as it is used; texts are WikiText-2, of which another part
calibrates, and the end of a novel, which is nothing like it. The table is printed as Markdown.
"""

from __future__ import annotations

import math
import os
import pydoc_data.topics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.harness import Report, shallow

SHARED = Path(__file__).parents[2] / "shared" / "data"
CALIBRATION = "wikitext2_small/validation.txt"
TEXTS = {"WikiText-2": "wikitext2_small/test.txt", "a novel": "gutenberg_en/test.txt"}
WINDOW = 512


def run(report: Report) -> None:
    import tsumugu as tg
    from tsumugu.engines.native.library import load_library
    from tsumugu.quantization.quantize import quantize

    load_library()
    windows, tokens = (2, 256) if report.smoke else (8, 8192)
    with tempfile.TemporaryDirectory() as name, patch.dict(os.environ):
        folder = Path(name)
        texts, calibration = texts_of(folder)
        tokenizer = tg.load_tokenizer("smollm2")
        source = off_the_grid(small=report.smoke)
        tg.save_model(source, folder / "model", tokenizer=tokenizer)
        os.environ["TSUMUGU_HOME"] = str(folder / "home")  # what is compiled of files that vanish is kept nowhere

        def rounded(bits: int, symmetric: bool, calibrated: bool) -> Callable[[Path], object]:
            given: dict[str, Any] = {"calibrate": calibration, "tokens": tokens} if calibrated else {}
            return lambda path: quantize(folder / "model", path, bits=bits, symmetric=symmetric, **given)

        rows: dict[str, Callable[[Path], object]] = {
            "float32": lambda path: tg.save_model(tg.load_model(folder / "model"), path, tokenizer=tokenizer),
            "Q8_0, nearest": rounded(8, True, False),
            "Q4_0, llama.cpp's rule": lambda path: by_the_peers_rule(folder / "model", path),
            "Q4_0, nearest": rounded(4, True, False),
            "Q4_0, GPTQ": rounded(4, True, True),
            "Q4_1, nearest": rounded(4, False, False),
            "Q4_1, GPTQ": rounded(4, False, True),
        }
        if report.smoke:
            rows = {each: rows[each] for each in ("float32", "Q4_0, llama.cpp's rule", "Q4_0, GPTQ")}
        print("| Weights | MB | " + " | ".join(f"{each}, perplexity | bits/byte" for each in texts) + " | made in |")
        print("|---" * (3 + 2 * len(texts)) + "|", flush=True)
        found = {}
        for row, write in rows.items():
            path = folder / "file.gguf"
            began = time.process_time()
            write(path)
            seconds = time.process_time() - began
            quantized = None if row == "float32" else "auto"
            model = tg.load_model(path, engine="native", quantize=quantized)
            scores = [measured(model, tokenizer, text, windows) for text in texts.values()]
            found[row] = scores[0][0]
            cells = " | ".join(f"{perplexity:.2f} | {bits:.3f}" for perplexity, bits in scores)
            print(f"| {row} | {path.stat().st_size / 1e6:.1f} | {cells} | {seconds:.0f} s |", flush=True)
    for kind in () if report.smoke else ("Q4_0", "Q4_1"):
        assert found[f"{kind}, GPTQ"] < found[f"{kind}, nearest"], "calibration made it worse"


def texts_of(folder: Path) -> tuple[dict[str, str], Path]:
    """What is read, and the file to calibrate by; where the shared texts are not at hand, Python's documentation."""
    if SHARED.exists():
        return {name: (SHARED / path).read_text("utf-8") for name, path in TEXTS.items()}, SHARED / CALIBRATION
    topics = list(pydoc_data.topics.topics.values())
    (folder / "calibration.txt").write_text("\n".join(topics[::2]), "utf-8")
    return {"documentation": "\n".join(topics[1::2])}, folder / "calibration.txt"


def off_the_grid(*, small: bool) -> Any:
    """The model with its channels scaled: the same function; a small one for a quick look."""
    import torch

    import tsumugu as tg

    model: Any = tg.load_model("smollm2")
    model = shallow(model) if small else model
    generator = torch.Generator().manual_seed(0)

    def factors(count: int) -> torch.Tensor:
        return torch.exp((torch.rand(count, generator=generator) * 2 - 1) * math.log(1.25))

    with torch.no_grad():
        for each in model.decoder.layers:
            attention, forward = each.attention, each.feed_forward
            readers = (attention.query, attention.key, attention.value), (forward.gate, forward.up)
            for norm, linears in zip((each.attention_norm, each.feed_forward_norm), readers, strict=True):
                by = factors(len(norm.weight))
                norm.weight *= by
                for linear in linears:
                    linear.weight /= by
            by = factors(forward.down.in_features)
            forward.up.weight *= by[:, None]
            forward.down.weight /= by
            shared = attention.num_heads // attention.num_kv_heads
            by = factors(attention.value.out_features)
            attention.value.weight *= by[:, None]
            attention.output.weight /= by.view(-1, 1, attention.head_dim).expand(-1, shared, -1).reshape(-1)
    return model


def by_the_peers_rule(source: Path, path: Path) -> None:
    """Q4_0 as the package of the format rounds it, the matrix over the vocabulary in Q8_0."""
    import gguf
    import torch

    import tsumugu as tg
    from tsumugu.checkpoints.gguf_write import write_gguf
    from tsumugu.text.gguf import to_gguf_metadata

    model: Any = tg.load_model(source)
    form, tokenizer = model.family.gguf, tg.load_tokenizer(source)
    metadata = {**form.metadata(model.config), **to_gguf_metadata(tokenizer, model.config.vocab_size)}
    tensors = form.keymap(model.config).to_theirs({name: each.detach() for name, each in model.named_parameters()})
    kinds = {name: "Q4_0" for name, each in tensors.items() if each.dim() == 2 and "token_embd" not in name}
    for name in kinds:
        blocks = gguf.quantize(tensors[name].contiguous().numpy(), gguf.GGMLQuantizationType.Q4_0)
        tensors[name] = torch.from_numpy(blocks)
    write_gguf(path, metadata, tensors, storage="Q8_0", blocks=kinds)


def measured(model: Any, tokenizer: Any, text: str, count: int) -> tuple[float, float]:
    """Perplexity and bits for each byte over `count` windows, taken evenly from a text."""
    import numpy as np

    from tsumugu.corpus.encoding import encode_document
    from tsumugu.engines.session import open_session

    ids = encode_document(tokenizer, text)
    taken = WINDOW - 1
    nats, tokens, size = 0.0, 0, 0
    session: Any = open_session(model, batch=1, capacity=WINDOW)
    for at in (each * (len(ids) - taken) // max(count - 1, 1) for each in range(count)):
        window = ids[at : at + taken]
        session.begin(1)
        logits = session.extend([[tokenizer.bos_token_id, *window[:-1]]], every=True).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chosen = logits[np.arange(taken), window] - np.log(np.exp(logits).sum(-1))
        nats -= float(chosen.sum())
        tokens += taken
        size += len(tokenizer.decode(window).encode())
    return math.exp(nats / tokens), nats / math.log(2) / size
