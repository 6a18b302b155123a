"""Self-training: a model labels the texts that nobody labelled, and the next one learns from those it was sure of, too.

Each round is a run in a folder of its own, `round-0` from the labelled examples alone. `round-1.jsonl` holds what the
model of round 0 labelled with confidence, as many of each label, the surest first. Every round begins with the
pre-trained model anew and learns with dropout, which its teacher labelled without. The model that is kept is the one
with the best validation score, the later one where two are equal, and the last where nothing is held back.

Source: Lee 2013, "Pseudo-Label"; Xie et al. 2020, "Self-training with Noisy Student improves ImageNet classification",
section 2.1 (the rounds, the balance, the noise).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tsumugu.checkpoints.atomic import new_file
from tsumugu.core.errors import ConfigError
from tsumugu.tasks.pipeline import pipeline
from tsumugu.training.distributed import World
from tsumugu.training.launch import opened
from tsumugu.tuning.objectives import find_objective
from tsumugu.tuning.outcome import Tuned
from tsumugu.tuning.recipe import SelfTraining, Tuning
from tsumugu.tuning.repeat import Work, finished, keep
from tsumugu.tuning.splits import read_splits, read_unlabelled


def self_train(recipe: Tuning, folder: Path, world: World, work: Work) -> Tuned:
    """Do all rounds that a recipe asks for; what is there already is not done again.

    Args:
        recipe: with `self_training.rounds` and `data.unlabelled`.
        folder: of all rounds.
        world: who trains together.
        work: one run.

    Raises:
        ConfigError: the task has no labels of texts, or there are no texts.
    """
    kind = find_objective(recipe.task)
    if kind.kind != "text-classification":
        raise ConfigError(f"{kind.name} is not learnt by self-training", where="self_training.rounds")
    if not recipe.data.unlabelled:
        raise ConfigError("there are no texts to label", where="self_training.rounds", mend="name data.unlabelled")
    with opened(recipe, folder, world):
        done: dict[str, Tuned] = {}
        for number in range(recipe.self_training.rounds + 1):
            name, data = f"round-{number}", recipe.data
            if not recipe.loss.consistency:
                data = data.replace(unlabelled=())
            if number:
                more = folder / f"{name}.jsonl"
                if world.main and not more.is_file():
                    _label(recipe, folder / f"round-{number - 1}", more)
                world.sum([0])  # all wait until it is there
                if not more.stat().st_size:
                    break  # nothing was sure enough
                data = data.replace(more=str(more))
            each = recipe.replace(name=f"{recipe.name[:80]} {name}", data=data, self_training=SelfTraining())
            found = finished(each, folder / name) if world.main else None
            if not world.broadcast(found is not None):
                found = work(each, folder / name, world)
                if found.result.reason not in ("done", "early"):
                    return replace(found, result=replace(found.result, folder=folder), model=None)
            if found is not None:
                done[name] = found
        if not world.main:
            return next(reversed(done.values()))
        best = next(reversed(done))
        if recipe.data.validation_share > 0:
            best = max(reversed(done), key=lambda name: done[name].rank[0])
        return keep(recipe, folder, done, best)


def _label(recipe: Tuning, teacher: Path, target: Path) -> None:
    """Write the texts that a run's model is sure of, as many of each label; the file appears whole."""
    splits = read_splits(recipe, "text-classification")
    texts = read_unlabelled(recipe.data, splits)
    task = pipeline("text-classification", str(teacher))
    labels = splits.train.labels or ()
    chosen = balanced([each[0] for each in task(texts, top_k=1)], labels, recipe.self_training.confidence)
    with new_file(target) as partial, partial.open("w", encoding="utf-8") as file:
        for at, label, score in chosen:
            row = {"text": texts[at], "label": label, "confidence": round(score, 6)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def balanced(
    answers: Sequence[dict[str, object]], labels: Sequence[str], confidence: float
) -> list[tuple[int, str, float]]:
    """The place, label and score of answers that are sure: as many of each label as of the one with the fewest."""
    sure: dict[str, list[tuple[int, float]]] = {label: [] for label in labels}
    for at, each in enumerate(answers):
        label, score = str(each["label"]), float(str(each["score"]))
        if score >= confidence:
            sure[label].append((at, score))
    count = min(map(len, sure.values()))
    found = [
        (at, label, score)
        for label, some in sure.items()
        for at, score in sorted(some, key=lambda one: -one[1])[:count]
    ]
    return sorted(found)
