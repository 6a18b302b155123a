"""What each task is solved by, and how well: baselines, fine-tuned and prompted models, in one table with intervals.

Every cell is an evaluation on the test split, kept in `runs/tasks/DATA/SYSTEM/` with its predictions, so that it can be
interrupted and goes on; the table is `runs/tasks/tasks.md`. English models are tuned from minilm, Japanese ones from
`runs/ja-encoder`, a run of the recipe of that name that is made first where it is not there, and what writes from the
decoder that is prompted, too. Where there are few examples to test on, tuning is done with three seeds: the model with
the best validation score stands, and how far the seeds differ beside it. Prompted models see the first `PROMPTED`
examples only: each takes as long as all of a fine-tuned encoder's.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import japanese_encoder, programs
from benchmarks.harness import Report, precision
from benchmarks.programs import cell, score

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tsumugu.data.labelled.examples import Examples
    from tsumugu.evaluation.comparison import Evaluated
    from tsumugu.evaluation.resampling import Difference

SHARED = Path(__file__).parents[2] / "shared" / "data"
PLACE = Path("runs/tasks")
BASES = {"en": "minilm", "ja": str(japanese_encoder.RUN)}
PROMPTERS = {"en": ("smollm2", "gemma3-270m"), "ja": ("gemma3-270m",)}
"""Models that are tuned, and those that are prompted: smollm2 knows next to no Japanese."""
TEST, PROMPTED = 2000, 100
"""Examples at most: tested on, prompted with."""


@dataclass(frozen=True)
class Case:
    """One set of data.

    Attributes:
        data: the folder of its splits; `train` another one that its training split is in.
        borrowed: so many examples of the validation split are learnt beside those of `train`.
        task: as `tsumugu finetune` has it; None where nothing is tuned.
        prompted: as `tsumugu run` has it, for a model that goes on with texts.
        baselines: the classical ones; the best of them is the one to beat.
        base: the model that is tuned, where it is none of `BASES`: a decoder, by LoRA.
        metric: the one that ranks, where it is not the usual one.
        epochs: of tuning.
        max_length: longer texts are cut.
        limit: examples at most that are learnt from.
        test: examples at most that are tested on.
        lr: the peak of the learning rate; the default for the model's width when left out.
        seeds: so many runs of tuning.
        model: what else is said of the model that is tuned.
        frozen: names of parameters that are held as they are.
    """

    data: str
    language: str
    task: str | None
    prompted: str | None
    baselines: tuple[str, ...]
    train: str | None = None
    borrowed: int = 0
    base: str | None = None
    metric: str | None = None
    epochs: float = 2.0
    max_length: int = 128
    limit: int = 4000
    test: int = TEST
    lr: float | None = None
    seeds: int = 1
    model: Mapping[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()


CLASSES = ("majority", "embeddings", "tfidf")
NUMBERS = ("overlap", "embeddings", "tfidf")
FAST = 5e-4
"""What a small encoder that has read little learns best with, by the validation split of chabsa."""
JAPANESE, OVERLAP = ("majority", "tfidf"), ("overlap", "tfidf")
"""Without vectors of minilm, which knows English."""
TWO: dict[str, Any] = {
    "model": {"pooling": "mean", "config": {"dropout": 0.1}},
    "frozen": ("embeddings.*",),
    "lr": 2e-4,
}
"""Of two texts that are read together by an encoder whose first token was never used; by jnli's validation split."""
TEXTS = ("lead", "lexrank", "nearest")
WRITES: dict[str, Any] = {"epochs": 1.0, "test": 100, "max_length": 320}
"""Of a decoder: an epoch of LoRA, and fewer texts to write."""
CASES = [
    Case("sentence_polarity_en", "en", "sentiment-analysis", "sentiment-analysis", CLASSES),
    Case("sib200_en", "en", "text-classification", "zero-shot-classification", CLASSES, epochs=8, seeds=3),
    Case("snli_small_en", "en", "nli", "natural-language-inference", CLASSES),
    Case("stsb_captions_en", "en", "text-similarity", "sentence-similarity", NUMBERS, epochs=6, seeds=3),
    Case("wnut17", "en", "ner", "token-classification", ("token-majority",), epochs=3),
    Case("qed_en", "en", "question-answering", "question-answering", ("overlap",), epochs=3, max_length=192, seeds=3),
    Case(
        "xquad_en",
        "en",
        "question-answering",
        "question-answering",
        ("overlap",),
        "qed_en",
        300,
        epochs=3,
        max_length=192,
    ),
    Case("scitldr_en", "en", "summarization", "summarization", TEXTS, **WRITES, base="smollm2", limit=120),
    Case("sib200_ja", "ja", "text-classification", "zero-shot-classification", JAPANESE, epochs=10, lr=FAST, seeds=3),
    Case("chabsa", "ja", "text-classification", "sentiment-analysis", JAPANESE, epochs=5, lr=FAST, seeds=3),
    Case("aozora_author_ja", "ja", "text-classification", None, JAPANESE, epochs=5, max_length=256, lr=FAST),
    Case("jnli", "ja", "nli", "natural-language-inference", JAPANESE, "jnli_neg", 2000, epochs=4, limit=10_000, **TWO),
    Case("jsts", "ja", "sentence-similarity", "sentence-similarity", OVERLAP, epochs=5, limit=10_000, lr=FAST),
    Case("ner_wikipedia_ja", "ja", "ner", "token-classification", ("token-majority",), epochs=5, lr=FAST),
    Case(
        "jsquad",
        "ja",
        "question-answering",
        "question-answering",
        ("overlap",),
        epochs=5,
        max_length=256,
        lr=FAST,
        frozen=("embeddings.*",),
    ),
    Case(
        "jcommonsenseqa",
        "ja",
        "multiple-choice",
        "multiple-choice",
        ("majority", *OVERLAP),
        epochs=10,
        limit=10_000,
        **TWO,
    ),
    Case("asdc_scud_ja", "ja", "summarization", "summarization", TEXTS, **WRITES, base="gemma3-270m", limit=200),
    Case(
        "ami_meeting_parallel",
        "ja",
        "translation_ja_to_en",
        "translation_ja_to_en",
        ("copy", "nearest"),
        epochs=1.0,
        max_length=320,
        base="gemma3-270m",
        metric="chrf",
        limit=320,
    ),
]
PROGRAMS = {"mbpp": 50, "humaneval": 50}
"""Programs to write, and how many at most."""


