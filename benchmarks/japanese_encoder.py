"""The Japanese encoder that the tasks' table tunes: what it reads, and its run.

It reads literature and the texts of the tasks' training splits, without their labels and each once; no test split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import precision

RUN = Path("runs/ja-encoder")
ROW = dict[str, Any]


def _fields(*names: str) -> Callable[[ROW], Iterable[str]]:
    return lambda row: [row[name] for name in names]


READ: dict[str, Callable[[ROW], Iterable[str]]] = {
    "aozora_ja/train.jsonl": _fields("text"),
    "aozora_ja/train-2.jsonl": _fields("text"),
    "aozora_author_ja/train.jsonl": _fields("text"),
    "jnli/validation.jsonl": _fields("premise", "hypothesis"),
    "jnli_neg/train.jsonl": _fields("premise", "hypothesis"),
    "jsts/train.jsonl": _fields("sentence1", "sentence2"),
    "chabsa/train.jsonl": _fields("text"),
    "sib200_ja/train.jsonl": _fields("text"),
    "ner_wikipedia_ja/train.jsonl": _fields("text"),
    "jsquad/train.jsonl": lambda row: [row["context"].replace(" [SEP] ", "\n"), row["question"]],
    "jcommonsenseqa/train.jsonl": lambda row: [" ".join([row["question"], *row["choices"]])],
    "small_parallel_enja/train.jsonl": lambda row: [row["translation"]["ja"].replace(" ", "")],
    "ami_meeting_parallel/train.jsonl": lambda row: [row["translation"]["ja"]],
    "asdc_scud_ja/train.jsonl": _fields("document"),
    "asdc_dialog_ja/train.jsonl": _fields("document"),
}
"""The texts of a row of each file."""


def texts(shared: Path) -> Iterator[str]:
    """All that is read, in order, each text once."""
    seen = set()
    for name, read in READ.items():
        for line in (shared / name).open(encoding="utf-8"):
            for text in map(str.strip, read(json.loads(line))):
                if text and text not in seen:
                    seen.add(text)
                    yield text


def pretrain(shared: Path) -> None:
    """Spin the encoder where there is none yet, or go on where it stopped: an hour or two of one core."""
    import tsumugu as tg
    from tsumugu.training.recipe import Recipe, find_recipe
    from tsumugu.training.runs import is_run, read_run

    if is_run(RUN) and read_run(RUN).state == "done":
        return
    corpus = RUN.with_name(f"{RUN.name}.jsonl")
    corpus.parent.mkdir(parents=True, exist_ok=True)
    corpus.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts(shared)), "utf-8")
    recipe = Recipe.from_yaml(find_recipe("ja-encoder"))
    recipe = recipe.replace(train=recipe.train.replace(precision=precision()))
    tg.train(recipe.replace(data=recipe.data.replace(inputs=(str(corpus),))), RUN, resume=RUN.exists())
