"""Fine-tuning: a pre-trained model and labelled examples become a model for a task, in a folder of its own.

A run's folder holds what a run of pre-training holds, and at the end `model/`, the best weights as the reference
library loads them, and `test/`, how well they solve examples that played no part.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tsumugu.adapters.adapt import add_adapter, merge_adapter
from tsumugu.anatomy.card import About
from tsumugu.anatomy.card import Result as CardResult
from tsumugu.checkpoints.adapter import is_adapter
from tsumugu.checkpoints.load import load_tokenizer
from tsumugu.core.errors import ConfigError
from tsumugu.data.labelled.examples import Examples
from tsumugu.engines.torch import find_head, load_model, save_model
from tsumugu.evaluation.evaluate import Evaluation, evaluate
from tsumugu.evaluation.scoring import PRIMARY, Item, Scoring, score
from tsumugu.evaluation.solving import solve
from tsumugu.models.base import Model
from tsumugu.objectives.base import Batch
from tsumugu.tasks.pipeline import pipeline
from tsumugu.training.checkpointing import BEST, LAST, find_checkpoint
from tsumugu.training.distributed import World
from tsumugu.training.events import Stream
from tsumugu.training.feed import Feed
from tsumugu.training.launch import RUNS, begin, describe, go, opened, recipe_of
from tsumugu.training.loop import Result, Trainer
from tsumugu.training.optimizers import HEADS
from tsumugu.training.run_data import keep_environment
from tsumugu.training.step import narrow
from tsumugu.tuning.base import Row, TaskObjective
from tsumugu.tuning.feed import Beside, ExampleFeed, held_back
from tsumugu.tuning.mean_pooling import one_layer_more, read_the_mean
from tsumugu.tuning.objectives import find_objective
from tsumugu.tuning.outcome import ADAPTER, MODEL, TEST, Tuned, copy_model
from tsumugu.tuning.recipe import EPOCHS, Tuning
from tsumugu.tuning.repeat import repeat
from tsumugu.tuning.self_training import self_train
from tsumugu.tuning.setfit import few_shot
from tsumugu.tuning.splits import Splits, drawn, read_splits, read_unlabelled
from tsumugu.tuning.writing import TextToText, asked_as

TRAINING = "training"
"""The folder of a checkpoint that training alone reads."""


def finetune(
    recipe: Tuning | str | Path | Mapping[str, Any],
    folder: str | Path | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Tuned:
    """Tune a model for a task as a recipe says. Under torchrun, all ranks call this alike.

    Args:
        recipe: a `Tuning`, a YAML file, or plain values: at least `task`, `model.source` and `data.source`.
        folder: the run's; `runs/NAME` when left out.
        resume: go on with the run that is there already.
        quiet: show only warnings.

    Raises:
        ConfigError: the recipe does not fit together.
        InputError: there is a run in the folder already, or the data cannot be used; row and column are named.
        TsumuguError: training failed; see `Trainer.run`.
    """
    if isinstance(recipe, Mapping):
        recipe = Tuning.from_values(recipe)
    elif not isinstance(recipe, Tuning):
        recipe = Tuning.from_yaml(recipe)
    place = RUNS / recipe.name if folder is None else Path(folder)
    chosen, tuned = recipe, []

    def work(world: World) -> Result:
        tuned.append(_run(chosen, place, world, quiet=quiet))
        return tuned[0].result

    begin(recipe, place, work, resume=resume)
    return tuned[0]


def resume(folder: str | Path, overrides: Mapping[str, str] | None = None, *, quiet: bool = False) -> Tuned:
    """Go on with a run from its newest checkpoint, or from its beginning where there is none.

    Args:
        folder: the run's.
        overrides: values by dotted key that replace the recipe's, such as `train.epochs`. What makes the run what it
            is (task, model, data, loss, optimizer) cannot change.

    Raises:
        InputError: there is no run in the folder, or its data are no longer the same.
        ConfigError: an override is not legal.
    """
    folder = Path(folder)
    recipe = recipe_of(folder, Tuning, overrides)
    with World.open(tensor=recipe.parallel.tensor) as world:
        return _run(recipe, folder, world, quiet=quiet)


def _run(recipe: Tuning, folder: Path, world: World, *, quiet: bool) -> Tuned:
    """All that a recipe asks for: one run, or several in folders of their own."""
    if recipe.repeat.asked:
        return repeat(recipe, folder, world, partial(_run, quiet=quiet))
    if recipe.self_training.rounds:
        return self_train(recipe, folder, world, partial(_run, quiet=quiet))
    return _work(recipe, folder, world, quiet=quiet)


def _work(recipe: Tuning, folder: Path, world: World, *, quiet: bool) -> Tuned:
    with opened(recipe, folder, world):
        kind = _objective(recipe)
        splits = read_splits(recipe, kind.kind)
        if splits.validation is splits.train:
            if recipe.evaluation.patience is not None:
                mend = "give data.validation, or a data.validation_share"
                raise ConfigError("nothing held back tells when to stop", where="evaluation.patience", mend=mend)
            recipe = recipe.replace(evaluation=recipe.evaluation.replace(every=0))  # nothing chooses among checkpoints
        if world.main:
            sources = [
                {"split": name, "path": part.source, "examples": len(part)}
                for name, part in vars(splits).items()
                if part is not None
            ]
            keep_environment(folder, splits.checksums, sources)
        trainer = _trainer(recipe, folder, world, kind, splits)
        result = go(trainer, quiet=quiet)
        if not world.main or result.reason not in ("done", "early"):
            return Tuned(result)
        model = publish(folder)
        test = None if splits.test is None or kind.solver is None else _test(kind, model, splits.test, folder / TEST)
        figures = [] if test is None else _figures(kind, test)
        about = About(name=folder.name, base_model=_public(recipe.model.source), results=figures)
        data = {"name": Path(recipe.data.source).name, "kind": splits.train.kind, "documents": len(splits.train)}
        describe({model, find_checkpoint(folder, LAST)}, [data], about)
        return Tuned(result, model, test)


def _objective(recipe: Tuning) -> type[TaskObjective]:
    """How the recipe's model learns its task."""
    kind = find_objective(recipe.task)
    if recipe.model.method == "setfit":
        return few_shot(kind)
    if kind is TextToText and find_head(recipe.model.source) == "causal-lm":
        return asked_as(recipe.task)
    return kind


