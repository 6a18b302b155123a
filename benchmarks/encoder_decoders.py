"""An encoder-decoder of t5-small's size on the quick engine, against our torch engine and the reference library.

The weights are random, so that nothing is downloaded; in float32 all three write the same tokens, by beams too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Report, seconds

WEIGHTS = {"float32": None, "8 bits": "int8", "4 bits": "int4"}
Ids = list[list[int]]
Write = Callable[[Ids, int, int], Ids]
"""Prompts, beams, tokens -> texts with the start token."""


def run(report: Report) -> None:
    import torch
    import transformers

    import tsumugu as tg

    tokens, long = (4, 64) if report.smoke else (32, 512)
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder), small=report.smoke)
        own = os.environ.get("TSUMUGU_HOME")
        os.environ["TSUMUGU_HOME"] = f"{folder}/home"
        try:
            quick = {bits: tg.load_model(folder, engine="onnx", quantize=kind) for bits, kind in WEIGHTS.items()}
        finally:
            os.environ.pop("TSUMUGU_HOME")
            os.environ.update({} if own is None else {"TSUMUGU_HOME": own})
        usual = tg.load_model(folder)
        theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
        works: dict[str, tuple[Ids, int, int]] = {
            f"first token after {long}": (prompts(long), 1, 1),
            f"{tokens} tokens": (prompts(long // 2), 1, tokens),
            f"{tokens} tokens by 4 beams": (prompts(long // 2), 4, tokens),
            f"8 x {tokens} tokens": (prompts(*(long // 2 - 20 * row for row in range(8))), 1, tokens),
        }
        peers = {"torch engine": written(usual), "transformers": reference(theirs)}
        for bits, model in quick.items():
            ours = written(model)
            for work, asked in works.items():
                for name, peer in peers.items():
                    if bits != "float32" and name == "torch engine":
                        continue
                    if bits == "float32":
                        assert ours(*asked) == peer(*asked), f"{work}: the tokens differ"
                    report.compare(
                        f"T5, {bits}, {work}",
                        lambda ours=ours, asked=asked: seconds(lambda: ours(*asked)),  # type: ignore[misc]
                        lambda peer=peer, asked=asked: seconds(lambda: peer(*asked)),  # type: ignore[misc]
                        peer_name=name,
                        limit="arithmetic" if asked[2] == 1 else "memory bandwidth: all weights of the decoder a step",
                        rounds=3,
                    )


def made(folder: Path, *, small: bool) -> None:
    """Save a T5 with fresh weights that never ends a text."""
    import tsumugu as tg
    from tsumugu.core.registry import FAMILIES
    from tsumugu.training.initialization import initialize

    family = FAMILIES["t5"]
    sizes = {"vocab_size": 1000, "num_layers": 1, "hidden_size": 64, "intermediate_size": 128} if small else {}
    model = family.build(family.config_class(**sizes, eos_token_id=None), "seq2seq-lm")
    initialize(model, seed=0)
    tg.save_model(model, folder)


def prompts(*lengths: int) -> Ids:
    return [[5 + (7919 * (place + 31 * row)) % 990 for place in range(max(1, n))] for row, n in enumerate(lengths)]


def written(model: object) -> Write:
    import tsumugu as tg

    def write(ids: Ids, beams: int, tokens: int) -> Ids:
        found: Ids = tg.generate(model, ids, num_beams=beams, max_new_tokens=tokens)
        return found

    return write


def reference(model: object) -> Write:
    import torch

    def write(ids: Ids, beams: int, tokens: int) -> Ids:
        longest = max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        options = {"num_beams": beams, "max_new_tokens": tokens, "do_sample": False}
        found: Ids = model.generate(padded, attention_mask=real, **options).tolist()  # type: ignore[attr-defined]
        return found

    return write
