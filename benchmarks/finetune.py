"""Fine-tuning, against the reference library's Trainer: the same checkpoint, examples, ids, epochs, batch, optimiser.

Both sides get the rows that we cut the texts into, so that only training is compared. Ours puts rows of like length
into a batch; Trainer, with its defaults, takes them as they come and pads each batch to its longest. What counts is the
time of training alone; loading, scoring and saving are left out on both sides. Scores on the test split are printed
beside it.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import japanese_encoder
from benchmarks.harness import Report

SHARED = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Case:
    """One task.

    Attributes:
        data: the folder of its splits; "lengths" are made up, of 8 to 200 tokens, and teach nothing.
        task: as `tsumugu finetune` has it.
        base: what is tuned.
        auto: the reference library's class for it.
        limit: training examples.
        epochs: so often they are read.
    """

    data: str
    task: str
    base: str
    auto: str
    limit: int = 1920
    epochs: int = 2


CASES = [
    Case("lengths", "text-classification", "minilm", "AutoModelForSequenceClassification", 640, 1),
    Case("sentence_polarity_en", "text-classification", "minilm", "AutoModelForSequenceClassification"),
    Case("wnut17", "token-classification", "minilm", "AutoModelForTokenClassification"),
    Case("jsts", "text-similarity", str(japanese_encoder.RUN), "AutoModelForSequenceClassification"),
]
BATCH, RATE = 32, 1e-4


def run(report: Report) -> None:
    """Seeds take the place of rounds: three runs a side, in turn."""
    import transformers

    transformers.logging.set_verbosity_error()
    if report.smoke:
        with tempfile.TemporaryDirectory() as folder:
            _compare(replace(CASES[0], data=str(_made_up(Path(folder) / "lengths", 9)), limit=64), Path(folder), report)
        return
    with tempfile.TemporaryDirectory() as folder:
        _compare(replace(CASES[0], data=str(_made_up(Path(folder) / "lengths", 200))), Path(folder), report)
    if not SHARED.is_dir():
        report.skip("fine-tuning", f"there is no {SHARED.name} beside the project")
        return
    for case in CASES[1:]:
        if case.base == str(japanese_encoder.RUN):
            japanese_encoder.pretrain(SHARED)
        with tempfile.TemporaryDirectory() as folder:
            _compare(case, Path(folder), report)


def _compare(case: Case, place: Path, report: Report) -> None:
    from tsumugu.hub.resolve import resolve

    base = str(resolve(case.base).path)
    scores: dict[str, list[float]] = {"ours": [], "Trainer": []}
    seeds = {"ours": iter(range(9)), "Trainer": iter(range(9))}

    def ours() -> float:
        seed = next(seeds["ours"])
        folder = place / f"ours-{seed}"
        seconds = _ours(case, base, folder, seed)
        scores["ours"].append(_score(case, folder / "model"))
        return seconds

    def theirs() -> float:
        seed = next(seeds["Trainer"])
        folder = place / f"theirs-{seed}"
        seconds = _theirs(case, base, folder, seed)
        scores["Trainer"].append(_score(case, folder))
        return seconds

    report.compare(
        f"{Path(case.data).name}, {case.limit} examples x {case.epochs}",
        ours,
        theirs,
        peer_name="Trainer",
        limit="arithmetic: matrix products; theirs also padding",
        rounds=3,
    )
    for name, found in scores.items():
        print(
            f"  {name:8} test {statistics.mean(found):.3f} ({', '.join(f'{each:.3f}' for each in found)})", flush=True
        )


def _made_up(folder: Path, longest: int) -> Path:
    """Texts of 8 to `longest` tokens, two of them special, with labels that nothing tells, as a data set."""
    folder.mkdir()
    chance = random.Random(0)
    words = ["a", "warm", "bright", "lovely", "funny", "dull", "cold", "poor", "awful", "film", "of", "the", "sea"]
    for split, count in (("train", 640), ("validation", 8), ("test", 20)):
        rows = (
            {"text": " ".join(chance.choices(words, k=chance.randint(6, longest - 2))), "label": ("no", "yes")[at % 2]}
            for at in range(count)
        )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def _splits(case: Case) -> dict[str, Any]:
    import tsumugu as tg

    return tg.load_splits(SHARED / case.data)


def _recipe(case: Case, base: str, seed: int) -> Any:
    from tsumugu.tuning.recipe import Tuning

    files = {name: str(next(iter(sorted((SHARED / case.data).glob(f"{name}*"))))) for name in ("train", "validation")}
    return Tuning.from_values(
        {
            "task": case.task,
            "model": {"source": base},
            "data": {
                "source": files["train"],
                "validation": files["validation"],
                "limit": case.limit,
                "max_length": 200,
            },
            "train": {"epochs": case.epochs, "batch": BATCH, "lr": RATE, "seed": seed},
            "evaluation": {"every": 0, "rows": 8},
            "checkpoints": {"every": 0},
        }
    )


def _ours(case: Case, base: str, folder: Path, seed: int) -> float:
    import tsumugu as tg

    return tg.finetune(_recipe(case, base, seed), folder, quiet=True).result.seconds


def _theirs(case: Case, base: str, folder: Path, seed: int) -> float:
    """The Trainer on the rows of our objective, with its own padding."""
    import torch
    import transformers

    from tsumugu.checkpoints.load import load_tokenizer
    from tsumugu.engines.torch import load_model
    from tsumugu.tuning.finetune import read_splits
    from tsumugu.tuning.objectives import find_objective

    kind, recipe = find_objective(case.task), _recipe(case, base, seed)
    examples = read_splits(recipe, kind.kind).train
    labels = kind.outputs(examples) or ()
    model = load_model(base, task=kind.head, labels=labels, strict=False)
    objective = kind(model, load_tokenizer(base), recipe.data, recipe.loss)
    objective.begin(model, examples)
    answers = {"text-classification": lambda each: each[0]}.get(case.task, lambda each: each)
    rows = [
        {"input_ids": row.ids, "labels": answers(row.answer), **({} if row.types is None else {"types": row.types})}
        for row in objective.rows(examples)
    ]

    def padded(batch: list[dict[str, Any]]) -> dict[str, Any]:
        wide = max(len(each["input_ids"]) for each in batch)

        def filled(lists: list[Any], fill: int) -> Any:
            return torch.tensor([[*each, *[fill] * (wide - len(each))] for each in lists])

        found = {
            "input_ids": filled([each["input_ids"] for each in batch], objective.pad),
            "attention_mask": filled([[1] * len(each["input_ids"]) for each in batch], 0),
        }
        if "types" in batch[0]:
            found["token_type_ids"] = filled([each["types"] for each in batch], 0)
        given = [each["labels"] for each in batch]
        found["labels"] = filled(given, -100) if isinstance(given[0], list) else torch.tensor(given)
        return found

    transformers.set_seed(seed)
    problem = {"problem_type": "regression"} if kind.usage() else {}
    theirs = getattr(transformers, case.auto).from_pretrained(
        base, num_labels=len(labels), id2label=dict(enumerate(labels)),
        label2id={label: at for at, label in enumerate(labels)}, **problem,
    )  # fmt: skip
    settings = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=case.epochs, per_device_train_batch_size=BATCH, learning_rate=RATE,
        warmup_steps=0.1, lr_scheduler_type="linear", weight_decay=0.01, seed=seed, save_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=True, remove_unused_columns=False, logging_strategy="no",
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(model=theirs, args=settings, train_dataset=rows, data_collator=padded)
    seconds = float(trainer.train().metrics["train_runtime"])
    theirs.save_pretrained(folder)
    objective.tokenizer.save(folder)
    return seconds


def _score(case: Case, model: Path) -> float:
    import tsumugu as tg
    from tsumugu.tuning.objectives import find_objective

    test = _splits(case)["test"][:500]
    found = tg.evaluate(test, model=tg.pipeline(find_objective(case.task).solver, model))
    return found.scores[found.results.primary]
