"""The same fine-tuning several times: over seeds, to see how far chance reaches; over folds, to test on every example.

Each run has a folder of its own inside that of all, and is a run like any other; those that came to their end are not
done again. `summary.json` says how far they differ, and `model/` is the one with the best validation score.

Source: Dodge et al. 2020, "Fine-Tuning Pretrained Language Models: Weight Initializations, Data Orders, and Early
Stopping" (seeds); Kohavi 1995 (folds).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tsumugu.checkpoints.atomic import new_file
from tsumugu.core.errors import ConfigError
from tsumugu.evaluation.evaluate import Evaluation
from tsumugu.evaluation.resampling import Score
from tsumugu.evaluation.results import summarize
from tsumugu.training.distributed import World
from tsumugu.training.events import LOG, JsonLines, Stream
from tsumugu.training.launch import opened
from tsumugu.training.runs import RECIPE
from tsumugu.tuning.objectives import find_objective
from tsumugu.tuning.outcome import ADAPTER, MODEL, TEST, Tuned, copy_model, read_tuned
from tsumugu.tuning.recipe import RepeatSection, Tuning

SUMMARY = "summary.json"

Work = Callable[[Tuning, Path, World], Tuned]
"""Does one run of a recipe in a folder."""


@dataclass(frozen=True)
class Spread:
    """A metric over several runs: its mean, its standard deviation (of a sample), its least and its most."""

    mean: float
    deviation: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of at least two values."""
        return cls(statistics.fmean(values), statistics.stdev(values), min(values), max(values))


@dataclass(frozen=True)
class Summary:
    """What several runs have in common.

    Attributes:
        by: seeds or folds.
        split: what was scored: test, or validation where there is no test split.
        runs: the metrics of each, by the name of its folder.
        scores: each metric over the runs.
        pooled: of folds, each metric of all examples together, every one solved by the model that did not see it.
        best: the run whose model is kept: that with the best validation score.
    """

    by: str
    split: str
    runs: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, Spread]
    pooled: Mapping[str, Score]
    best: str

    def table(self) -> str:
        """One line a metric, as plain text."""
        name = max(map(len, ("metric", *self.scores)))
        lines = [f"{'metric':{name}}  {'mean':>7}  {'± dev.':>8}  {'least':>7}  {'most':>7}"]
        if self.pooled:
            lines[0] += f"  {'pooled':>7}  interval"
        for metric, each in self.scores.items():
            line = f"{metric:{name}}  {each.mean:7.4f}  ± {each.deviation:.4f}  {each.least:7.4f}  {each.most:7.4f}"
            if self.pooled:
                score = self.pooled[metric]
                line += f"  {score.value:7.4f}  [{score.low:.4f}, {score.high:.4f}]"
            lines.append(line)
        return "\n".join(lines)


def repeat(recipe: Tuning, folder: Path, world: World, work: Work) -> Tuned:
    """Do every run that a recipe asks for, and sum them up.

    Args:
        recipe: with `repeat.seeds` or `repeat.folds`.
        folder: of all of them.
        world: who trains together.
        work: one run.

    Raises:
        ConfigError: folds are asked for of a task whose answers are not scored.
    """
    kind = find_objective(recipe.task)
    if recipe.repeat.folds is not None and kind.solver is None:
        what = f"{kind.name} has a loss and no score that folds could pool"
        raise ConfigError(what, where="repeat.folds", mend="use repeat.seeds")
    with opened(recipe, folder, world):
        done: dict[str, Tuned] = {}
        for name, each in parts(recipe):
            place = folder / name
            found = finished(each, place) if world.main else None
            if not world.broadcast(found is not None):
                found = work(each, place, world)
                if found.result.reason not in ("done", "early"):
                    return replace(found, result=replace(found.result, folder=folder), model=None)
            if found is not None:
                done[name] = found
        if not world.main:
            return found or next(iter(done.values()))
        return _settle(recipe, folder, done)


