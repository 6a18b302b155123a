"""A step of an encoder that learns to classify, by how many words it knows: ours, and torch's clipping and AdamW.

Both train the same network, of minilm's shape and without dropout, on the same made-up texts, whose words are about as
frequent as in real ones, and must come to the same losses. Ours has gradients of the words that were read; torch's is
as large as the table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Report, seconds

if TYPE_CHECKING:
    from torch import Tensor, nn

WORDS = (30_522, 250_002)
"""Of minilm; of XLM-RoBERTa."""
TEXTS, TOKENS, RATE, ROUNDS = 32, 32, 1e-4, 15


def run(report: Report) -> None:
    """Each round is a step, so that the table's moments fill as they do in a run."""
    from tsumugu.core.registry import FAMILIES

    family, layers = FAMILIES["bert"], 1 if report.smoke else 6
    shape = {"hidden_size": 384, "num_layers": layers, "num_heads": 12, "intermediate_size": 1536, "dropout": 0.0}
    for words in (4_000,) if report.smoke else WORDS:
        config = family.config_class(vocab_size=words, attention_dropout=0.0, **shape)
        network = family.build(config, "sequence-classification").train()
        told: dict[bool, list[float]] = {True: [], False: []}
        steps = {rows: _stepper(copy.deepcopy(network), words, told[rows], rows=rows) for rows in told}
        report.compare(
            f"a step with {words:,} words, {TEXTS} x {TOKENS} tokens",
            lambda steps=steps: seconds(steps[True]),
            lambda steps=steps: seconds(steps[False]),
            peer_name="torch",
            limit="matrix products; theirs also memory bandwidth",
            rounds=ROUNDS,
        )
        assert max(abs(one - other) for one, other in zip(*told.values(), strict=True)) < 1e-3, told


def _stepper(network: nn.Module, words: int, losses: list[float], *, rows: bool) -> Callable[[], None]:
    """What does the next step."""
    import torch

    from tsumugu.training.distributed import World
    from tsumugu.training.optimizers import OptimizerConfig, build_optimizer
    from tsumugu.training.parallel import clip_gradients
    from tsumugu.training.sparse_gradients import sparse_tables

    optimizer: Any = build_optimizer(network, OptimizerConfig())
    if not rows:
        optimizer = torch.optim.AdamW(optimizer.param_groups, fused=True)
    for group in optimizer.param_groups:
        group["lr"] = RATE
    chance, alone = torch.Generator().manual_seed(0), World.open()

    def step() -> None:
        ids: Tensor = (words ** torch.rand(TEXTS, TOKENS, generator=chance)).long()
        with sparse_tables(network, optimizer) if rows else nullcontext():
            loss = network(ids, labels=ids[:, 0] % 2).loss
            loss.backward()
        if rows:
            clip_gradients(network.parameters(), 1.0, alone)
        else:
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    return step
