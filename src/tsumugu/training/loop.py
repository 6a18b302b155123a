"""The one training loop: whatever is trained here, from fresh weights or from given ones, goes through it.

A step is a pure function of the weights, the optimiser's state and the step's number: data, masks and dropout are drawn
from the seed and that number, so that a run which is killed and resumed ends bit by bit where the undisturbed one does,
and one that is spread over several ranks computes the same step. Every loss is a sum, divided by how much the whole
step asks for, over all micro-batches and ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tsumugu.core.errors import TsumuguError
from tsumugu.corpus.chance import mix
from tsumugu.models.base import Model
from tsumugu.objectives.base import Batch, Losses
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.training.checkpointing import Checkpoints, State
from tsumugu.training.distributed import World
from tsumugu.training.ema import Ema
from tsumugu.training.events import LOG, Stream, truncate_events
from tsumugu.training.feed import Ahead, Feed
from tsumugu.training.interrupts import Interrupts
from tsumugu.training.optimizers import build_optimizer
from tsumugu.training.parallel import clip_gradients, gather_anew, gradients_of, parallelize
from tsumugu.training.recipe import Settings
from tsumugu.training.schedules import build_schedule, steps_of
from tsumugu.training.sparse_gradients import sparse_tables
from tsumugu.training.spikes import stands_out
from tsumugu.training.step import Step, autocast_for, compile_step, peak_memory, recompute_layers, tensors_of


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        folder: the run's.
        reason: done, early, budget or stopped.
        signal: the number of the signal that stopped it, or None.
        steps, tokens, seconds: so far.
        loss: of the last step; None where there was none.
        evaluation: what was measured last; empty where nothing was.
        best_loss, best_score, best_step: the best evaluation; the score is the first metric's, where there is one.
    """

    folder: Path
    reason: str
    signal: int | None
    steps: int
    tokens: int
    seconds: float
    loss: float | None
    evaluation: Mapping[str, Any]
    best_loss: float | None
    best_score: float | None
    best_step: int | None


