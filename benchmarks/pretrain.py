"""Training steps, against the reference library's model in a plain loop, and against its Trainer.

Equal networks, batches and optimiser (AdamW, fused), float32. First rows that are full of text, then texts of 8 to 200
tokens: Trainer pads each batch to its longest text, ours lays them into full rows and keeps them apart. All sides run
in turn in this process. What counts is the median step of each turn. What we trained must give the same loss in the
reference library. Where the processor has units for bfloat16, full rows are trained in it, too.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Report, precision


def run(report: Report) -> None:
    """GPT-2 of 6 x 384 (in the smoke mode 2 x 64)."""
    import transformers

    import tsumugu as tg

    transformers.logging.set_verbosity_error()
    small = report.smoke
    layers, width, heads, vocab = (2, 64, 2, 512) if small else (6, 384, 6, 8192)
    rows, time_steps, steps = (4, 32, 2) if small else (16, 256, 4)
    chance = np.random.default_rng(0)
    tokenizer = tg.train_tokenizer([_words(chance)], family="gpt2", vocab_size=300, language="en")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lengths = {
            "full rows": np.full(rows * (steps + 2), time_steps + 1),
            "texts of 8 to 200": chance.integers(8, 201 if not small else 33, 20 * rows),
        }
        for name, sizes in lengths.items():
            documents = [chance.integers(2, len(tokenizer), size).astype(np.uint16) for size in sizes]
            shape = (vocab, layers, width, heads, rows, time_steps, steps)
            ours = _ours(place / name, tokenizer, documents, "fp32", *shape)
            config = transformers.GPT2Config(
                vocab_size=vocab, n_positions=time_steps, n_embd=width, n_layer=layers, n_head=heads,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )  # fmt: skip
            model = transformers.GPT2LMHeadModel(config)
            trainer = partial(_trainer, model, documents, rows=rows, steps=steps, place=place)
            peers: dict[str, Callable[[], float]] = {"Trainer": trainer}
            if name == "full rows":
                peers["plain loop"] = partial(_loop, model, len(tokenizer), rows, time_steps, steps)
            work = f"GPT-2 {layers}x{width}, {name}, per 1,000 tokens"
            for peer, measure in peers.items():
                report.compare(work, ours, measure, peer_name=peer, limit="arithmetic: matrix products")
            if name == "full rows" and precision() == "bf16":
                report.compare(
                    f"{work}, bfloat16",
                    _ours(place / "bfloat16", tokenizer, documents, "bf16", *shape),
                    partial(trainer, narrow=True),
                    peer_name="Trainer",
                    limit="what stays in float32: norms, the loss, copies",
                )
        _same_loss(place / "full rows", len(tokenizer))


def _words(chance: np.random.Generator) -> str:
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))
    return "".join(chance.choice(letters, 20_000))


def _ours(
    place: Path,
    tokenizer: Any,
    documents: list[np.ndarray],
    precision: str,
    vocab: int,
    layers: int,
    width: int,
    heads: int,
    rows: int,
    context: int,
    steps: int,
) -> Callable[[], float]:
    """Whole runs of a few steps; the seconds for 1,000 tokens of the median step."""
    from tsumugu.corpus.shards import write_corpus
    from tsumugu.training.pretrain import train

    place.mkdir()
    corpus = write_corpus(place / "corpus", [(each, len(each)) for each in documents], tokenizer)
    sizes = {"num_layers": layers, "hidden_size": width, "num_heads": heads, "vocab_size": vocab}
    still = {"residual_dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}
    varied = len({len(each) for each in documents}) > 1
    count = 0

    def measure() -> float:
        nonlocal count
        count += 1
        run = place / f"run-{count}"
        values = {
            "model": {"family": "gpt2", "config": {**sizes, **still}},
            "data": {"corpus": [str(corpus.path)], "context": context, "packing": "best-fit" if varied else "stream"},
            "train": {"steps": steps, "batch": rows, "lr": 1e-4, "precision": precision},
            "evaluation": {"every": 0},
            "checkpoints": {"every": 0},
        }
        train(values, run, quiet=True)
        lines = [json.loads(each) for each in (run / "events.jsonl").read_text("utf-8").splitlines()]
        speeds = [each["values"]["tokens_per_second"] for each in lines if each["kind"] == "step"]
        return 1000 / statistics.median(speeds[1:])

    return measure


def _loop(model: Any, vocab: int, rows: int, context: int, steps: int) -> float:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(2, vocab, (rows, context))
    taken = []
    for _ in range(steps):
        began = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken[1:]) / ids.numel()


def _trainer(
    model: Any, documents: list[np.ndarray], *, rows: int, steps: int, place: Path, narrow: bool = False
) -> float:
    """The Trainer with its defaults: batches in shuffled order, padded to their longest text."""
    import torch
    import transformers

    longest = model.config.n_positions
    data = [{"input_ids": each[:longest].tolist(), "labels": each[:longest].tolist()} for each in documents]

    def padded(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
        wide = max(len(each["input_ids"]) for each in batch)
        filled = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        batch = [{**each, "attention_mask": [1] * len(each["input_ids"])} for each in batch]
        return {
            name: torch.tensor([each[name] + [fill] * (wide - len(each[name])) for each in batch])
            for name, fill in filled.items()
        }

    ended: list[float] = []
    tokens: list[int] = []

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            ended.append(time.perf_counter())

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
        made = padded(batch)
        tokens.append(int(made["attention_mask"].sum()))
        return made

    arguments = transformers.TrainingArguments(
        output_dir=str(place / "trainer"), per_device_train_batch_size=rows, max_steps=steps, learning_rate=1e-4,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, logging_strategy="no", bf16=narrow,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Watch()]
    )
    trainer.train()
    speeds = [count / (end - begin) for count, (begin, end) in zip(tokens[1:], pairwise(ended), strict=False)]
    return 1000 / statistics.median(speeds)


def _same_loss(place: Path, vocab: int) -> None:
    """What we trained gives the same loss in the reference library."""
    import torch
    import transformers

    import tsumugu as tg

    saved = next(place.glob("run-*/checkpoints/step-*"))
    ids = torch.randint(2, vocab, (2, 24))
    mine = tg.load_model(saved)(ids, labels=ids).loss
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved)(input_ids=ids, labels=ids).loss
    assert abs(mine.item() - theirs.item()) < 1e-4, f"the losses differ: {mine} and {theirs}"
