"""What each task is solved by, and how well: baselines, fine-tuned and prompted models, in one table with intervals.

Every cell is an evaluation on the test split, kept in `runs/tasks/DATA/SYSTEM/` with its predictions, so that it can be
interrupted and goes on; the table is `runs/tasks/tasks.md`. English models are tuned from minilm, Japanese ones from
`runs/ja-encoder`, a run of the recipe of that name. Prompted models see the first `PROMPTED` examples only: each takes
as long as all of a fine-tuned model's.
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Report

if TYPE_CHECKING:
    from tsumugu.data.labelled.examples import Examples

SHARED = Path(__file__).parents[2] / "shared" / "data"
PLACE = Path("runs/tasks")
BASES = {"en": "minilm", "ja": "runs/ja-encoder"}
TEST, PROMPTED = 1000, 100
"""Examples at most: tested on, prompted with."""


@dataclass(frozen=True)
class Case:
    """One set of data.

    Attributes:
        data: the folder of its splits; `train` another one that its training split is in.
        task: as `tsumugu finetune` has it; None where no pre-trained model of that kind is at hand.
        prompted: as `tsumugu run` has it, for a model that goes on with texts.
        baselines: the classical ones, the one to beat last.
        epochs: of tuning.
        max_length: longer texts are cut.
        limit: examples at most that are learnt from.
        lr: the peak of the learning rate; the default for the model's width when left out.
    """

    data: str
    language: str
    task: str | None
    prompted: str | None
    baselines: tuple[str, ...]
    train: str | None = None
    epochs: float = 2.0
    max_length: int = 128
    limit: int = 4000
    lr: float | None = None


CLASSES = ("majority", "embeddings", "tfidf")
NUMBERS = ("overlap", "embeddings", "tfidf")
FAST = 5e-4
"""What a small encoder that has read little learns best with, by the validation split of chabsa."""
JAPANESE, JAPANESE_NUMBERS = ("majority", "tfidf"), ("overlap", "tfidf")
"""Without vectors of minilm, which knows English."""
CASES = [
    Case("sentence_polarity_en", "en", "sentiment-analysis", "sentiment-analysis", CLASSES),
    Case("sib200_en", "en", "text-classification", "zero-shot-classification", CLASSES, epochs=8),
    Case("snli_small_en", "en", "nli", "natural-language-inference", CLASSES),
    Case("stsb_captions_en", "en", "text-similarity", None, NUMBERS, epochs=6),
    Case("wnut17", "en", "ner", "token-classification", ("token-majority",), epochs=3),
    Case("qed_en", "en", "question-answering", "question-answering", ("overlap",), epochs=3, max_length=192),
    Case("scitldr_en", "en", None, "summarization", ("lead",)),
    Case("sib200_ja", "ja", "text-classification", None, JAPANESE, epochs=10, lr=FAST),
    Case("chabsa", "ja", "text-classification", None, JAPANESE, epochs=5, lr=FAST),
    Case("aozora_author_ja", "ja", "text-classification", None, JAPANESE, epochs=5, max_length=256, lr=FAST),
    Case("jnli", "ja", "nli", None, JAPANESE, train="jnli_neg", epochs=5, limit=10_000, lr=FAST),
    Case("jsts", "ja", "sentence-similarity", None, JAPANESE_NUMBERS, epochs=5, limit=10_000, lr=FAST),
    Case("ner_wikipedia_ja", "ja", "ner", None, ("token-majority",), epochs=5, lr=FAST),
    Case("jsquad", "ja", "question-answering", None, ("overlap",), epochs=3, max_length=256, lr=FAST),
    Case("jcommonsenseqa", "ja", "multiple-choice", None, ("majority", "tfidf", "overlap"), lr=FAST),
    Case("asdc_scud_ja", "ja", None, None, ("copy",)),
]


def run(report: Report) -> None:
    """Evaluate what is not there yet, and write the table."""
    if not SHARED.is_dir():
        report.skip("tasks", f"there is no {SHARED.name} beside the project")
        return
    with tempfile.TemporaryDirectory() if report.smoke else nullcontext(str(PLACE)) as folder:
        place = Path(folder)
        lines = [HEAD, "|---|---|--:|---|---|---|---|---|"]
        for case in CASES[1:2] if report.smoke else CASES:
            solve(case, place, report)
            lines.append(line(case, place))
            print(lines[-1], flush=True)
        (place / "tasks.md").write_text("\n".join(lines) + "\n", "utf-8")


HEAD = "| Data | Metric | Examples | Simplest | Embeddings | Classical | Fine-tuned | Prompted |"
SIMPLE, CLASSICAL = ("majority", "lead", "copy", "overlap"), ("tfidf", "token-majority", "overlap")
"""Systems of the columns; "overlap" is the classical one where it stands alone."""


def solve(case: Case, place: Path, report: Report) -> None:
    """Evaluate what is not there yet of a set of data."""
    import tsumugu as tg

    splits = tg.load_splits(SHARED / case.data)
    train = tg.load_splits(SHARED / case.train)["train"] if case.train else splits.get("train")
    test = splits["test"][: 20 if report.smoke else TEST]
    folder = place / case.data
    for name in case.baselines:
        _cell(folder / name, lambda name=name: tg.evaluate(test, baseline=name, train=train))
    base = BASES[case.language]
    if case.task is not None and (case.language == "en" or Path(base).exists()):
        _cell(folder / "fine-tuned", lambda: _tuned(case, base, folder, test, small=report.smoke))
    elif case.task is not None:
        report.skip(f"{case.data}, fine-tuned", f"there is no {base}: tsumugu pretrain --config ja-encoder")
    if case.prompted is not None and not report.smoke:
        few = test[:PROMPTED]
        _cell(folder / "prompted", lambda: tg.evaluate(few, model="smollm2", task=case.prompted))


def line(case: Case, place: Path) -> str:
    """A set of data as a line of the table; the chance is that of being no better than the classical system."""
    from tsumugu.evaluation.comparison import rank
    from tsumugu.evaluation.results import load

    found = {
        name: load(place / case.data / name / "results.json")
        for name in (*case.baselines, "fine-tuned", "prompted")
        if (place / case.data / name / "results.json").is_file()
    }
    first = found[case.baselines[0]][0]
    classical = next((name for name in CLASSICAL if name in found), None)
    simple = next((name for name in SIMPLE if name in found and name != classical), None)
    cells = [case.data, first.primary, str(first.examples), _score(found, simple), _score(found, "embeddings")]
    cells += [_score(found, classical), _score(found, "fine-tuned"), _score(found, "prompted")]
    if classical is not None and "fine-tuned" in found:
        ours, theirs = found["fine-tuned"], found[classical]
        (tuned,) = (each for each in rank([ours, theirs], against=theirs[0].system).ranks if each.difference)
        cells[-2] += f", p {tuned.difference.p:.3f}" if tuned.difference is not None else ""
    return f"| {' | '.join(cells)} |"


def _score(found: dict[str, Any], name: str | None) -> str:
    if name is None or name not in found:
        return ""
    score = found[name][0].scores[found[name][0].primary]
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _cell(folder: Path, make: Any) -> None:
    """An evaluation, made where it is not there."""
    if not (folder / "results.json").is_file():
        make().save(folder)


def _tuned(case: Case, base: str, folder: Path, test: Examples, *, small: bool) -> Any:
    """The test split, solved by a model that is tuned first."""
    import tsumugu as tg

    files = {
        split: next(each for each in sorted((SHARED / name).glob(f"{split}*")) if each.suffix != ".md")
        for split, name in (("train", case.train or case.data), ("validation", case.data))
    }
    began = time.perf_counter()
    tuned = tg.finetune(
        {
            "name": "fine-tuned",
            "task": case.task,
            "model": {"source": base},
            "data": {
                "source": str(files["train"]),
                "validation": str(files["validation"]),
                "limit": 16 if small else case.limit,
                "max_length": case.max_length,
            },
            "train": {"epochs": 1.0 if small else case.epochs, "batch": 32, "lr": case.lr},
            "evaluation": {"every": 0.25, "rows": 20 if small else 300},
            "checkpoints": {"every": 0},
        },
        folder / "run",
        resume=True,
        quiet=True,
    )
    from tsumugu.tuning.objectives import find_objective

    solver = tg.pipeline(find_objective(case.task or "").solver, tuned.model)
    made = tg.evaluate(test, model=solver, name="fine-tuned")
    (folder / "training.json").write_text(json.dumps({"seconds": time.perf_counter() - began}) + "\n", "utf-8")
    return made