class Trainer:
    """Trains a model.

    Args:
        model: with its first weights, on the world's device.
        objective: gives losses of batches.
        feed: gives batches.
        settings: how.
        steps: how many in all.
        folder: the run's, which is there.
        world: who trains together.
        stream: is told what happens; on rank 0 only.
        held_back: the batches of an evaluation, or None where nothing is held back.
        tokenizer: saved with the checkpoints, and for samples.
        about: more values of the start event.
        sample: writes a text after a prompt, or None.
        score: how well the model solves its task by each metric, when what is held back is measured. The first metric
            then decides which evaluation is the best, and the loss only where that is equal; higher is better.
    """

    def __init__(
        self,
        model: Model,
        objective: Losses,
        feed: Feed,
        settings: Settings,
        *,
        steps: int,
        folder: Path,
        world: World,
        stream: Stream,
        held_back: Callable[[], Iterator[Batch]] | None = None,
        tokenizer: Tokenizer | None = None,
        about: Mapping[str, Any] | None = None,
        sample: Callable[[Model, str, int], str] | None = None,
        score: Callable[[Model], Mapping[str, float]] | None = None,
    ) -> None:
        train = settings.train
        self.model, self.objective, self.feed, self.settings = model, objective, feed, settings
        self.steps, self.folder, self.world, self.stream = steps, folder, world, stream
        self._held_back, self._about, self._sample, self._score = held_back, dict(about or {}), sample, score
        self._autocast = autocast_for(train.precision, world.device)
        if train.recompute:
            recompute_layers(model)
        self._plain = Step(model, objective)
        self._step = parallelize(self._plain, model, settings.parallel, world)
        self._warning: str | None = None
        if train.compile:
            self._warning = compile_step(self._step)
        self.optimizer = build_optimizer(model, settings.optimization)
        self.ema = None if train.ema is None else Ema(model, train.ema)
        self._schedule = build_schedule(settings.schedule, steps)
        self._peak = settings.optimization.lr or 0.0
        self.state = State()
        self.checkpoints = Checkpoints(
            folder,
            settings.checkpoints,
            model=model,
            optimizer=self.optimizer,
            ema=self.ema,
            tokenizer=tokenizer,
            world=world,
        )
        self._saved: int | None = None
        self._loss: float | None = None
        self._evaluation: dict[str, Any] = {}

    def resume(self) -> bool:
        """Go on from the newest checkpoint; False where there is none. Call it before `run`.

        What the log says of the time after that checkpoint is taken off: it will be done again.
        """
        newest = self.checkpoints.newest()
        if newest is not None:
            self.state = self.checkpoints.load(newest)
            self._saved = self.state.step
        log = self.folder / LOG
        if self.world.main and log.is_file():
            truncate_events(log, -1 if newest is None else self.state.step)
        return newest is not None

    def run(self) -> Result:
        """Train until the steps are done, a budget is spent, nothing improves, or a signal comes.

        Raises:
            TsumuguError: the loss is not a number and going back did not help, or a checkpoint cannot be written.
        """
        settings, state = self.settings, self.state
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(before or settings.train.deterministic)
        ahead = Ahead(lambda at: self.feed.batches(at, self.world.data_rank, self.world.data_size))
        self._until = math.inf
        if settings.train.minutes is not None:
            self._until = time.monotonic() + 60 * settings.train.minutes - state.seconds
        reason = "done"
        alone = self.world.size == 1 and not settings.train.compile
        rows = sparse_tables(self.model, self.optimizer) if alone else nullcontext()
        with Interrupts() as interrupts, rows:
            try:
                if self._saved is None:
                    self._tell("start", {**self._about, "name": settings.name, "steps": self.steps})
                else:
                    self._tell("resumed", {"from": f"step-{state.step:08}"})
                if self._warning is not None:
                    self._tell("warning", {"what": self._warning})
                self.model.train()
                patience = settings.evaluation.patience
                if patience is not None and self.state.stale >= patience:
                    reason = "early"  # it had stopped, and is resumed with no more patience than before
                while self.state.step < self.steps and reason == "done":
                    wish = self._wish(interrupts)
                    wish = self._advance(ahead, wish)
                    if wish is not None:
                        reason = wish
                        break
                    if self._due(settings.evaluation.every) and self.state.step < self.steps and self._evaluate():
                        reason = "early"
                        break
                    if self._due(settings.checkpoints.every) and self.state.step < self.steps:
                        self._save("last")
                if reason == "done" and self._evaluation.get("step") != self.state.step:
                    self._evaluate()
                self._save("last")
                self.checkpoints.wait()
            except TsumuguError:
                self._end("failed")
                raise
            finally:
                ahead.close()
                torch.use_deterministic_algorithms(before)
        self._end(reason)
        state = self.state
        return Result(
            folder=self.folder,
            reason=reason,
            signal=None if interrupts.heard is None else int(interrupts.heard),
            steps=state.step,
            tokens=state.tokens,
            seconds=state.seconds,
            loss=self._loss,
            evaluation={key: each for key, each in self._evaluation.items() if key != "step"},
            best_loss=state.best_loss,
            best_score=state.best_score,
            best_step=state.best_step,
        )

    def _wish(self, interrupts: Interrupts) -> str | None:
        """Why this rank wants to stop before the next step."""
        if interrupts.heard is not None:
            return "stopped"
        return "budget" if self.world.main and time.monotonic() >= self._until else None

    def _advance(self, ahead: Ahead, wish: str | None) -> str | None:
        """One step, unless a rank wishes to stop: then all learn why, and nothing is done."""
        began, state, world = time.perf_counter(), self.state, self.world
        batches = ahead(state.step + state.offset)
        names = list(self.objective.weights)
        mine = [sum(each.counts[name] for each in batches) for name in names]
        places = sum(each.tokens + each.padding for each in batches), sum(each.tokens for each in batches)
        wishes = [int(wish == "stopped"), int(wish == "budget")]
        *totals, held, tokens, stopped, budget = map(int, world.sum([*mine, *places, *wishes]))
        if stopped or budget:
            return "stopped" if stopped else "budget"
        rate = self._peak * self._schedule(state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        sums, norm = self._gradients(batches, dict(zip(names, totals, strict=True)))
        losses = {
            name: total / max(count, 1) for name, total, count in zip(names, world.sum(sums), totals, strict=True)
        }
        loss = losses[names[0]]
        if stands_out(state, loss, norm, self.settings.train.spike):
            self.optimizer.zero_grad()
            self._go_back(loss)
            return None
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(state.step)
        took = time.perf_counter() - began
        state.step += 1
        state.tokens += tokens
        state.seconds += took
        self._loss = loss
        if world.main:
            self._tell("step", self._figures(losses, loss, rate, norm, tokens, held, took))
        return None

    def _gradients(self, batches: list[Batch], totals: dict[str, int]) -> tuple[list[float], float]:
        """The step's gradients, and its losses as sums over this rank's share."""
        state, world, weights = self.state, self.world, self.objective.weights
        sums = {name: torch.zeros((), dtype=torch.float64) for name in weights}
        for number, batch in enumerate(batches):
            # Dropout belongs to the step and the micro-batch, not to the rank that computes it.
            at = number * world.data_size + world.data_rank
            torch.manual_seed(mix(self.settings.train.seed, state.step + state.offset, at) >> 1)
            with gradients_of(self._step, last=number + 1 == len(batches)):
                with self._autocast():
                    losses = self._step(tensors_of(batch, world.device))
                parts = [weights[name] * each / max(totals[name], 1) for name, each in losses.items()]
                sum(parts[1:], parts[0]).backward()
            for name, each in losses.items():
                sums[name] += each.detach().to("cpu", torch.float64)
        clip = self.settings.train.clip
        norm = clip_gradients(self.model.parameters(), math.inf if clip is None else clip, world)
        return [each.item() for each in sums.values()], norm.item()

    def _figures(
        self, losses: dict[str, float], loss: float, rate: float, norm: float, tokens: int, held: int, took: float
    ) -> dict[str, Any]:
        state, speed = self.state, tokens / took
        cost, peak = self._about.get("flops_per_token"), self._about.get("peak_flops")
        known = isinstance(cost, int | float) and isinstance(peak, int | float)
        return {
            "loss": loss,
            "losses": losses,
            "lr": rate,
            "grad_norm": norm,
            "tokens": state.tokens,
            "tokens_per_second": speed,
            "seconds": state.seconds,
            "epoch": self.feed.epoch(state.step + state.offset),
            "memory": peak_memory(self.world.device),
            "mfu": speed * cost / (peak * self.world.size) if known else None,  # type: ignore[operator]
            "padding": 1 - tokens / held if held else 0.0,
        }

    def _due(self, every: int | float) -> bool:
        length = steps_of(every, self.steps)
        return bool(every) and self.state.step % max(length, 1) == 0

    # Going back

    def _go_back(self, loss: float) -> None:
        state, limit = self.state, self.settings.train.rollbacks
        what = f"the loss is {loss:.4g}" if math.isfinite(loss) else "the loss or its gradient is not a number"
        newest = self.checkpoints.newest() if self._saved is not None else None
        if newest is None or state.rollbacks >= limit:
            why = "there is no checkpoint to go back to" if newest is None else f"after {limit} rollbacks"
            raise TsumuguError(
                f"{what} at step {state.step}, {why}", where=str(self.folder), mend="lower train.lr, or warm up longer"
            )
        reached, offset = state.step + 1, state.offset
        self.state = self.checkpoints.load(newest)
        self.state.high = 0
        # What was read since then is left out: it may be what did it.
        self.state.offset = offset + reached - self.state.step
        self.state.rollbacks = state.rollbacks + 1
        self.state.seconds = state.seconds
        self._tell("rollback", {"to": newest.name, "reason": what}, step=reached)

    # Evaluating and saving

    def _evaluate(self) -> bool:
        """Measure on what is held back, and write samples; whether the run shall stop as nothing improves."""
        if self._held_back is None and self._sample is None:
            return False
        began, state, section = time.perf_counter(), self.state, self.settings.evaluation
        with self._evaluating():
            values = self._measured()
            if self._score is not None:
                values["scores"] = self.world.broadcast(dict(self._score(self.model)))
        values["seconds"] = time.perf_counter() - began
        self._evaluation = {**values, "step": state.step}
        if "loss" in values:
            self._tell("evaluation", values)
        self._write_samples()
        loss = values.get("loss")
        if loss is None:
            return False
        score = next(iter(values.get("scores", {}).values()), None)
        if state.improved(loss, score, section.min_delta):
            state.best_loss, state.best_score, state.best_step, state.stale = loss, score, state.step, 0
            if self.settings.checkpoints.best:
                self._save("best")
        else:
            state.stale += 1
        return section.patience is not None and state.stale >= section.patience

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The averages in the place of the weights, and no dropout."""
        self.model.eval()
        try:
            with torch.no_grad(), nullcontext() if self.ema is None else self.ema.swapped():
                yield
        finally:
            gather_anew(self._plain)
            self.model.train()

    def _measured(self) -> dict[str, Any]:
        if self._held_back is None:
            return {}
        world, names = self.world, list(self.objective.weights)
        sums, counts, size = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0), 0
        for number, batch in enumerate(self._held_back()):
            mine = number % world.data_size == world.data_rank
            if not mine and not self.settings.parallel.sharded:
                continue
            torch.manual_seed(number)
            with self._autocast():
                losses = self._plain(tensors_of(batch, world.device))
            if mine:  # sharded weights are only there when all ranks compute
                size += batch.bytes
                for name, each in losses.items():
                    sums[name] += float(each)
                    counts[name] += batch.counts[name]
        *totals, total = world.sum([*sums.values(), *counts.values(), size])
        losses = {name: totals[i] / max(totals[len(names) + i], 1) for i, name in enumerate(names)}
        whole = sum(weight * losses[name] for name, weight in self.objective.weights.items())
        return {"loss": whole, "bits_per_byte": totals[0] / math.log(2) / total if total else None, "losses": losses}

    def _write_samples(self) -> None:
        prompts = self.settings.evaluation.prompts
        if self._sample is None or not prompts or self.settings.parallel.sharded or not self.world.main:
            return
        with self._evaluating():
            for number, prompt in enumerate(prompts):
                text = self._sample(self.model, prompt, mix(self.settings.train.seed, number) >> 1)
                self._tell("sample", {"prompt": prompt, "text": text})

    def _save(self, kind: str) -> None:
        if self._saved == self.state.step:
            return
        began = time.perf_counter()
        path = self.checkpoints.save(replace(self.state))
        self._saved = self.state.step
        where = path.relative_to(self.folder).as_posix()
        self._tell("checkpoint", {"path": where, "seconds": time.perf_counter() - began, "kind": kind})

    # Telling

    def _tell(self, kind: Any, values: dict[str, Any], *, step: int | None = None) -> None:
        if self.world.main:
            self.stream.emit(kind, self.state.step if step is None else step, values)

    def _end(self, reason: str) -> None:
        state = self.state
        values = {"reason": reason, "tokens": state.tokens, "seconds": state.seconds, "loss": self._loss}
        self._tell("end", values)
