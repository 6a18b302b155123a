"""``tsumugu explain``: why a model answered so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from tsumugu.cli.console import progress, stdout
from tsumugu.cli.dash import DASH
from tsumugu.cli.downloads import downloads
from tsumugu.cli.inputs import require_texts
from tsumugu.cli.options import Device, Quiet
from tsumugu.cli.pages import check_page, write_page
from tsumugu.core.errors import InputError

if TYPE_CHECKING:
    from tsumugu.anatomy.contributions import Contributions
    from tsumugu.anatomy.edits import Counterfactuals
    from tsumugu.anatomy.influence import Neighbours


@Parameter(name="*", group=Group("Nearest training examples", sort_key=5))
@dataclass(kw_only=True)
class NearestFlags:
    """Which labelled examples pull an answer."""

    nearest: Annotated[Path | None, Parameter(help="Labelled data: also say which rows pull the answer.")] = None
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
        if self.nearest is None:
            _refuse(self, ("by", "checkpoints", "layers", "top"), "needs labelled data", mend="give --nearest FILE")
        if self.nearest is not None and not self.nearest.exists():
            raise InputError("there is no such file", where=f"--nearest {self.nearest}")
        if self.by == "embedding" and (self.checkpoints is not None or self.layers is not None):
            raise InputError("near vectors have no gradients", mend="leave out --checkpoints and --layers")
        if self.top is not None and self.top < 1:
            raise InputError(f"{self.top} rows are none", where="--top", mend="at least 1")


@Parameter(name="*", group=Group("Edits that turn the answer", sort_key=6))
@dataclass(kw_only=True)
class EditFlags:
    """The smallest changes of the text that turn a classifier's answer."""

    edits: Annotated[bool, Parameter(negative="", help="Also look for them: words deleted, replaced, negated.")] = False
    editor: Annotated[
        str | None, Parameter(help="A masked model that suggests words; else near ones of the model's own embeddings.")
    ] = None
    passes: Annotated[int | None, Parameter(help="Texts that are read at most: 1000.")] = None

    def check(self) -> None:
        """Refuse what does not fit together, before anything is loaded."""
        if not self.edits:
            _refuse(self, ("editor", "passes"), "is for edits", mend="give --edits too")
        if self.passes is not None and self.passes < 2:
            raise InputError(f"{self.passes} texts are too few", where="--passes", mend="at least 2")


@Parameter(name="*", group=Group("Parts of a decoder", sort_key=7))
@dataclass(kw_only=True)
class PartFlags:
    """What each attention head and feed-forward adds to a token's score."""

    parts: Annotated[bool, Parameter(negative="", help="Also say it, for the next token of a decoder.")] = False
    against: Annotated[str | None, Parameter(help="Explain how far the token is above this one.")] = None

    def check(self) -> None:
        """Refuse what does not fit together, before anything is loaded."""
        if not self.parts:
            _refuse(self, ("against",), "is for the parts of a decoder", mend="give --parts too")


def _refuse(flags: object, names: Sequence[str], said: str, *, mend: str) -> None:
    """Refuse the first of the options that is given, where the one that they belong to is not."""
    for name in names:
        if getattr(flags, name) is not None:
            raise InputError(f"--{name} {said}", mend=mend)


