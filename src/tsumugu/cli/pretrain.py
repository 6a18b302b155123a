"""``tsumugu pretrain`` and ``tsumugu resume``: a recipe becomes a model; a run that was broken off goes on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tsumugu.cli.options import Quiet
from tsumugu.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from tsumugu.training.loop import Result


def pretrain(
    *overrides: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[
        str | None, Parameter(("--config", "-c"), help="A recipe: a YAML file, or a name of --list.")
    ] = None,
    output: Annotated[Path | None, Parameter(("--output", "-o"), help="The run's folder (runs/NAME).")] = None,
    resume: Annotated[bool, Parameter(negative="", help="Go on if the run is there already.")] = False,
    show: Annotated[bool, Parameter(("--print",), negative="", help="Print the whole recipe, and do nothing.")] = False,
    list: Annotated[bool, Parameter(negative="", help="List the recipes that come with tsumugu.")] = False,
    quiet: Quiet = False,
) -> None:
    """Pre-train a model on raw text, as a recipe says.

    Every value of the recipe can be given here by its dotted name: --train.lr 3e-4 --data.inputs texts/. Ctrl-C saves
    and stops; tsumugu resume goes on from there. Under torchrun, several processes train one model together.
    """
    if list:
        from tsumugu.training.recipe import recipe_names

        for name, summary in recipe_names().items():
            print(f"{name:20} {summary}")
        return
    if config is None:
        raise InputError("no recipe is named", where="--config", mend="give a YAML file, or a name of --list")
    from tsumugu.training.recipe import Recipe

    recipe = Recipe.from_yaml(config, pairs(overrides))
    if show:
        print(recipe.to_yaml(), end="")
        return
    from tsumugu.training.pretrain import train

    leave(train(recipe, output, resume=resume, quiet=quiet))


def resume(
    run: str,
    /,
    *overrides: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    folder: Annotated[Path | None, Parameter(negative="", help="Where runs are looked for by name (./runs).")] = None,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was stopped or killed, from its last checkpoint.

    What does not make the run what it is can be changed by its dotted name: --train.steps 5000.

    Parameters
    ----------
    run
        The name of a run, or the path of its folder.
    """
    from tsumugu.training.recipe import read_yaml
    from tsumugu.training.runs import RECIPE, find_run

    place, changes = find_run(run, folder or Path("runs")), pairs(overrides)
    if (place / RECIPE).is_file() and "task" in read_yaml(place / RECIPE):
        from tsumugu.cli.finetune import say
        from tsumugu.tuning.finetune import resume as tune_on

        say(tune_on(place, changes, quiet=quiet), quiet=quiet)
        return
    from tsumugu.training.pretrain import resume as go_on

    leave(go_on(place, changes, quiet=quiet))


def pairs(words: tuple[str, ...]) -> dict[str, str]:
    """`--section.key value` and `--section.key=value` by key."""
    found: dict[str, str] = {}
    rest = [*words]
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise ConfigError(
                f"unexpected argument {word!r}", mend="values of a recipe are given as --section.key value"
            )
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if not equals:
            if not rest:
                raise ConfigError("this option has no value", where=word, mend=f"{word} VALUE")
            value = rest.pop(0)
        found[key] = value
    return found


def leave(result: Result) -> None:
    """Say how to go on; the exit code of a signal is 128 and its number."""
    if result.reason in ("stopped", "budget") and os.environ.get("RANK", "0") == "0":
        print(f"saved; go on with: tsumugu resume {result.folder}", file=sys.stderr)
    if result.signal is not None:
        raise SystemExit(128 + result.signal)
