"""``tsumugu demo``: real models answer real input; what `make demo` shows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from tsumugu.cli.console import stdout
from tsumugu.cli.downloads import downloads
from tsumugu.cli.options import Quiet

QUESTION = "What is the capital of Japan, and what is it famous for?"
QUERY = "How do I get to the railway station?"
SENTENCES = (
    "Which way is it to the train stop?",
    "The train leaves the platform at nine.",
    "I baked bread this morning.",
    "駅はどこですか。",
    "猫は寝ています。",
)
REVIEWS = ("a warm and funny film with a great cast", "two hours that i will never get back")
RATED = (
    ("a gripping and beautiful story", "positive"),
    ("dull, lifeless and far too long", "negative"),
    ("i loved every minute", "positive"),
    ("the jokes fall flat", "negative"),
)
NEWS = "Angela Merkel visited Microsoft in Seattle."
TAGGED = (
    ("Taro Yamada works for Sony in Tokyo.", (("Taro Yamada", "PER"), ("Sony", "ORG"), ("Tokyo", "LOC"))),
    ("It rained all day.", ()),
)


def demo(*, quiet: Quiet = False) -> None:
    """Pull two small models, chat with one and put tasks to it, rank sentences with the other; pre-train a third."""
    from rich.table import Table

    show = stdout().print
    times: list[tuple[str, float, str]] = []

    @contextmanager
    def timed(what: str) -> Iterator[list[str]]:
        remark: list[str] = []
        began = time.perf_counter()
        yield remark
        times.append((what, time.perf_counter() - began, " ".join(remark)))

    from tsumugu.hub.resolve import pull
    from tsumugu.tasks.pipeline import pipeline

    for name in ("smollm2", "minilm"):
        with timed(f"pull {name}") as remark, downloads(quiet=quiet) as watch:
            remark.append(str(pull(name, progress=watch).path.name))
    with timed("load smollm2") as remark, downloads(quiet=quiet) as watch:
        chat: Any = pipeline("chat", "smollm2", engine="auto", quantize="auto", progress=watch)
        remark.append("for the quick engine, as few bits as its file has; compiled at the first time")
    show(f"\n[bold]> {QUESTION}[/bold]")
    with timed("answer") as remark:
        began, first, pieces = time.perf_counter(), 0.0, 0
        for piece in chat.say(QUESTION, max_new_tokens=64):
            first = first or time.perf_counter() - began
            pieces += 1
            show(piece, end="", markup=False)
        rate = (pieces - 1) / max(1e-9, time.perf_counter() - began - first)
        remark.append(f"first piece after {first:.2f} s, then {rate:.1f} pieces/s")
    show("\n")
    with timed("load smollm2 again") as remark:
        sentiment: Any = pipeline("sentiment-analysis", "smollm2")
        remark.append(f"on torch, {sentiment.model.num_parameters() / 1e6:.0f}M parameters, float32")
    with timed("judge 2 reviews") as remark:
        rated = [{"text": text, "label": label} for text, label in RATED]
        judged = sentiment(list(REVIEWS), examples=rated, calibration="contextual")
        remark.append("from a prompt with 4 examples")
    show("[bold]Positive or negative?[/bold]")
    for review, answer in zip(REVIEWS, judged, strict=True):
        show(f"{answer['score']:7.4f}  {answer['label']}  {review}", markup=False)
    if find_spec("llguidance") is None:
        show("[dim]Names in a text: pip install 'tsumugu\\[constrained]'[/dim]")
    else:
        with timed("find names") as remark:
            names: Any = pipeline("ner", sentiment.model, sentiment.tokenizer)
            tagged = [
                {"text": text, "entities": [{"word": word, "entity_group": group} for word, group in entities]}
                for text, entities in TAGGED
            ]
            found = names(NEWS, examples=tagged)
            remark.append("from a prompt with 2 examples, held to the text by a grammar")
        show(f"\n[bold]Names in: {NEWS}[/bold]")
        for each in found:
            show(f"{each['score']:7.4f}  {each['entity_group']}  {each['word']}", markup=False)
    with timed("load minilm") as remark:
        compare: Any = pipeline("sentence-similarity", "minilm")
        remark.append(f"{compare.model.num_parameters() / 1e6:.0f}M parameters, float32")
    show(
        f"\n\n[bold]Most like: {QUERY}[/bold]  [dim](minilm learnt English; Japanese it knows by its characters)[/dim]"
    )
    with timed("rank 5 sentences"):
        ranked = compare.rank(QUERY, SENTENCES)
    for answer in ranked:
        show(f"{answer['score']:7.4f}  {answer['text']}", markup=False)
    show("\n[bold]A million parameters from nothing: Python's own help, letter by letter[/bold]")
    with timed("pre-train") as remark:
        remark.append(_pre_train(show, quiet=quiet))
    table = Table("step", "seconds", "", title="\nsummary", title_justify="left")
    for what, seconds, remark_text in times:
        table.add_row(what, f"{seconds:.2f}", remark_text)
    table.add_row("all", f"{sum(each[1] for each in times):.2f}", "", style="bold")
    show(table)


def _pre_train(show: Any, *, quiet: bool) -> str:
    """Pre-train a small model on text that every Python has, let it speak, and say how well it knows the text."""
    import pydoc_data.topics
    import tempfile
    from pathlib import Path

    from tsumugu.tasks.pipeline import pipeline
    from tsumugu.training.checkpointing import find_checkpoint
    from tsumugu.training.pretrain import train
    from tsumugu.training.recipe import Recipe

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "help.txt"
        text.write_text("\n\n".join(pydoc_data.topics.topics.values()), "utf-8")
        told = {"name": "python-help", "data.inputs": str(text), "data.document": "paragraph"}
        recipe = Recipe.from_yaml(
            "shakespeare-char", told | {"train.minutes": "2", "train.steps": "400", "evaluation.prompts": "[]"}
        )
        result = train(recipe, Path(folder) / "run", quiet=quiet)
        writer: Any = pipeline("text-generation", find_checkpoint(result.folder))
        for begin in ("The following", "A class"):
            written = writer(begin, max_new_tokens=160, temperature=0.6, seed=1, truncation=True)[0]["generated_text"]
            show(f"\n> {written}", markup=False)
        bits = result.evaluation.get("bits_per_byte")
        return f"{result.steps} steps, {result.tokens / 1e3:.0f}k characters, {bits:.2f} bits a byte on held-back text"