@dataclass(frozen=True)
class _More:
    """What was found beside the attributions."""

    pulling: Neighbours | None = None
    edits: Counterfactuals | None = None
    parts: Contributions | None = None
    token: str = ""


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
    edit: EditFlags | None = None,
    part: PartFlags | None = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Say what each token of a text adds to the answer."""
    check_page(html)
    check_page(svg, "--svg", (".svg",))
    if not 1 <= len(texts) <= 2:
        raise InputError(f"{len(texts)} texts are given", where="text", mend="give one, or two for pairs")
    require_texts(texts, mend="give the text itself")
    near, edit, part = near or NearestFlags(), edit or EditFlags(), part or PartFlags()
    for flags in (near, edit, part):
        flags.check()
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
        bar = display.add_task("reading more texts", total=None, visible=near.nearest is not None or edit.edits)
        drawn = part.parts or (html is not None and loaded.head_name == "causal-lm")
        parts, token = _parts(part, loaded, model, question) if drawn else (None, "")
        more = _More(
            pulling=_pulling(near, loaded, model, texts, target, lambda count: display.advance(bar, count)),
            edits=_turning(edit, loaded, model, question, lambda count: display.advance(bar, count)),
            parts=parts,
            token=token,
        )
    for path, text in _files(html, svg, loaded, model, found, question, texts, more):
        write_page(path, text, quiet=quiet)
    if as_json:
        others = {"nearest": more.pulling, "edits": more.edits, "parts": more.parts}
        beside = {key: each.to_dict() for key, each in others.items() if each is not None}
        print(json.dumps({**found.to_dict(), **beside}, ensure_ascii=False))
    elif html is None and svg is None:
        stdout().print(f"{found.answer}\n", markup=False)
        for line in in_text(found, question):
            stdout().print(line, markup=False)
        stdout().print()
        for key, value in (*facts(found), *checks(found)):
            stdout().print(f"{key}: {value}", markup=False)
        for line in _lines(more, question):
            stdout().print(line, markup=False)


def _lines(more: _More, question: Any) -> Iterator[str]:
    """What was found beside the attributions, in words; an empty line before each."""
    from tsumugu.anatomy import contributions, edits, influence

    if more.parts is not None:
        yield from ("", *contributions.in_text(more.parts, more.token))
    if more.edits is not None:
        yield from ("", *edits.in_text(more.edits, question.texts))
    if more.pulling is not None:
        yield from ("", *influence.in_text(more.pulling))


def _parts(part: PartFlags, model: Any, name: str, question: Any) -> tuple[Contributions, str]:
    """What each part adds to the token's score, and the name of that score."""
    from tsumugu.anatomy.contributions import contributions
    from tsumugu.anatomy.targets import token_of
    from tsumugu.checkpoints.load import load_tokenizer

    if model.head_name != "causal-lm":
        raise InputError("only the next token of a decoder has parts", where="--parts", mend="leave it out")
    tokenizer = load_tokenizer(name)
    against = None if part.against is None else token_of(tokenizer, part.against, where="--against")
    found = contributions(model, question.ids, token=question.token_id, against=against)
    shown = repr(tokenizer.decode([question.token_id]))
    return found, shown if part.against is None else f"{shown} above {part.against!r}"


def _turning(
    edit: EditFlags, model: Any, name: str, question: Any, watch: Callable[[int], None]
) -> Counterfactuals | None:
    """The edits that turn the answer, where they are asked for."""
    from tsumugu.anatomy.edits import counterfactuals
    from tsumugu.checkpoints.load import load_tokenizer
    from tsumugu.engines.torch import load_model

    if not edit.edits:
        return None
    editor = None
    if edit.editor is not None:
        loaded = load_model(edit.editor, device=str(model.device), task="fill-mask")
        editor = (loaded, load_tokenizer(edit.editor))
    tokenizer = load_tokenizer(name)
    return counterfactuals(model, tokenizer, question, editor=editor, passes=edit.passes or 1000, watch=watch)


def _pulling(
    near: NearestFlags, model: Any, name: str, texts: list[str], target: str | None, watch: Callable[[int], None]
) -> Neighbours | None:
    """The rows of the data that pull the answer, where they are asked for."""
    from tsumugu.anatomy.influence import neighbours
    from tsumugu.anatomy.supervision import kind_of, labels_of
    from tsumugu.checkpoints.load import load_tokenizer
    from tsumugu.data.labelled.load import load_examples
    from tsumugu.engines.torch import load_model
    from tsumugu.training.checkpointing import FOLDER, steps_in

    if near.nearest is None:
        return None
    examples = load_examples(near.nearest, kind_of(model, texts), labels=labels_of(model))
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
        by=near.by or ("embedding" if model.head_name == "base" else "influence"),
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
    more: _More,
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
        page = explain_page.render(
            found,
            question,
            model=name,
            other=other,
            attention=seen,
            lens=depths,
            near=more.pulling,
            edits=more.edits,
            parts=more.parts,
            token=more.token,
        )
        files.append((html, page))
    if svg is not None:
        files.append((svg, explain_page.svg(found, question)))
    return files
