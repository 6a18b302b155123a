"""What each objective and family learns from the same small budget: held-back loss, speed, and curves.

Networks of equal size and width read the same documents, with a tokenizer of their own family's kind trained on them,
and the same number of tokens, by the same optimiser. What is held back is measured at the start, ten times on the way,
and at the end. One row after another on one thread; rows that are done are kept in `runs/learning/`, so that it can be
interrupted and goes on. The table and the figure are written there, too.

The loss is said in bits per byte of what is asked for: all bytes for the causal objectives, the hidden ones for the
others. Only rows that ask for the same thing can be compared.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Report

SHARED = Path(__file__).parents[2] / "shared" / "data"
TEXTS = {
    "en": ("gutenberg_en", ["train.txt"], "validation.txt"),
    "ja": ("aozora_ja", ["train.jsonl"], "validation.jsonl"),
}
PLACE = Path("runs/learning")
CONTEXT, BATCH, STEPS, SEED = 128, 8, 200, 0
DOCUMENT = 2000
"""Bytes of a document: texts are cut at paragraphs into pieces of about this size."""

STILL = {"residual_dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}
ENCODER = {"num_layers": 4, "num_heads": 4, "hidden_size": 128, "intermediate_size": 512, "dropout": 0.0}
DECODER = {"num_layers": 4, "num_heads": 4, "hidden_size": 128, **STILL}
LLAMA = {"num_layers": 4, "num_heads": 4, "num_kv_heads": 4, "hidden_size": 128, "intermediate_size": 344}
SEQ2SEQ = {"num_layers": 2, "num_heads": 4, "head_dim": 32, "hidden_size": 128, "dropout": 0.0}
V11 = {"gated": True, "activation": "gelu_new", "tie_embeddings": False, "scale_outputs": False}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gpt2", "gpt", "megatron"), DECODER),
    "gpt3": DECODER | {"band": 32},
    "llama": LLAMA | {"tie_embeddings": True},
    "bert": ENCODER | {"attention_dropout": 0.0},
    "roberta": ENCODER | {"attention_dropout": 0.0},
    "electra": ENCODER | {"attention_dropout": 0.0, "embedding_size": 128},
    "t5": SEQ2SEQ | {"intermediate_size": 512},
    "t5-v1.1": SEQ2SEQ | {"intermediate_size": 344} | V11,
}
HOLES = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>")


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        asked: what the loss is about; rows with the same word can be compared.
        options: of the objective.
        start: of the model.
    """

    objective: str
    family: str
    asked: str
    options: dict[str, Any] = field(default_factory=dict)
    language: str = "en"
    start: str = "random"

    @property
    def how(self) -> list[str]:
        """What tells it from others of its objective."""
        words = ["static" if value is True else str(value) for value in self.options.values()]
        return [*words, *(["informed start"] if self.start == "informed" else [])]

    @property
    def name(self) -> str:
        return "-".join([self.language, self.objective, *self.how, self.family]).replace(".", "").replace(" ", "-")

    @property
    def title(self) -> str:
        return f"{self.objective} ({', '.join(self.how)})" if self.how else self.objective


MASKED: list[dict[str, Any]] = [
    {"unit": "token"},
    {"unit": "token", "static": True},
    {"unit": "word"},
    {"unit": "span"},
]
CASES = [
    *(Case("causal", family, "all tokens") for family in ("gpt2", "llama", "gpt3", "megatron", "gpt")),
    Case("prefix-lm", "gpt2", "all after a prefix"),
    Case("fill-in-the-middle", "gpt2", "all, some in another order"),
    *(Case("masked", "bert", "hidden tokens", options) for options in MASKED),
    *(Case("masked", "roberta", "hidden tokens", options) for options in MASKED[::3]),
    Case("next-sentence", "bert", "hidden tokens"),
    Case("sentence-order", "bert", "hidden tokens"),
    Case("replaced-token", "electra", "the generator's hidden tokens"),
    *(Case("span-corruption", family, "hidden spans") for family in ("t5", "t5-v1.1")),
    *(Case("ul2", family, "hidden spans and ends") for family in ("t5", "t5-v1.1")),
    Case("causal", "gpt2", "all tokens", language="ja"),
    Case("masked", "bert", "hidden tokens", {"unit": "token"}, "ja"),
    Case("masked", "bert", "hidden tokens", {"unit": "token"}, "ja", "informed"),
    Case("span-corruption", "t5", "hidden spans", language="ja"),
]
PANELS = {
    "causal, prefix, in the middle": ("causal", "prefix-lm", "fill-in-the-middle"),
    "hidden tokens": ("masked", "next-sentence", "sentence-order", "replaced-token"),
    "spans": ("span-corruption", "ul2"),
}