def _trainer(recipe: Tuning, folder: Path, world: World, kind: type[TaskObjective], splits: Splits) -> Trainer:
    train = recipe.train
    torch.manual_seed(train.seed)  # of a fresh head's weights
    model, tokenizer = _model(recipe, kind, splits.train), load_tokenizer(recipe.model.source)
    if recipe.model.adapter is not None:
        add_adapter(model, recipe.model.adapter, seed=train.seed)
    elif recipe.model.method == "head":
        if kind.head == "base":
            raise ConfigError(f"{kind.name} has no layers of its own", where="model.method", mend="use full or lora")
        for name, each in model.named_parameters():
            each.requires_grad_(name.partition(".")[0] in HEADS)
    objective = kind(model, tokenizer, recipe.data, recipe.loss)
    objective.rounds = world.device.type == "cpu" and narrow(train.precision, world.device)
    micro_batch = train.micro_batch
    if kind.whole and recipe.data.micro_tokens is not None:
        what = f"{kind.name} compares all texts of a step"
        raise ConfigError(what, where="data.micro_tokens", mend="use train.micro_batch")
    if kind.whole:
        objective.at_once, micro_batch = micro_batch, None
    objective.begin(model, splits.train)
    chosen = drawn(splits.validation, recipe.evaluation.rows, train.seed)
    rows, kept = objective.rows(splits.train), objective.rows(chosen)

    def fed(rows: Sequence[Row], batch: int) -> ExampleFeed:
        return ExampleFeed(
            rows,
            objective.batch,
            batch=batch,
            micro_batch=micro_batch,
            parts=world.data_size,
            seed=train.seed,
            by_length=recipe.data.by_length and not kind.compares,
            places=recipe.data.micro_tokens,
        )

    feed: Feed
    if recipe.data.unlabelled:
        others = objective.unlabelled(read_unlabelled(recipe.data, splits))
        if recipe.loss.teacher is not None:
            rows = [*rows, *others]
    examples = feed = fed(rows, train.batch)
    steps = _steps(recipe, examples)
    if recipe.data.unlabelled and recipe.loss.consistency:
        feed = Beside(examples, fed(others, recipe.data.unlabelled_batch), ramp=round(recipe.loss.ramp * steps))
    model.to(world.device)

    def batches() -> Iterator[Batch]:
        size = 2 * (micro_batch or train.batch)
        yield from held_back(kept, objective.batch, micro_batch=size, places=recipe.data.micro_tokens)

    judged = kind.judged(chosen)

    def scores(model: Model) -> dict[str, float]:
        objective.settle(model)
        task = pipeline(kind.solver, model, tokenizer)
        items = [Item.of(row, answer) for row, answer in zip(judged, solve(task, judged), strict=True)]
        found = score(items, Scoring(judged.kind, tuple(judged.labels or ()))).measures
        main = PRIMARY[judged.kind]
        return {main: found[main].value}

    return Trainer(
        model,
        objective,
        feed,
        recipe.settled(model.config.hidden_size),
        steps=steps,
        folder=folder,
        world=world,
        stream=Stream(),
        held_back=batches,
        tokenizer=tokenizer,
        about={
            "family": model.family.name,
            "objective": kind.name,
            "parameters": model.num_parameters(),
            "device": str(world.device.type),
            "ranks": world.size,
        },
        score=None if kind.solver is None else scores,
    )


