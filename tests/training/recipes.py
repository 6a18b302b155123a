"""Tiny runs of every kind, over text that comes with Python."""

from __future__ import annotations

import json
import pydoc_data.topics
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

DROPOUT = {"residual_dropout": 0.1, "attention_dropout": 0.1, "embedding_dropout": 0.1}
SMALL = {"hidden_size": 16, "num_layers": 2, "num_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "causal": {
        "model": {"family": "gpt2", "config": {**SMALL, **DROPOUT}},
        "optimizer": {"name": "muon"},
        "train": {"ema": 0.9},
    },
    "masked": {
        "model": {"family": "bert", "config": {**SMALL, "intermediate_size": 24}},
        "objective": {"name": "masked", "unit": "word"},
        "schedule": {"name": "wsd"},
    },
    "span-corruption": {
        "model": {"family": "t5", "config": {**SMALL, "head_dim": 8, "intermediate_size": 24}},
        "objective": {"name": "span-corruption"},
        "optimizer": {"name": "adafactor"},
        "schedule": {"name": "inverse-sqrt"},
    },
    "replaced-token": {
        "model": {"family": "electra", "config": {**SMALL, "intermediate_size": 24, "embedding_size": 8}},
        "objective": {"name": "replaced-token"},
    },
    "next-sentence": {
        "model": {"family": "bert", "config": {**SMALL, "intermediate_size": 24}},
        "objective": {"name": "next-sentence"},
        "optimizer": {"name": "lion"},
    },
}


@cache
def text() -> str:
    """A few paragraphs of Python's own help."""
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics)[:6])


def recipe(folder: Path, kind: str = "causal", **sections: Any) -> dict[str, Any]:
    """The values of a recipe over a text in `folder`; sections are merged key by key."""
    source = folder / "text.txt"
    if not source.exists():
        source.write_text(text(), "utf-8")
    values: dict[str, Any] = {
        "name": kind,
        "tokenizer": {"vocab_size": 480, "language": "en"},
        "data": {"inputs": [str(source)], "document": "paragraph", "context": 24, "validation_share": 0.1},
        "train": {"steps": 8, "batch": 8, "micro_batch": 2, "seed": 3},
        "evaluation": {"every": 4, "rows": 8},
        "checkpoints": {"every": 3, "keep": 2},
    }
    for section, more in [*KINDS[kind].items(), *sections.items()]:
        before = values.get(section)
        values[section] = {**before, **more} if isinstance(before, dict) and isinstance(more, dict) else more
    return values


def weights(folder: Path, name: str | None = None) -> dict[str, Any]:
    """All tensors of a run's last checkpoint, as NumPy arrays, the optimiser's and the averages too."""
    name = (folder / "last").read_text("utf-8").strip() if name is None else name
    found = {}
    place = folder / "checkpoints" / name
    for path in sorted([place / "model.safetensors", *(place / "training" / "sharded").glob("*.safetensors")]):
        # What all ranks hold any of them may have written, so the files of ranks are taken together.
        file = path.name if path.parent == place else "training"
        found |= {f"{file}/{key}": each for key, each in load_file(path).items()}
    return found


def steps(folder: Path) -> dict[int, dict[str, Any]]:
    """What the log says of each step."""
    lines = (folder / "events.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return {each["step"]: each["values"] for each in events if each["kind"] == "step"}