def run(report: Report) -> None:
    """Train what is not yet there, and write the table and the figure."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() if report.smoke else nullcontext(str(PLACE)) as folder:
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        lines = []
        for case in [CASES[0], CASES[8], CASES[15]] if report.smoke else CASES:
            lines.append(measure(case, place, small=report.smoke))
            print(_row(lines[-1]), flush=True)
        table = [HEAD, "|---|---|--:|---|--:|--:|--:|--:|--:|---|", *map(_row, lines)]
        (place / "learning.md").write_text("\n".join(table) + "\n", "utf-8")
        (place / "learning.json").write_text(json.dumps(lines, indent=2) + "\n", "utf-8")
        draw(place, [line["name"] for line in lines])
    torch.set_num_threads(threads)


HEAD = "| Objective | Family | Parameters | Asked for | Start | End | Best | Tokens/s | Seconds | Also |"


def _row(line: dict[str, Any]) -> str:
    cells = [line["objective"], line["family"], f"{line['parameters'] / 1e6:.2f} M", line["asked"]]
    cells += [f"{line[key]:.3f}" for key in ("start", "end", "best")]
    cells += [f"{line[key]:,.0f}" for key in ("speed", "seconds")]
    return f"| {' | '.join([*cells, line['also']])} |"


def measure(case: Case, place: Path, *, small: bool) -> dict[str, Any]:
    """The row of a case, from its run, which is made where it is not there or not done."""
    from tsumugu.training.events import read_events
    from tsumugu.training.runs import is_run, read_run

    folder = place / case.name
    begun = place / f".{case.name}.start"
    if not (is_run(folder) and read_run(folder).state == "done"):
        values = recipe(case, place, small=small)
        # Nothing is learnt in a step of rate 0: what it measures is the start. It cuts the text, too.
        _finish(values | {"train": values["train"] | {"steps": 1, "lr": 0.0}}, begun)
        data = {key: values["data"][key] for key in ("context",)} | {"corpus": [str(begun / "corpus")]}
        _finish(values | {"data": data, "tokenizer": {"source": str(begun / "tokenizer")}}, folder)
    events, first = read_events(folder / "events.jsonl"), read_events(begun / "events.jsonl")
    found = [each.values for each in events if each.kind == "evaluation"]
    start = next(each.values for each in first if each.kind == "evaluation")
    steps = [each.values for each in events if each.kind == "step"]
    also = {"pair": "pair: {:.3f} to {:.3f} nats (chance: 0.693)", "replaced": "replaced or not: {:.3f} to {:.3f} nats"}
    bits = [each["bits_per_byte"] for each in found]
    return {
        "name": case.name,
        "objective": case.title + (" · ja" if case.language == "ja" else ""),
        "family": case.family,
        "asked": case.asked,
        "parameters": next(each.values["parameters"] for each in events if each.kind == "start"),
        "start": start["bits_per_byte"],
        "end": bits[-1],
        "best": min(bits),
        "seconds": steps[-1]["seconds"],
        "speed": statistics.median(each["tokens_per_second"] for each in steps),
        "also": "; ".join(
            text.format(start["losses"][name], found[-1]["losses"][name])
            for name, text in also.items()
            if name in start["losses"]
        ),
    }


def _finish(values: dict[str, Any], folder: Path) -> None:
    """Make a run, or go on with it; Ctrl-C ends the benchmark, too."""
    from tsumugu.training.pretrain import train

    if train(values, folder, resume=True, quiet=True).signal is not None:
        raise KeyboardInterrupt


def recipe(case: Case, place: Path, *, small: bool) -> dict[str, Any]:
    """A whole run: the text, the tokenizer of the family's own kind, and the network."""
    paths = texts(case.language, place, small=small)
    family = case.family.partition("-")[0]
    marks = {"special_tokens": list(HOLES)} if case.objective == "fill-in-the-middle" else {}
    steps = 2 if small else STEPS
    return {
        "name": case.name,
        "model": {"family": family, "config": CONFIGS[case.family], "start": case.start},
        "tokenizer": {"vocab_size": 8192 if case.language == "ja" else 2048, "language": case.language, **marks},
        "data": {"inputs": [str(paths[0])], "validation": [str(paths[1])], "context": CONTEXT},
        "objective": {"name": case.objective, **case.options},
        "optimizer": {"name": "muon", "frozen": ["embeddings.token.*"] if case.start == "informed" else []},
        "train": {"steps": steps, "batch": BATCH, "lr": 3e-3, "seed": SEED},
        "evaluation": {"every": 0.1, "rows": 4 if small else 80},
        "checkpoints": {"every": 0.5, "best": False},
    }


