"""What several ranks do together in the tests.

Started as `ranks.py RESULTS TENSOR CHECK…` by torchrun, once for each rank. Each check gives a JSON value; rank 0
writes them all to RESULTS. It is a small training loop of its own: every micro-batch is a function of (step, number),
and losses are divided by the count of the whole step.

Started without arguments it reads one JSON object a line, {"ranks", "arguments", "environment", "kill", "after"},
starts so many ranks as children of its own, which need not import torch again, kills those of "kill" after so many
seconds (and has the rest go by SIGTERM if they still wait long after, as torchrun does), and answers with {"codes",
"errors", "seconds"}: how each left (minus the signal that killed it), what it printed to stderr, and how long they
took. If the first argument is `tsumugu`, the ranks run that program with the rest.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from tsumugu.cli import main
from tsumugu.core.errors import CheckpointError, ConfigError, InputError, TsumuguError
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
    rank, size = world.data_rank, world.data_size
    large, tiny = 2**62 // size, 1e-30
    ints, floats, mixed = world.sum([large + rank, 0.1 if rank else tiny, rank or 0.5])
    undefined = world.sum([math.inf if rank else -math.inf, math.inf])
    told = world.broadcast({"ブランチ": [rank, None, "é"]} if world.main else None)
    failed = world.agree(world.rank != 1)
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
    alone = Run(ALONE, Parallel()).steps(0, 3)
    found: dict[str, Any] = {}
    for layout in layouts(world):
        run = Run(world, layout).steps(0, 3)
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
    for layout, optimizer in zip(layouts(world), ("adamw", "muon"), strict=True):
        name = f"{optimizer} {layout.kind}x{layout.tensor}"
        run = Run(world, layout, optimizer=optimizer).steps(0, 2)
        run.save(folder / f"{world.size} {name}", saver)
        undisturbed = run.steps(2, 4).tensors()  # the copy was taken when save() returned
        saver.wait()
        world.barrier()
        again = Run(world, layout, optimizer=optimizer).load(folder / f"{world.size} {name}").steps(2, 4).tensors()
        found[name] = all(torch.equal(undisturbed[each], again[each]) for each in undisturbed)
    return found


def loaded(world: World, folder: Path) -> dict[str, Any]:
    """What other numbers of ranks saved, read by these, against the tensors of one process."""
    found: dict[str, Any] = {}
    for path in sorted(each for each in folder.iterdir() if each.is_dir()):
        optimizer = path.name.split()[1]
        alone = Run(ALONE, Parallel(), optimizer=optimizer).steps(0, 2)
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


class Seldom(nn.Module):
    """`step` and a parameter that only the first of the micro-batches uses, and so one rank only."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step, self.seldom = step, nn.Parameter(torch.ones(3))

    def forward(self, batch: dict[str, Tensor], micro: int) -> Tensor:
        loss: Tensor = self.step(batch)["token"]
        return loss + self.seldom.sum() if micro == 0 else loss


def seldom(world: World, folder: Path) -> dict[str, Any]:
    """Gradients where ranks do not use the same parameters: of one that one rank uses, of one that none does."""
    module = Seldom(Step(built("bert")))
    step = parallelize(module, module.step.model, Parallel(), world)
    mine = [micro for micro in range(MICRO_BATCHES) if micro % world.data_size == world.data_rank]
    for micro in mine:
        with gradients_of(step, last=micro == mine[-1]):
            step(batch("bert", 0, micro), micro).backward()
    unused = [name for name, each in module.named_parameters() if each.grad is None]
    return {"seldom": module.seldom.grad.tolist(), "unused": len(unused)}


def unwritable(world: World, folder: Path) -> dict[str, Any]:
    """What each rank says when one cannot write its part or cannot finish; what is left; that it goes on."""
    run, saver = Run(world, Parallel(kind="fsdp")), ShardedSaver(world)
    tensors = training_tensors(run.model)
    place = folder.parent / "unwritable"
    if world.main:
        place.mkdir()
    world.barrier()

    def finish(partial: Path) -> None:
        raise OSError("no tokenizer")

    def told() -> list[str]:
        try:
            saver.wait()
            mine = "nothing"
        except (CheckpointError, OSError) as error:
            mine = str(error).replace(str(place), "…")
        heard: list[Any] = [None] * world.size
        dist.all_gather_object(heard, mine)
        return heard

    found: dict[str, Any] = {}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    saver.save(place / "one", tensors)
    found["full"] = told()
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    saver.save(place / "one", tensors, finish=finish)
    found["unfinished"] = told()
    try:
        saver.save(Path(os.devnull) / "one", tensors)
    except CheckpointError as error:
        found["no folder"] = str(error)
    found["left"] = sorted(each.name for each in place.iterdir())
    saver.save(place / "one", tensors)
    found["after"] = told()
    return found


def fails(world: World, folder: Path) -> None:
    """A rank has an error, is killed, comes late, or all have one, while the others wait for it."""
    how, victim = os.environ["FAILURE"].split()
    unlucky = world.rank == int(victim)
    run = Run(world, Parallel(kind=how)) if how in ("ddp", "fsdp") else None
    world.barrier()
    if how == "everywhere":
        raise InputError("the corpus is empty", where="data", mend="prepare it")
    if how == "late":
        time.sleep(1.5 if unlucky else 0.0)
        world.barrier(patience=0.3)
    if unlucky:
        if how == "error":
            raise InputError("row 7 holds no text", where="shard-00000", mend="prepare it again")
        if how == "bug":
            raise ZeroDivisionError("a bug")
        os.kill(os.getpid(), signal.SIGKILL)
    if run is not None:
        run.steps(0, 1)
    world.sum([1])


def run(results: str, tensor: str = "1", *names: str) -> None:
    torch.set_num_threads(1)
    if results == "tsumugu":
        main([tensor, *names])
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


def child(task: dict[str, Any], rank: int, errors: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), **task["environment"]}
        os.environ |= {each: str(task["ranks"]) for each in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
        run(*task["arguments"])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the child of a fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def remind(children: list[int]) -> None:
    """Send SIGTERM to those that are still there after a while: before they met they cannot know that one is dead."""
    end = time.monotonic() + 20
    while any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None for pid in children):
        if time.monotonic() > end:
            for pid in children:
                os.kill(pid, signal.SIGTERM)
            return
        time.sleep(0.02)


def serve() -> None:
    # What children would otherwise import, each anew.
    import cyclopts  # noqa: F401
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401

    import tsumugu.training.pretrain  # noqa: F401

    build_optimizer(built("llama"), OptimizerConfig())
    for line in sys.stdin:
        task = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder, str(rank)) for rank in range(task["ranks"])]
            began = time.monotonic()
            children = [child(task, rank, output) for rank, output in enumerate(outputs)]
            if task["kill"]:
                time.sleep(task["after"])
                for rank in task["kill"]:
                    os.kill(children[rank], signal.SIGKILL)  # of one that is done already: it is not waited for yet
                remind(children)
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
            errors = [each.read_text("utf-8") for each in outputs]
        print(json.dumps({"codes": codes, "errors": errors, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    run(*sys.argv[1:]) if len(sys.argv) > 1 else serve()
