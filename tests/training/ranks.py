"""What several ranks do together in the tests: `python ranks.py RESULTS CHECK…`, started once for each rank.

Each check gives a JSON value; rank 0 writes them all to RESULTS. It is a small training loop of its own: every
micro-batch is a function of (step, number), and losses are divided by the count of the whole step.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsumugu.core.errors import ConfigError, InputError, TsumuguError
from tsumugu.core.registry import FAMILIES
from tsumugu.training.distributed import World
from tsumugu.training.ema import Ema
from tsumugu.training.initialization import initialize
from tsumugu.training.optimizers import OptimizerConfig, build_optimizer
from tsumugu.training.parallel import Parallel, clip_gradients, gradients_of, parallelize, whole
from tsumugu.training.sharded import ShardedSaver, load_sharded, training_tensors

STILL = {"embedding_dropout": 0.0, "residual_dropout": 0.0, "attention_dropout": 0.0}
GPT = {"num_heads": 4, "num_layers": 2, "max_positions": 16, **STILL}
BERT = {"num_heads": 4, "intermediate_size": 32, "num_layers": 2, "dropout": 0.0, "attention_dropout": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("pretraining", {**BERT, "max_positions": 16}),
    "roberta": ("masked-lm", {**BERT, "max_positions": 18}),
    "gpt2": ("causal-lm", GPT),
    "gpt3": ("causal-lm", {**GPT, "band": 4}),
    "megatron": ("causal-lm", GPT),
    "llama": ("causal-lm", {"num_heads": 4, "num_kv_heads": 2, "intermediate_size": 24, "num_layers": 2}),
    "t5": ("seq2seq-lm", {"num_heads": 4, "head_dim": 4, "intermediate_size": 32, "num_layers": 2, "dropout": 0.0}),
}
MICRO_BATCHES, ROWS, TIME, VOCABULARY = 4, 2, 12, 25


class Step(nn.Module):
    """Model and objective as one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.model(**{key: each for key, each in batch.items() if key != "targets"}).logits
        return {"token": nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")}


def built(family: str, **options: Any) -> nn.Module:
    head, sizes = MODELS[family]
    known = FAMILIES[family]
    config = known.config_class(**{"vocab_size": VOCABULARY, "hidden_size": 16} | sizes | options)
    model = known.build(config, head)
    initialize(model, seed=1)
    return model.train()


def batch(family: str, step: int, micro: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + micro)
    ids, targets, written = torch.randint(5, VOCABULARY, (3, ROWS, TIME), generator=generator)
    return {"input_ids": ids, "targets": targets} | ({"decoder_input_ids": written} if family == "t5" else {})


class Run:
    """A model in training under one layout."""

    def __init__(self, world: World, layout: Parallel, family: str = "llama", optimizer: str = "adamw") -> None:
        self.world, self.family = world, family
        self.model = built(family, **({"tie_embeddings": True} if family == "llama" else {}))
        self.step = parallelize(Step(self.model), self.model, layout, world)
        self.optimizer = build_optimizer(self.model, OptimizerConfig(name=optimizer, lr=0.01))
        self.ema = Ema(self.model)
        self.losses: list[float] = []
        self.norms: list[float] = []

    def gradients(self, number: int) -> None:
        world, count = self.world, MICRO_BATCHES * ROWS * TIME
        mine = [micro for micro in range(MICRO_BATCHES) if micro % world.data_size == world.data_rank]
        total = 0.0
        for micro in mine:
            with gradients_of(self.step, last=micro == mine[-1]):
                loss = self.step(batch(self.family, number, micro))["token"]
                (loss / count).backward()
            total += loss.item()
        self.losses.append(float(world.sum([total])[0]) / count)

    def steps(self, first: int, last: int) -> Run:
        for number in range(first, last):
            self.gradients(number)
            self.norms.append(clip_gradients(self.model.parameters(), 0.05, self.world).item())
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.update(number)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """All that it has learnt, put together; of the optimiser and the averages too."""
        found = training_tensors(self.model, self.optimizer, self.ema)
        return {name: whole(each).clone() for name, each in sorted(found.items())}

    def save(self, folder: Path, saver: ShardedSaver) -> None:
        saver.save(folder, training_tensors(self.model, self.optimizer, self.ema), inside="training/sharded")

    def load(self, folder: Path) -> Run:
        load_sharded(folder / "training" / "sharded", self.world, self.model, self.optimizer, self.ema)
        return self


ALONE = World(0, 1, local_rank=0, tensor=1, device=torch.device("cpu"), restarts=0, patience=1.0)


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def layouts(world: World) -> list[Parallel]:
    if world.tensor == 1:
        return [Parallel(kind="ddp"), Parallel(kind="fsdp")]
    return [Parallel(kind="ddp", tensor=world.tensor), Parallel(kind="fsdp", tensor=world.tensor)]


def messages(world: World, folder: Path) -> dict[str, Any]:
    """Numbers and objects that ranks tell one another."""
    rank, size = world.rank, world.size
    large, tiny = 2**62 // size, 1e-30
    ints, floats, mixed = world.sum([large + rank, 0.1 if rank else tiny, rank or 0.5])
    try:
        undefined = world.sum([math.inf if rank else -math.inf, math.inf])
    finally:
        told = world.broadcast({"ブランチ": [rank, None, "é"]} if world.main else None)
    failed = world.agree(rank != 1)
    return {
        "ints": ints == size * large + sum(range(size)),
        "floats": floats == math.fsum([tiny] + [0.1] * (size - 1)),
        "mixed": mixed == math.fsum([0.5, *range(1, size)]),
        "undefined": [str(each) for each in undefined],
        "told": told,
        "failed": failed,
    }


def same_as_alone(world: World, folder: Path) -> dict[str, Any]:
    """Loss curve, gradient norms and all tensors after a few steps, against one process that does everything."""
    alone = Run(ALONE, Parallel()).steps(0, 4)
    found: dict[str, Any] = {}
    for layout in layouts(world):
        run = Run(world, layout).steps(0, 4)
        found[f"{layout.kind}x{layout.tensor}"] = {
            "losses": max(abs(a - b) for a, b in zip(run.losses, alone.losses, strict=True)),
            "norms": max(abs(a - b) / b for a, b in zip(run.norms, alone.norms, strict=True)),
            "tensors": differences(run.tensors(), alone.tensors()),
        }
    return found


def families(world: World, folder: Path) -> dict[str, Any]:
    """Losses and gradients of every family under every layout against one process."""
    found: dict[str, Any] = {}
    for family in MODELS:
        alone = Run(ALONE, Parallel(), family)
        alone.gradients(0)
        for layout in layouts(world):
            run = Run(world, layout, family)
            run.gradients(0)
            wrong = 0.0
            for one, other in zip(run.model.parameters(), alone.model.parameters(), strict=True):
                mine = torch.zeros_like(other) if one.grad is None else whole(one.grad)
                wrong = max(wrong, (mine - (0 if other.grad is None else other.grad)).abs().max().item())
            found[f"{family} {layout.kind}x{layout.tensor}"] = [abs(run.losses[0] - alone.losses[0]), wrong]
    return found


def resumed(world: World, folder: Path) -> dict[str, Any]:
    """Whether a run that was saved and read back ends bit by bit as the undisturbed one does."""
    found: dict[str, Any] = {}
    saver = ShardedSaver(world)
    for optimizer in ("adamw", "muon"):
        for layout in layouts(world):
            name = f"{optimizer} {layout.kind}x{layout.tensor}"
            run = Run(world, layout, optimizer=optimizer).steps(0, 3)
            run.save(folder / f"{world.size} {name}", saver)
            undisturbed = run.steps(3, 6).tensors()  # the copy was taken when save() returned
            saver.wait()
            world.barrier()
            again = Run(world, layout, optimizer=optimizer).load(folder / f"{world.size} {name}").steps(3, 6).tensors()
            found[name] = all(torch.equal(undisturbed[each], again[each]) for each in undisturbed)
    return found


def loaded(world: World, folder: Path) -> dict[str, Any]:
    """What other numbers of ranks saved, read by these, against the tensors of one process."""
    found: dict[str, Any] = {}
    for path in sorted(each for each in folder.iterdir() if each.is_dir()):
        optimizer = path.name.split()[1]
        alone = Run(ALONE, Parallel(), optimizer=optimizer).steps(0, 3)
        for layout in layouts(world):
            run = Run(world, layout, optimizer=optimizer).load(path)
            found[f"{path.name} -> {layout.kind}x{layout.tensor}"] = differences(run.tensors(), alone.tensors())
    return found


def refused(world: World, folder: Path) -> dict[str, Any]:
    """Errors about layouts that do not fit."""
    found = []
    for layout, options in ((Parallel(tensor=3), {}), (Parallel(tensor=world.tensor), {"num_kv_heads": 1})):
        model = built("llama", **options)
        try:
            parallelize(Step(model), model, layout, world)
        except ConfigError as error:
            found.append(str(error))
    return {"refused": found}


def fails(world: World, folder: Path) -> None:
    """Rank 1 has an error, is killed, or all have one, while the others wait for it."""
    how = os.environ["FAILURE"]
    world.barrier()
    if how == "everywhere":
        raise InputError("the corpus is empty", where="data", mend="prepare it")
    if how == "late":
        time.sleep(1.5 if world.rank == 1 else 0.0)
        world.barrier(patience=0.3)
    if world.rank == 1 and how == "error":
        raise InputError("row 7 holds no text", where="shard-00000", mend="prepare it again")
    if world.rank == 1 and how == "killed":
        os.kill(os.getpid(), 9)
    world.sum([1])


def main() -> None:
    results, tensor, *names = sys.argv[1:]
    torch.set_num_threads(1)
    found = {}
    try:
        with World.open(tensor=int(tensor), device="cpu", patience=30.0) as world:
            for name in names:
                found[name] = globals()[name](world, Path(results).parent / "checkpoints")
            if world.main:
                Path(results).write_text(json.dumps(found), "utf-8")
    except TsumuguError as error:
        print(f"tsumugu: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