def texts(language: str, place: Path, *, small: bool) -> tuple[Path, Path]:
    """Documents to train on and held back ones, as JSON Lines; Python's own help where the shared texts are not."""
    name, training, held_back = TEXTS[language]
    made = place / f"{language}.jsonl", place / f"{language}-held-back.jsonl"
    if small or not (SHARED / name).is_dir():
        topics = pydoc_data.topics.topics
        names = sorted(topics)[:20] if small else sorted(topics)
        sources = [topics[each] for each in names[1:]], [topics[names[0]]]
    else:
        sources = [_whole(SHARED / name / each) for each in training], [_whole(SHARED / name / held_back)]
    for path, whole in zip(made, sources, strict=True):
        documents = [each for text in whole for each in pieces(text)]
        lines = [json.dumps({"text": each}, ensure_ascii=False) for each in documents]
        if not path.exists():
            path.write_text("\n".join(lines) + "\n", "utf-8")
    return made


def _whole(path: Path) -> str:
    text = path.read_text("utf-8")
    return "\n".join(json.loads(line)["text"] for line in text.splitlines()) if path.suffix == ".jsonl" else text


def pieces(text: str) -> Iterator[str]:
    """The text cut between lines, into documents of about `DOCUMENT` bytes."""
    piece, size = "", 0
    for line in text.splitlines(keepends=True):
        piece, size = piece + line, size + len(line.encode())
        if size >= DOCUMENT:
            yield piece.strip()
            piece, size = "", 0
    if piece.strip():
        yield piece.strip()


def draw(place: Path, names: list[str]) -> None:
    """The held-back curves of all rows, one panel for each kind of loss: `learning.svg` and `learning.png`."""
    import matplotlib
    from matplotlib.figure import Figure

    cases = {case.name: case for case in CASES if case.name in names}
    with matplotlib.rc_context({"svg.hashsalt": "tsumugu", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(10, 7.5), layout="constrained")
        for axes, (title, objectives) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for case in (each for each in cases.values() if each.objective in objectives):
                begin, curve = (_curve(place / name) for name in (f".{case.name}.start", case.name))
                xs, ys = [0.0, *curve[0]], [begin[1][-1], *curve[1]]
                label = f"{case.title}, {case.family}{' · ja' if case.language == 'ja' else ''}"
                dash = "--" if case.language == "ja" else "-"
                axes.plot([x / 1000 for x in xs], ys, dash, marker="o", markersize=2, linewidth=1, label=label)
            axes.set_title(title, loc="left")
            axes.set_xlabel("thousand tokens")
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.12))
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel("held-back bits per byte of what is asked for")
        figure.savefig(place / "learning.svg", metadata={"Date": None, "Creator": "tsumugu"})
        figure.savefig(place / "learning.png", dpi=110, metadata={"Software": "tsumugu"})


def _curve(folder: Path) -> tuple[list[float], list[float]]:
    from tsumugu.training.events import read_events
    from tsumugu.training.plots import Curves

    found = Curves.of(read_events(folder / "events.jsonl")).evaluations
    return found["tokens"], found["bits_per_byte"]
