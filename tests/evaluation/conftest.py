"""Small labelled data of every kind, as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[[str, list[dict[str, Any]]], Path]

QUESTIONS = [
    {"id": "q1", "question": "Who?", "context": "Ada wrote it.", "answers": {"text": ["Ada"], "answer_start": [0]}},
    {"id": "q2", "question": "When?", "context": "Ada wrote it.", "answers": {"text": [], "answer_start": []}},
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return path

    return make


@pytest.fixture
def reviews(write: Write, tmp_path: Path) -> Path:
    """Reviews that a bag of words can tell apart, in two splits."""
    good, bad = (
        ["とても良い映画", "良い音楽だ", "実に良い", "good and fine"],
        ["とても悪い映画", "悪い音楽だ", "実に悪い", "bad and dull"],
    )
    for split, times in (("train", 6), ("test", 3)):
        rows = [
            {
                "id": f"{split}{at}{label}",
                "text": f"{text}{'。' * at}{split}",
                "label": label,
                "source": "web" if at else "book",
            }
            for at in range(times)
            for label, texts in (("positive", good), ("negative", bad))
            for text in texts[at % 4 : at % 4 + 1]
        ]
        write(f"reviews/{split}.jsonl", rows)
    return tmp_path / "reviews"