def _model(recipe: Tuning, kind: type[TaskObjective], examples: Examples) -> Model:
    """The pre-trained network with the task's head, which is fresh unless the checkpoint has one for these labels.

    Raises:
        CheckpointError: more than a head is missing.
    """
    section, labels = recipe.model, kind.outputs(examples)
    changes: dict[str, Any] = section.config
    fresh: tuple[str, ...] = HEADS
    if section.method == "setfit" or section.pooling == "mean":
        changes, layer = one_layer_more(section)
        fresh = (*HEADS, layer)
    if section.method == "setfit":
        changes = {**changes, "classifier_dropout": 0.0}
    model = load_model(section.source, task=kind.head, labels=labels, config=changes, strict=False)
    report = model.load_report
    if report is not None:
        lost = tuple(name for name in report.missing if not name.startswith(fresh))
        wrong = tuple(each for each in report.mismatched if each[0].partition(".")[0] not in HEADS)
        replace(report, missing=lost, mismatched=wrong, unused=()).require(section.source)
    if section.pooling == "mean":
        if kind.head not in ("sequence-classification", "multiple-choice"):
            raise ConfigError(f"{kind.name} reads every token", where="model.pooling", mend="leave it out")
        read_the_mean(model, 0.5)
    model.usage = {key: each for key, each in model.usage.items() if key != "problem_type"} | kind.usage()
    return model


def _steps(recipe: Tuning, feed: ExampleFeed) -> int:
    train = recipe.train
    if train.tokens is not None:
        raise ConfigError("fine-tuning counts steps or epochs", where="train.tokens")
    if train.steps is not None:
        return train.steps
    return max(1, round((EPOCHS[recipe.model.method] if train.epochs is None else train.epochs) * feed.steps_per_epoch))


def publish(folder: Path) -> Path:
    """The best weights of a run as a model's folder, `model/`; an adapter merged into them, and alone in `adapter/`.

    What stands before every text cannot be merged: then `model/` holds the adapter, too.
    """
    best, target = find_checkpoint(folder, BEST), folder / MODEL
    if not is_adapter(best):
        return copy_model(best, target, leave=(TRAINING,))
    loaded = load_model(copy_model(best, folder / ADAPTER, leave=(TRAINING,)))
    if getattr(loaded, "prompt", None) is not None:
        return copy_model(best, target, leave=(TRAINING,))
    merged = merge_adapter(loaded, unload=True)
    shutil.rmtree(target, ignore_errors=True)
    return save_model(merged, target, tokenizer=load_tokenizer(best))


def _test(kind: type[TaskObjective], model: Path, examples: Examples, folder: Path) -> Evaluation:
    found = evaluate(kind.judged(examples), model=pipeline(kind.solver, model), name=model.parent.name)
    found.save(folder)
    return found


def _figures(kind: type[TaskObjective], test: Evaluation) -> list[CardResult]:
    name = Path(test.results.source).parent.name or "data"
    return [
        CardResult(task=kind.solver or kind.name, dataset=name, metric=metric, value=value, split="test")
        for metric, value in test.scores.items()
    ]


def _public(source: str) -> str | None:
    """A model's name, where it is no place on this machine."""
    return None if Path(source).expanduser().exists() else source