def run(report: Report) -> None:
    """Evaluate what is not there yet, and write the table."""
    if not SHARED.is_dir():
        report.skip("tasks", f"there is no {SHARED.name} beside the project")
        return
    if not report.smoke:
        japanese_encoder.pretrain(SHARED)
    with tempfile.TemporaryDirectory() if report.smoke else nullcontext(str(PLACE)) as folder:
        place = Path(folder)
        lines = [HEAD, "|---|---|--:|---|---|---|---|---|--:|---|---|"]
        for case in CASES[1:2] if report.smoke else CASES:
            solve(case, place, report)
            lines.append(line(case, place))
            print(lines[-1], flush=True)
        for name, problems in {} if report.smoke else PROGRAMS.items():
            programs.solve(SHARED / name, place / name, PROMPTERS["en"], limit=problems)
            lines.append(programs.line(place / name, PROMPTERS["en"]))
            print(lines[-1], flush=True)
        (place / "tasks.md").write_text("\n".join(lines) + "\n", "utf-8")


HEAD = (
    "| Data | Metric | Examples | Simplest | Embeddings | Classical | Fine-tuned | Three seeds | Minutes "
    "| Prompted: SmolLM2-135M | Gemma 3 270M |"
)
TUNED = "fine-tuned"
SIMPLE = ("majority", "lead", "copy", "overlap")
CLASSICAL = ("tfidf", "token-majority", "lexrank", "nearest", "overlap")
"""Systems of the columns; the best classical one stands, and "overlap" is among the simplest where it is not that."""


def solve(case: Case, place: Path, report: Report) -> None:
    """Evaluate what is not there yet of a set of data."""
    import tsumugu as tg

    folder = place / case.data
    files = files_of(case, folder)
    train = tg.load_examples(files["train"])
    test = tg.load_examples(files["test"], train.kind, labels=train.labels)
    test = test[: 20 if report.smoke else case.test]
    for name in case.baselines:
        cell(folder / name, lambda name=name: tg.evaluate(test, baseline=name, train=train, metric=case.metric))
    base = BASES[case.language] if case.base is None else case.base
    if case.task is not None:
        cell(folder / TUNED, lambda: _tuned(case, base, files, folder, test, small=report.smoke))
    asked = {} if case.prompted is None or report.smoke else dict.fromkeys(PROMPTERS[case.language], test[:PROMPTED])
    for model, few in asked.items():
        made = partial(tg.evaluate, few, model=model, task=case.prompted, metric=case.metric)
        cell(folder / model, partial(made, options={"language": case.language}))


