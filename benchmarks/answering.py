"""What instruction tuning and preferences give SmolLM2: topics of sentences, asked for as in a conversation.

The same questions, as conversations (instruction tuning) and as pairs of a right answer and a wrong one (DPO), by LoRA:
each from the model as it is, and the pairs after the conversations, too, more slowly. Told are, on the test split and
with 95 % intervals: the loss of an answer's token in nats, the share of questions that are answered exactly, and of
pairs whose right answer is the likelier one.
"""

from __future__ import annotations

import json
import random
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Report, precision

SHARED = Path(__file__).parents[2] / "shared" / "data" / "sib200_en"
PLACE = Path("runs/answering")
MODEL = "smollm2"
COUNTS = {"train": 300, "validation": 60, "test": 100}
METHOD = {"method": "lora", "lora": {"targets": "attention"}}
TRAIN = {"epochs": 2, "batch": 16, "seed": 0}
RUNS = (
    ("instruction-tuning", "instruction-tuning", "talks", None, 1e-3),
    ("preference", "preference", "pairs", None, 1e-3),
    ("both", "preference", "pairs", "instruction-tuning", 1e-4),
)
"""Name, task, data, the run that is gone on from, and the rate."""


def run(report: Report) -> None:
    """Tune, and measure before and after."""
    if not SHARED.is_dir():
        report.skip("answering", "there is no shared/data beside the project")
        return
    import tsumugu as tg

    with tempfile.TemporaryDirectory() if report.smoke else nullcontext(str(PLACE)) as folder:
        place = Path(folder)
        questions = write(place, report.smoke)
        found = {"as it is": measured(MODEL, place, questions)}
        for name, task, data, source, rate in RUNS:
            values: dict[str, Any] = {
                "task": task,
                "model": {"source": MODEL if source is None else str(place / source), **METHOD},
                "data": {part: str(place / f"{data}-{split}.jsonl") for part, split in SPLITS.items()},
                "train": TRAIN
                | {"lr": rate, "precision": precision()}
                | ({"epochs": None, "steps": 1} if report.smoke else {}),
                "evaluation": {"every": 0},
            }
            tuned = tg.finetune(values, place / name, resume=(place / name).exists(), quiet=True)
            found[name] = measured(str(tuned.model), place, questions)
        lines = ["| SmolLM2-135M | Loss of a token | Answered exactly | Right answer likelier |", "|---|--:|---|---|"]
        lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in found.items()]
        (place / "answering.md").write_text("\n".join(lines) + "\n", "utf-8")
        print("\n".join(lines), flush=True)


SPLITS = {"source": "train", "validation": "validation"}


def write(place: Path, smoke: bool) -> list[tuple[str, str]]:
    """Conversations and pairs of each split; gives the questions of the test split with their answers."""
    place.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for split, count in COUNTS.items():
        rows = [json.loads(line) for line in (SHARED / f"{split}.jsonl").read_text("utf-8").splitlines()]
        labels = sorted({row["label"] for row in rows})
        asked = [
            (f"What is this text about? Answer with one of: {', '.join(labels)}.\n\n{row['text']}", row["label"])
            for row in chance.sample(rows, 4 if smoke else min(count, len(rows)))
        ]
        talks, pairs = [], []
        for question, label in asked:
            said = [{"role": "user", "content": question}, {"role": "assistant", "content": label}]
            talks.append({"messages": said})
            wrong = chance.choice([each for each in labels if each != label])
            pairs.append({"prompt": question, "chosen": label, "rejected": wrong})
        for name, some in (("talks", talks), ("pairs", pairs)):
            text = "".join(json.dumps(row) + "\n" for row in some)
            (place / f"{name}-{split}.jsonl").write_text(text, "utf-8")
    return asked


def measured(model: str, place: Path, questions: list[tuple[str, str]]) -> list[str]:
    """The three figures of a model, as cells of a table."""
    import torch

    import tsumugu as tg
    from tsumugu.tuning.instruction import InstructionTuning
    from tsumugu.tuning.preference import Preference
    from tsumugu.tuning.recipe import DataSection, LossSection

    network, tokenizer = tg.load_model(model), tg.load_tokenizer(model)
    talks = InstructionTuning(network, tokenizer, DataSection(source=""), LossSection())
    losses = []
    for row in talks.rows(tg.load_examples(place / "talks-test.jsonl", "conversation")):
        batch = talks.batch([row])
        inputs = {key: torch.from_numpy(each) for key, each in batch.inputs.items()}
        with torch.no_grad():
            losses.append((float(talks.losses(network, inputs)["token"]), batch.counts["token"]))
    pairs = Preference(network, tokenizer, DataSection(source=""), LossSection())
    rows = pairs.rows(tg.load_examples(place / "pairs-test.jsonl", "preference"))
    ranked = [(float(better[2] > worse[2]), 1) for better, worse in (row.answer for row in rows)]
    chat: Any = tg.pipeline("chat", model)
    exact = [(float(chat(asked, max_new_tokens=8).strip().lower() == right), 1) for asked, right in questions]
    return [cell(losses), cell(exact), cell(ranked)]


def cell(values: list[tuple[float, int]]) -> str:
    """The mean of sums over counts, with its interval."""
    from tsumugu.evaluation.metrics import mean
    from tsumugu.evaluation.resampling import Measure, bootstrap

    return str(f"{bootstrap(Measure('mean', np.array(values, float), mean)):.3f}")
