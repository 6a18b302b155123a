"""``tsumugu plot``: texts as points, a tokenizer, attention, as PNG or SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from tsumugu.cli.console import stderr
from tsumugu.cli.downloads import downloads
from tsumugu.cli.inputs import InputFormat, InputPath, TextColumn, Texts, one_label, one_text, read_inputs
from tsumugu.cli.options import Quiet

app = App(name="plot", help="Draw texts as points, a tokenizer, attention, as PNG or SVG.", help_format="plaintext")

Output = Annotated[Path, Parameter(("--output", "-o"), help="An .svg or .png file.")]
Named = Annotated[str, Parameter(("--model", "-m"), help="A folder, a file, a name.")]

_MOST = 5000


@app.command
def embeddings(
    *texts: Texts,
    output: Output,
    model: Named = "minilm",
    input: InputPath = None,
    input_format: InputFormat = None,
    text_column: TextColumn = None,
    label_column: Annotated[str | None, Parameter(help="Colours the points.")] = None,
    projection: Annotated[
        list[Literal["pca", "umap", "tsne"]] | None,
        Parameter(negative="", help="How vectors become points; may be repeated, for panels beside each other."),
    ] = None,
    neighbours: Annotated[int, Parameter(help="That UMAP keeps near each point; the perplexity of t-SNE.")] = 15,
    seed: Annotated[int, Parameter(help="Of UMAP and t-SNE.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Draw texts as points: their vectors on the two axes along which these vary most, or by UMAP or t-SNE."""
    from tsumugu.anatomy.pictures import check_target, plot_points

    check_target(output)
    rows = list(_first(read_inputs(texts, input, format=input_format).rows))
    found = [one_text(row, text_column) for row in rows]
    labels = None if label_column is None else [one_label(row, label_column) for row in rows]
    from tsumugu.tasks.sentence_embedding import SentenceEmbedding

    with downloads(quiet=quiet) as watch:
        task = SentenceEmbedding.load(model, progress=watch)
    plot_points(
        task.encode(found),
        found,
        output,
        labels=labels,
        projections=projection or ("pca",),
        neighbours=neighbours,
        seed=seed,
        title=f"{model}: {len(found):,} texts",
    )
    _written(output, quiet=quiet)


@app.command
def tokenizer(
    *texts: Texts,
    model: Named,
    output: Output,
    input: InputPath = None,
    input_format: InputFormat = None,
    text_column: TextColumn = None,
    quiet: Quiet = False,
) -> None:
    """Draw how a tokenizer cuts texts: counts by rank, and how long its tokens are."""
    from tsumugu.anatomy.pictures import check_target, plot_vocabulary
    from tsumugu.checkpoints.load import load_tokenizer

    check_target(output)
    rows = _first(read_inputs(texts, input, format=input_format).rows)
    found = [one_text(row, text_column) for row in rows]
    plot_vocabulary(load_tokenizer(model), found, output, title=f"{model}: {len(found):,} texts")
    _written(output, quiet=quiet)


@app.command
def attention(
    text: Annotated[str, Parameter(help="The text that is read.")],
    /,
    *,
    model: Named,
    output: Output,
    layer: Annotated[
        int | None, Parameter(help="This layer alone, from 1 on, the mean over its heads, with names.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Draw how much each token looks at each: a matrix for each head, layers down, heads across."""
    from tsumugu.anatomy.insides import attentions
    from tsumugu.anatomy.pictures import check_target, plot_attention
    from tsumugu.checkpoints.load import load_tokenizer
    from tsumugu.core.errors import InputError
    from tsumugu.engines.torch import load_model

    check_target(output)
    with downloads(quiet=quiet) as watch:
        loaded = load_model(model, progress=watch)
    cutter = load_tokenizer(model)
    given = cutter([text], return_tensors="pt")
    weights = attentions(loaded, given["input_ids"]).numpy()
    if layer is not None:
        if not 1 <= layer <= len(weights):
            raise InputError(f"there is no layer {layer}", where="--layer", mend=f"1 to {len(weights)}")
        weights = weights[layer - 1 : layer].mean(1, keepdims=True)
    plot_attention(weights, given.encodings[0].tokens, output)
    _written(output, quiet=quiet)


def _first(rows: Any) -> Any:
    from itertools import islice

    return islice(rows, _MOST)


def _written(path: Path, *, quiet: bool) -> None:
    if not quiet:
        stderr().print(f"written: {path}", markup=False)