def parts(recipe: Tuning) -> Iterator[tuple[str, Tuning]]:
    """The runs of a recipe, by the names of their folders."""
    asked, seed = recipe.repeat, recipe.train.seed
    plain = recipe.replace(repeat=RepeatSection())
    for at in range(asked.seeds or 0):
        name = f"seed-{seed + at}"
        yield name, plain.replace(name=f"{recipe.name[:80]} {name}", train=recipe.train.replace(seed=seed + at))
    for at in range(1, (asked.folds or 0) + 1):
        data = recipe.data.replace(folds=asked.folds, fold=at)
        yield f"fold-{at}", plain.replace(name=f"{recipe.name[:80]} fold-{at}", data=data)


def finished(recipe: Tuning, folder: Path) -> Tuned | None:
    """What came of a run that is there and was done by the same recipe."""
    if not (folder / RECIPE).is_file() or Tuning.from_yaml(folder / RECIPE) != recipe:
        return None
    return read_tuned(folder)


def _settle(recipe: Tuning, folder: Path, done: Mapping[str, Tuned]) -> Tuned:
    """Pool and sum up the runs, keep the best model, and tell the log that all is done."""
    best = max(done, key=lambda name: done[name].rank)
    tests = [each.test for each in done.values() if each.test is not None]
    pooled = None
    if recipe.repeat.folds is not None:
        items = tuple(item for test in tests for item in test.items)
        source = recipe.data.source
        pooled = Evaluation(summarize(items, tests[0].results.scoring, system=folder.name, source=source), items)
        pooled.save(folder / TEST)
    runs = {name: _metrics(each) for name, each in done.items()}
    metrics = [
        key for key in next(iter(runs.values())) if all(math.isfinite(run.get(key, math.nan)) for run in runs.values())
    ]
    summary = Summary(
        by="seeds" if pooled is None else "folds",
        split="test" if tests else "validation",
        runs=runs,
        scores={key: Spread.of([run[key] for run in runs.values()]) for key in metrics},
        pooled={} if pooled is None else {key: pooled.results.scores[key] for key in metrics},
        best=best,
    )
    with new_file(folder / SUMMARY) as partial:
        partial.write_text(json.dumps(_finite(asdict(summary)), ensure_ascii=False, indent=2) + "\n", "utf-8")
    return replace(keep(recipe, folder, done, best), test=pooled or done[best].test, summary=summary)


def keep(recipe: Tuning, folder: Path, done: Mapping[str, Tuned], best: str) -> Tuned:
    """Give the folder of several runs the model of the best of them, and tell its log that all is done."""
    kept = done[best]
    assert kept.model is not None
    if (kept.model.parent / ADAPTER).is_dir():
        copy_model(kept.model.parent / ADAPTER, folder / ADAPTER)
    model = copy_model(kept.model, folder / MODEL)
    totals = {key: sum(getattr(each.result, key) for each in done.values()) for key in ("steps", "tokens", "seconds")}
    (folder / LOG).unlink(missing_ok=True)  # of the same runs, when they were fewer
    log = Stream([JsonLines(folder / LOG)])
    log.emit("start", 0, {"name": recipe.name, "steps": totals["steps"], "objective": recipe.task})
    log.emit(
        "end", totals["steps"], {"reason": "done", **{key: totals[key] for key in ("tokens", "seconds")}, "loss": None}
    )
    log.close()
    return Tuned(replace(kept.result, folder=folder), model, kept.test)


def _metrics(each: Tuned) -> dict[str, float]:
    """What a run scored: on the test split, or where there is none what chose its best checkpoint."""
    if each.test is not None:
        return each.test.scores
    score, loss = each.result.best_score, each.result.best_loss
    if score is not None:
        return {"validation": score}
    return {} if loss is None else {"validation loss": loss}


def _finite(value: Any) -> Any:
    """Plain JSON values; a number that is none is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return {key: _finite(each) for key, each in value.items()} if isinstance(value, dict) else value
