"""``tsumugu finetune``: labelled examples make a pre-trained model one that solves a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from tsumugu.cli.options import Quiet
from tsumugu.cli.pretrain import leave, pairs
from tsumugu.core.errors import InputError

if TYPE_CHECKING:
    from tsumugu.tuning.outcome import Tuned


def finetune(
    *task: Annotated[str, Parameter(allow_leading_hyphen=True)],
    model: Annotated[str | None, Parameter(("--model", "-m"), help="What is tuned: a path, a name, a run.")] = None,
    data: Annotated[
        str | None, Parameter(("--data", "-d"), help="A folder with train, validation, test files; a file; hf:NAME.")
    ] = None,
    config: Annotated[str | None, Parameter(("--config", "-c"), help="A recipe: a YAML file.")] = None,
    output: Annotated[Path | None, Parameter(("--output", "-o"), help="The run's folder (runs/NAME).")] = None,
    method: Annotated[
        Literal["full", "head", "lora", "prompt", "prefix", "setfit"] | None,
        Parameter(help="What is trained (full)."),
    ] = None,
    epochs: Annotated[float | None, Parameter(help="How often the examples are read (3).")] = None,
    limit: Annotated[int | None, Parameter(help="So many training examples at most.")] = None,
    seeds: Annotated[int | None, Parameter(help="Do it so many times, with other seeds; mean and deviation.")] = None,
    folds: Annotated[int | None, Parameter(help="Cross-validation in so many parts.")] = None,
    skip: Annotated[bool, Parameter(negative="", help="Pass over rows that cannot be used.")] = False,
    resume: Annotated[bool, Parameter(negative="", help="Go on if the run is there already.")] = False,
    show: Annotated[bool, Parameter(("--print",), negative="", help="Print the whole recipe, and do nothing.")] = False,
    quiet: Quiet = False,
) -> None:
    """Tune a pre-trained model for a task, with labelled examples.

    Every value of the recipe can be given by its dotted name: --train.lr 1e-4 --loss.label_smoothing 0.1. Ctrl-C saves
    and stops; tsumugu resume goes on from there. The tuned model is RUN/model; tsumugu run --model RUN finds it.

    Parameters
    ----------
    task
        text-classification (sentiment-analysis), natural-language-inference, text-similarity, sentence-similarity
        (a bi-encoder), sentence-distillation, token-classification (ner), question-answering, multiple-choice,
        summarization, translation, instruction-tuning, preference (dpo).
    """
    from tsumugu.training.recipe import read_yaml, with_overrides
    from tsumugu.tuning.objectives import find_objective
    from tsumugu.tuning.recipe import Tuning

    values: dict[str, Any] = {} if config is None else read_yaml(Path(config))
    # What is not the task's name is the recipe's values.
    name, overrides = (task[0], task[1:]) if task and not task[0].startswith("-") else (None, task)
    said: dict[str, Any] = {"task": name, "model.source": model, "data.source": data, "model.method": method}
    said |= {"train.epochs": epochs, "data.limit": limit, "data.skip": skip or None}
    said |= {"repeat.seeds": seeds, "repeat.folds": folds}
    values = with_overrides(values, {key: each for key, each in said.items() if each is not None})
    for key, option in (("task", "TASK"), ("model", "--model"), ("data", "--data")):
        if key not in values:
            raise InputError(f"no {key} is named", where="finetune", mend=f"give {option}, or a recipe with --config")
    find_objective(str(values["task"]))
    values.setdefault("name", _name(values))
    recipe = Tuning.from_values(values, pairs(overrides), where=config or "finetune")
    if show:
        print(recipe.to_yaml(), end="")
        return
    from tsumugu.tuning.finetune import finetune as tune

    say(tune(recipe, output, resume=resume, quiet=quiet), quiet=quiet)


def say(tuned: Tuned, *, quiet: bool) -> None:
    """Tell the scores of the test split and where the model is; leave as `pretrain` does."""
    if tuned.summary is not None and not quiet:
        print(tuned.summary.table())
    elif tuned.test is not None and not quiet:
        results = tuned.test.results
        for name, score in results.scores.items():
            print(f"{name:12} {score.value:.4f}  [{score.low:.4f}, {score.high:.4f}]")
    if tuned.model is not None:
        print(tuned.model)
    leave(tuned.result)


def _name(values: dict[str, Any]) -> str:
    """Task and data, as the name of a folder."""
    from tsumugu.tuning.objectives import find_objective

    data = Path(str(values["data"].get("source", "data"))).name.partition(".")[0] or "data"
    return f"{find_objective(str(values['task'])).name}-{data}"