def files_of(case: Case, folder: Path) -> dict[str, Path]:
    """The file of each split; what is learnt beside another set's examples is copied together in `folder`."""
    found = {
        split: next(each for each in sorted((SHARED / name).glob(f"{split}*")) if each.suffix != ".md")
        for split, name in (("train", case.train or case.data), ("validation", case.data), ("test", case.data))
    }
    if not case.borrowed:
        return found
    own, other = ([json.loads(row) for row in found[split].open("rb")] for split in ("validation", "train"))
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", own[: case.borrowed] + other), ("validation", own[case.borrowed :])):
        found[split] = folder / f"{split}.jsonl"
        numbered = ({**row, "id": str(at)} for at, row in enumerate(rows))
        found[split].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in numbered), "utf-8")
    return found


def line(case: Case, place: Path) -> str:
    """A set of data as a line of the table.

    The chance beside a fine-tuned model is that of a difference to the classical system that large; beside a prompted
    one stand what the fine-tuned model scores on the same examples, and the chance of that difference.
    """
    from tsumugu.evaluation.results import load

    systems = (*case.baselines, TUNED, *PROMPTERS["en"])
    found = {
        name: load(place / case.data / name / "results.json")
        for name in systems
        if (place / case.data / name / "results.json").is_file()
    }
    first = found[case.baselines[0]][0]
    values = {name: each.scores[each.primary].value for name, (each, _) in found.items()}
    classical = max((name for name in CLASSICAL if name in found), key=values.__getitem__, default=None)
    simple = next((name for name in SIMPLE if name in found and name != classical), None)
    cells = [case.data, first.primary, str(first.examples), score(found, simple), score(found, "embeddings")]
    cells += [score(found, classical), score(found, TUNED)]
    if classical is not None and TUNED in found:
        cells[-1] += f", p {_difference(found[TUNED], found[classical]).p:.3f}"
    kept = place / case.data / "training.json"
    spent = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    cells.append(f"{spent['mean']:.3f} ± {spent['deviation']:.3f}" if "mean" in spent else "")
    cells.append(f"{spent['seconds'] / 60:.1f}" if spent else "")
    for model in PROMPTERS["en"]:
        cells.append(score(found, model))
        if model in found and TUNED in found:
            apart = _difference(found[model], found[TUNED])
            cells[-1] += f"; tuned {values[model] - apart.value:.3f}, p {apart.p:.3f}"
    return f"| {' | '.join(cells)} |"


def _difference(ours: Evaluated, theirs: Evaluated) -> Difference:
    """How much better the first is on the examples that both solved: the first ones of whichever solved more."""
    from tsumugu.evaluation.comparison import rank

    shared = min(len(ours[1]), len(theirs[1]))
    pair = [(results, items[:shared]) for results, items in (ours, theirs)]
    (found,) = (each.difference for each in rank(pair, against=theirs[0].system).ranks if each.difference is not None)
    return found


def _tuned(case: Case, base: str, files: dict[str, Path], folder: Path, test: Examples, *, small: bool) -> Any:
    """The test split, solved by a model that is tuned first."""
    import tsumugu as tg
    from tsumugu.tuning.objectives import find_objective

    writes, seeds = case.base is not None, 1 if small else case.seeds
    tuned = tg.finetune(
        {
            "name": TUNED,
            "task": case.task,
            "model": {"source": base, "method": "lora" if writes else "full", **case.model},
            "data": {
                "source": str(files["train"]),
                "validation": str(files["validation"]),
                "test": str(files["test"]) if seeds > 1 else None,
                "limit": 16 if small else case.limit,
                "max_length": case.max_length,
            },
            "train": {
                "epochs": 1.0 if small else case.epochs,
                "batch": 16 if writes else 32,
                "lr": case.lr,
                "precision": precision() if base == BASES["ja"] else "auto",
            },
            "optimizer": {"frozen": list(case.frozen)},
            "evaluation": {"every": 0 if writes else 0.25, "rows": 20 if small or writes else 300},
            "checkpoints": {"every": 0},
            "repeat": {"seeds": seeds if seeds > 1 else None},
        },
        folder / "run",
        resume=True,
        quiet=True,
    )
    spent: dict[str, Any] = {"seconds": tuned.result.seconds / seeds}
    solver = tg.pipeline(case.prompted if writes else find_objective(case.task or "").solver, tuned.model)
    made = tg.evaluate(test, model=solver, name=TUNED, metric=case.metric)
    if tuned.summary is not None:
        spread = tuned.summary.scores[made.results.primary]
        spent |= {"mean": spread.mean, "deviation": spread.deviation, "seeds": seeds}
    (folder / "training.json").write_text(json.dumps(spent) + "\n", "utf-8")
    return made
