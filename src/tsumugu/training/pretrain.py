"""Pre-training: a recipe, and text without labels, become a model in a folder of its own.

The recipe is written into that folder first; a run that was killed at any moment is resumed from its folder alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tsumugu.anatomy.card import About
from tsumugu.anatomy.distribution import corpus_source
from tsumugu.core.errors import ConfigError, InputError
from tsumugu.core.registry import FAMILIES, OBJECTIVES
from tsumugu.corpus.loader import Loader, Mixture, Rows
from tsumugu.corpus.shards import Corpus
from tsumugu.engines.torch import load_model
from tsumugu.models.base import Model
from tsumugu.objectives.base import Batch, Objective
from tsumugu.objectives.vocabulary import vocabulary_of
from tsumugu.text.tokenizer import Tokenizer
from tsumugu.training.checkpointing import BEST, LAST, find_checkpoint
from tsumugu.training.distributed import World
from tsumugu.training.events import Stream
from tsumugu.training.feed import RowFeed, held_back, share
from tsumugu.training.flops import flops_per_token
from tsumugu.training.hardware import measure_machine
from tsumugu.training.informed import start_informed, write_statistics
from tsumugu.training.initialization import initialize
from tsumugu.training.launch import RUNS, begin, describe, go, opened, recipe_of
from tsumugu.training.loop import Result, Trainer
from tsumugu.training.optimizers import HEADS
from tsumugu.training.outline import from_section
from tsumugu.training.recipe import Recipe
from tsumugu.training.run_data import keep_environment, open_corpora, prepare_text
from tsumugu.training.sample import write_sample

CONTEXT = 256
"""How many positions a model reads where neither it nor the recipe says so."""
DAY = 86400.0
"""Seconds that ranks wait for the one that prepares the text."""


def train(
    recipe: Recipe | str | Path | Mapping[str, Any],
    folder: str | Path | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
) -> Result:
    """Pre-train a model as a recipe says. Under torchrun, all ranks call this alike.

    Args:
        recipe: a `Recipe`, a YAML file, the name of a recipe that comes with the package, or plain values.
        folder: the run's; `runs/NAME` when left out.
        resume: go on with the run that is there already. Ranks that torchrun started anew do so in any case.
        quiet: show only warnings.

    Raises:
        ConfigError: the recipe does not fit together.
        InputError: there is a run in the folder already, or text cannot be read.
        TsumuguError: training failed; see `Trainer.run`.
    """
    if isinstance(recipe, Mapping):
        recipe = Recipe.from_values(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = Recipe.from_yaml(recipe)
    place = RUNS / recipe.name if folder is None else Path(folder)
    chosen = recipe
    return begin(recipe, place, lambda world: _work(chosen, place, world, quiet=quiet), resume=resume)


def resume(folder: str | Path, overrides: Mapping[str, str] | None = None, *, quiet: bool = False) -> Result:
    """Go on with a run from its newest checkpoint, or from its beginning where there is none.

    Args:
        folder: the run's.
        overrides: values by dotted key that replace the recipe's, such as `train.steps`. What makes the run what it is
            (model, tokenizer, data, objective, optimizer) cannot change.

    Raises:
        InputError: there is no run in the folder, or its data are no longer the same.
        ConfigError: an override is not legal.
    """
    folder = Path(folder)
    recipe = recipe_of(folder, Recipe, overrides)
    with World.open(tensor=recipe.parallel.tensor) as world:
        return _work(recipe, folder, world, quiet=quiet)


def _work(recipe: Recipe, folder: Path, world: World, *, quiet: bool) -> Result:
    with opened(recipe, folder, world):
        if world.main:
            prepare_text(recipe, folder, quiet=quiet)
        world.barrier(patience=DAY)
        corpora, tokenizer = open_corpora(recipe, folder)
        if world.main:
            sources = [source for each in corpora for source in each.sources]
            keep_environment(folder, [each.checksum for each in corpora], sources)
        result = go(_trainer(recipe, folder, world, corpora, tokenizer), quiet=quiet)
        if world.main and result.reason in ("done", "early"):
            folders = {find_checkpoint(folder, name) for name in (BEST, LAST)}
            describe(folders, [corpus_source(each) for each in corpora], About(name=folder.name))
        return result


# Model, objective and data


def _trainer(recipe: Recipe, folder: Path, world: World, corpora: Sequence[Corpus], tokenizer: Tokenizer) -> Trainer:
    train, data = recipe.train, recipe.data
    options = {key: value for key, value in recipe.objective.items() if key != "name"}
    kind = OBJECTIVES[recipe.objective["name"]].from_dict(options, where="objective")
    packing = data.packing or kind.packing
    vocabulary = vocabulary_of(tokenizer, corpora[0].token_bytes)
    model, context = _model(recipe, tokenizer, vocabulary.size, kind.build(vocabulary, data.context or CONTEXT).head)
    objective: Objective = kind.for_packing(packing).build(vocabulary, context)

    def rows(corpora: Sequence[Corpus], *, shuffle: bool) -> Rows:
        loaders = [
            Loader(
                each,
                packing,
                length=objective.length(context),
                slots=objective.slots,
                seed=train.seed + i,
                shuffle=shuffle,
            )
            for i, each in enumerate(corpora)
        ]
        if len(loaders) == 1:
            return loaders[0]
        return Mixture(loaders, data.weights or [each.rows_per_epoch for each in loaders])

    read = rows(corpora, shuffle=data.shuffle)
    micro_batch = share(train.batch, train.micro_batch, world.data_size)
    feed = RowFeed(read, objective, batch=train.batch, micro_batch=micro_batch, seed=train.seed)
    steps = _steps(recipe, read, context)
    kept = [each.validation for each in corpora if each.validation is not None]
    evaluated = rows(kept, shuffle=False) if kept else None

    def batches() -> Iterator[Batch]:
        assert evaluated is not None
        limit = recipe.evaluation.rows
        yield from held_back(evaluated, objective, limit=limit, micro_batch=micro_batch, seed=train.seed)

    model.to(world.device)
    if recipe.model.init is None:
        initialize(model, seed=train.seed)
    if recipe.model.start == "informed":
        path = folder / "start.safetensors"
        if world.main and not path.is_file():
            write_statistics(corpora[0], model.config.hidden_size, path, seed=train.seed)
        world.barrier(patience=DAY)
        start_informed(model, path, seed=train.seed)
    writes = model.head_name in ("causal-lm", "seq2seq-lm")
    section = recipe.evaluation

    def sample(model: Model, prompt: str, seed: int) -> str:
        return write_sample(
            model, tokenizer, prompt, new_tokens=section.new_tokens, temperature=section.temperature, seed=seed
        )

    about = {
        "family": model.family.name,
        "objective": objective.name,
        "parameters": model.num_parameters(),
        "tokens_per_step": train.batch * objective.length(context),
        "flops_per_token": _cost(model, context, feed.batches(0, 0, world.data_size)[0], objective),
        "peak_flops": _peak(world) if world.main else None,
        "device": str(world.device.type),
        "ranks": world.size,
        "epochs": feed.epoch(steps),
    }
    return Trainer(
        model,
        objective,
        feed,
        recipe,
        steps=steps,
        folder=folder,
        world=world,
        stream=Stream(),
        held_back=batches if kept else None,
        tokenizer=tokenizer,
        about=about,
        sample=sample if writes else None,
    )


def _model(recipe: Recipe, tokenizer: Tokenizer, vocab_size: int, head: str) -> tuple[Model, int]:
    """The network with unset weights (or those of `model.init`), and how many positions it shall read."""
    section, context = recipe.model, recipe.data.context
    if section.init is not None:
        torch.manual_seed(recipe.train.seed)
        model = load_model(section.init, task=head, strict=False)
        report = model.load_report
        if report is not None:  # what another objective asks of the head begins fresh
            lost = tuple(name for name in report.missing if name.partition(".")[0] not in HEADS)
            replace(report, missing=lost, unused=()).require(section.init)
        if model.config.vocab_size < vocab_size:
            raise ConfigError(
                f"it knows {model.config.vocab_size} tokens, the corpus has {vocab_size}",
                where="model.init",
                mend="prepare the corpus with this model's own tokenizer",
            )
        return model, _readable(model, context)
    name = FAMILIES.canonical(section.family or "")
    known = set(FAMILIES[name].config_class.__dataclass_fields__)
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        **{key: each for key, each in roles.items() if each is not None},
    }
    if "decoder_start_token_id" in known and tokenizer.pad_token_id is not None:
        values["decoder_start_token_id"] = tokenizer.pad_token_id
    if section.preset is None:
        # RoBERTa's table begins with rows that are never read.
        spare = (tokenizer.pad_token_id or 0) + 1 if name == "roberta" else 0
        values["max_positions"] = (context or CONTEXT) + spare
    values = {key: each for key, each in values.items() if key in known} | section.config
    family, config = from_section({"family": name, "preset": section.preset, "config": values}, where="recipe")
    if head not in family.heads:
        raise ConfigError(
            f"the objective {recipe.objective['name']} needs the head {head}, which {name} has not",
            where="objective",
            mend=f"{name} has: {', '.join(family.heads)}",
        )
    model = family.build(config, head)
    return model, _readable(model, context)


def _readable(model: Model, context: int | None) -> int:
    config = model.config
    limit = getattr(config, "max_positions", None)
    if model.family.name == "t5":  # relative positions know no limit
        return context or CONTEXT
    if limit is not None and model.family.name == "roberta":
        limit -= config.pad_token_id + 1
    if context is not None and limit is not None and context > limit:
        raise ConfigError(f"the model reads {limit} positions, not {context}", where="data.context")
    return context or limit or CONTEXT


def _steps(recipe: Recipe, rows: Rows, context: int) -> int:
    train = recipe.train
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return max(1, -(-train.tokens // (train.batch * context)))
    epochs = 1.0 if train.epochs is None else train.epochs
    return max(1, round(epochs * rows.rows_per_epoch / train.batch))


def _cost(model: Model, context: int, batch: Batch, objective: Objective) -> float | None:
    """Operations of training for each token, as the first batch has it."""
    asked = next(iter(batch.counts.values())) / max(batch.tokens, 1)
    target = batch.inputs["targets"].shape[1] if model.head_name == "seq2seq-lm" else None
    try:
        return flops_per_token(model, batch.inputs["input_ids"].shape[1], target=target, asked=1.0 if target else asked)
    except InputError:
        return None


def _peak(world: World) -> float | None:
    """What matrix products reach on this machine; not known of a GPU."""
    return measure_machine(seconds=0.2).flops if world.device.type == "cpu" else None
