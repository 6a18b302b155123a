"""``tsumugu explain``: why a model answered so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from tsumugu.cli.console import progress, stderr, stdout
from tsumugu.cli.dash import DASH
from tsumugu.cli.downloads import downloads
from tsumugu.cli.options import Device, Quiet
from tsumugu.core.errors import InputError

if TYPE_CHECKING:
    from tsumugu.anatomy.influence import Neighbours


@Parameter(name="*", group=Group("Nearest training examples", sort_key=5))
@dataclass(kw_only=True)
class NearestFlags:
    """Which labelled examples pull a classifier's answer."""

    nearest: Annotated[
        Path | None, Parameter(help="Labelled data: also say which rows pull the answer of a classifier.")
    ] = None
    by: Annotated[
        Literal["influence", "embedding"] | None, Parameter(help="Gradients (TracIn), the default, or near vectors.")
    ] = None
    checkpoints: Annotated[
        Path | None, Parameter(help="A run's folder: influence is summed over the checkpoints that it kept.")
    ] = None
    layers: Annotated[
        int | None, Parameter(help="Gradients of the head and of so many layers from the end; of its last matrix.")
    ] = None
    top: Annotated[int | None, Parameter(help="Rows shown on each side: 5.")] = None

    def check(self) -> None:
        """Refuse what does not fit together, before anything is loaded."""
        others = ("by", "checkpoints", "layers", "top")
        given = [name for name in others if getattr(self, name) is not None]
        if self.nearest is None and given:
            raise InputError(f"--{given[0]} needs labelled data", mend="give --nearest FILE")
        if self.nearest is not None and not self.nearest.exists():
            raise InputError("there is no such file", where=f"--nearest {self.nearest}")
        if self.by == "embedding" and (self.checkpoints is not None or self.layers is not None):
            raise InputError("near vectors have no gradients", mend="leave out --checkpoints and --layers")
        if self.top is not None and self.top < 1:
            raise InputError(f"{self.top} rows are none", where="--top", mend="at least 1")


