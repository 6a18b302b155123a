"""The most memory that training takes, against the reference library's Trainer: the same network, batch and optimiser.

Each side is a fresh process that trains a few steps; what counts is how far its peak lies above what it took before the
first step, and the whole peak beside it. GPT-2 with its own vocabulary: the logits of a batch are what grows.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Report, child

BEGIN = """
import sys, tempfile
def memory(what):
    return int(open('/proc/self/status').read().split(what + ':')[1].split()[0]) / 1024
layers, width, heads, vocab, rows, context, steps, recompute = map(int, sys.argv[2:])
"""
END = "\nprint(memory('VmHWM') - before, memory('VmHWM'))"
OURS = """
import torch, tsumugu as tg
from tsumugu.training.pretrain import train
sizes = {"num_layers": layers, "hidden_size": width, "num_heads": heads, "vocab_size": vocab}
values = {
    "model": {"family": "gpt2", "config": sizes},
    "data": {"corpus": [sys.argv[1]], "context": context},
    "train": {"steps": steps, "batch": rows, "recompute": bool(recompute)},
    "evaluation": {"every": 0},
    "checkpoints": {"every": 0},
}
before = memory('VmRSS')
with tempfile.TemporaryDirectory() as folder:
    train(values, folder + "/run", quiet=True)
"""
THEIRS = """
import torch, transformers
config = transformers.GPT2Config(vocab_size=vocab, n_positions=context, n_embd=width, n_layer=layers, n_head=heads)
ids = torch.randint(2, vocab, (rows * steps, context))
data = [{"input_ids": row, "labels": row} for row in ids]
before = memory('VmRSS')
with tempfile.TemporaryDirectory() as folder:
    arguments = transformers.TrainingArguments(
        output_dir=folder, per_device_train_batch_size=rows, max_steps=steps, report_to=[], save_strategy="no",
        disable_tqdm=True, use_cpu=True, logging_strategy="no", gradient_checkpointing=bool(recompute),
    )
    transformers.Trainer(transformers.GPT2LMHeadModel(config), arguments, train_dataset=data).train()
"""


def run(report: Report) -> None:
    """GPT-2 of 6 x 384 on 16 rows of 256 (in the smoke mode 2 x 64 on 4 of 32)."""
    import numpy as np

    import tsumugu as tg
    from tsumugu.corpus.shards import write_corpus

    sizes = (2, 64, 2, 512, 4, 32, 1) if report.smoke else (6, 384, 6, 50257, 16, 256, 2)
    rows, context, steps = sizes[4:]
    chance = np.random.default_rng(0)
    tokenizer = tg.train_tokenizer(
        ["".join(map(chr, range(32, 127))) * 99], family="gpt2", vocab_size=300, language="en"
    )
    ids = chance.integers(2, len(tokenizer), rows * (steps + 2) * (context + 1)).astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus", [(ids, len(ids))], tokenizer)
        for recompute, what in enumerate(("", ", activations computed again")):
            peaks: dict[str, list[float]] = {}

            def measure(
                name: str, code: str, recompute: int = recompute, peaks: dict[str, list[float]] = peaks
            ) -> float:
                arguments = (str(corpus.path), *map(str, sizes), str(recompute))
                _, printed = child("-c", BEGIN + code + END, *arguments, timeout=300)
                above, whole = map(float, printed.split()[-2:])
                peaks.setdefault(name, []).append(whole)
                return above

            sides: list[Callable[[], float]] = [lambda: measure("ours", OURS), lambda: measure("Trainer", THEIRS)]
            report.compare(
                f"peak memory of a training step{what}",
                *sides,
                peer_name="Trainer",
                limit="activations",
                rounds=3,
                unit="MB",
            )
            for name, values in peaks.items():
                print(f"  {name}: the whole process {statistics.median(values):,.0f} MB", flush=True)