def explain(
    task: Annotated[
        str, Parameter(help="text-classification, ner, question-answering, sts, text-generation, fill-mask…")
    ],
    texts: Annotated[list[str], DASH, Parameter(name="text", negative="", help="A text; two for pairs.")],
    /,
    *,
    model: Annotated[str, Parameter(("--model", "-m"), help="A folder, a file, a name.")],
    target: Annotated[
        str | None, Parameter(help="A label, a token, or LABEL@WORD; the model's own answer otherwise.")
    ] = None,
    method: Annotated[
        Literal["integrated-gradients", "input-x-gradient", "occlusion", "shapley"] | None,
        Parameter(help="How; integrated gradients, for decoders Shapley values."),
    ] = None,
    baseline: Annotated[
        Literal["pad", "mask", "zero"], Parameter(help="What a token becomes when it is taken away.")
    ] = "pad",
    check: Annotated[bool, Parameter(negative="", help="Also test the explanation: deletion, random weights.")] = False,
    html: Annotated[
        Path | None, Parameter(help="Write a page, with attention and what each layer would answer.")
    ] = None,
    svg: Annotated[Path | None, Parameter(help="Write the coloured text as an SVG drawing.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")] = False,
    near: NearestFlags | None = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Say what each token of a text adds to the answer."""
    for path, suffix in ((html, ".html"), (svg, ".svg")):
        if path is not None and path.suffix.lower() != suffix:
            raise InputError(f"{path.name!r} does not end in {suffix}", where=f"--{suffix[1:]}")
    if not 1 <= len(texts) <= 2:
        raise InputError(f"{len(texts)} texts are given", where="text", mend="give one, or two for pairs")
    near = near or NearestFlags()
    near.check()
    from tsumugu.anatomy.explain import explain as find
    from tsumugu.anatomy.explain_page import checks, facts, in_text
    from tsumugu.anatomy.targets import ask
    from tsumugu.checkpoints.load import load_tokenizer
    from tsumugu.core.registry import TASKS
    from tsumugu.engines.torch import load_model

    with downloads(quiet=quiet) as watch:
        name = TASKS.canonical(task) if task in TASKS else task
        loaded = load_model(model, device=device, task=name, progress=watch)
    question = ask(name, loaded, load_tokenizer(model), *texts, target=target)
    way = method or ("shapley" if loaded.head_name == "causal-lm" else "integrated-gradients")
    with progress(quiet=quiet or as_json) as display:
        display.add_task(f"asking why, by {way}", total=None)
        found = find(loaded, question, method=way, baseline=baseline, check=check)
        pulling = None
        if near.nearest is not None:
            bar = display.add_task("reading the examples", total=None)
            pulling = _pulling(near, loaded, model, texts, target, lambda count: display.advance(bar, count))
    for path, text in _files(html, svg, loaded, model, found, question, texts, pulling):
        from tsumugu.checkpoints.atomic import new_file

        with new_file(path) as partial:
            partial.write_text(text, "utf-8")
        if not quiet:
            stderr().print(f"written: {path}", markup=False)
    if as_json:
        more = {} if pulling is None else {"nearest": pulling.to_dict()}
        print(json.dumps({**found.to_dict(), **more}, ensure_ascii=False))
    elif html is None and svg is None:
        stdout().print(f"{found.answer}\n", markup=False)
        for line in in_text(found, question):
            stdout().print(line, markup=False)
        stdout().print()
        for key, value in (*facts(found), *checks(found)):
            stdout().print(f"{key}: {value}", markup=False)
        if pulling is not None:
            from tsumugu.anatomy.influence import in_text as in_lines

            stdout().print()
            for line in in_lines(pulling):
                stdout().print(line, markup=False)


def _pulling(
    near: NearestFlags, model: Any, name: str, texts: list[str], target: str | None, watch: Callable[[int], None]
) -> Neighbours:
    """The rows of the data that pull the answer."""
    from tsumugu.anatomy.influence import neighbours
    from tsumugu.checkpoints.load import load_tokenizer
    from tsumugu.data.labelled.load import load_examples
    from tsumugu.engines.torch import load_model
    from tsumugu.training.checkpointing import FOLDER, steps_in

    kind = "pair-classification" if len(texts) == 2 else "text-classification"
    examples = load_examples(near.nearest or "", kind, labels=model.config.labels)
    moments = None
    if near.checkpoints is not None:
        kept = steps_in(near.checkpoints / FOLDER)
        if not kept:
            raise InputError("the run has kept no checkpoints", where=f"--checkpoints {near.checkpoints}")
        moments = (load_model(str(kept[step]), device=str(model.device)) for step in sorted(kept))
    return neighbours(
        model,
        load_tokenizer(name),
        texts,
        examples,
        by=near.by or "influence",
        target=target,
        checkpoints=moments,
        layers=near.layers or 0,
        top=near.top or 5,
        watch=watch,
    )


def _files(
    html: Path | None,
    svg: Path | None,
    model: Any,
    name: str,
    found: Any,
    question: Any,
    texts: list[str],
    pulling: Neighbours | None,
) -> list[tuple[Path, str]]:
    """What is to be written, all made before the first is."""
    from tsumugu.anatomy import explain_page
    from tsumugu.anatomy.insides import attentions, lens
    from tsumugu.checkpoints.load import load_tokenizer

    files = []
    if html is not None:
        seen = attentions(model, question.ids, **question.arguments(1))
        writes = model.head_name == "causal-lm"
        depths = lens(model, load_tokenizer(name), question.ids) if writes else []
        other = texts[1] if len(texts) == 2 and len(question.texts) == 1 else None
        page = explain_page.render(found, question, model=name, other=other, attention=seen, lens=depths, near=pulling)
        files.append((html, page))
    if svg is not None:
        files.append((svg, explain_page.svg(found, question)))
    return files
