"""Conversations and preferences in the forms that people have them, and what is wrong with a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tsumugu as tg
from tsumugu.core.errors import InputError

ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
WORSE = {"role": "assistant", "content": "Go away."}
SYSTEM = {"role": "system", "content": "Be kind."}


def read(path: Path, *rows: dict[str, Any], kind: str | None = None, **options: Any) -> Any:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return tg.load_examples(path, kind, **options)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [SYSTEM, ASKED, ANSWERED]}, (SYSTEM, ASKED, ANSWERED)),
        ({"messages": json.dumps([ASKED, ANSWERED])}, (ASKED, ANSWERED)),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
            (ASKED, ANSWERED),
        ),
        ({"instruction": "Hi", "input": "", "output": "Hello!"}, (ASKED, ANSWERED)),
        (
            {"instruction": "Sum up", "input": "A tale", "output": "A"},
            ({"role": "user", "content": "Sum up\n\nA tale"}, {"role": "assistant", "content": "A"}),
        ),
        ({"instruction": "Hi", "output": "Hello!", "system": "Be kind."}, (SYSTEM, ASKED, ANSWERED)),
    ],
    ids=str,
)
def test_conversations(row: dict[str, Any], messages: Any, tmp_path: Path) -> None:
    found = read(tmp_path / "train.jsonl", row)
    assert found.kind == "conversation"
    assert found[0].messages == messages


def test_a_prompt_and_its_completion(tmp_path: Path) -> None:
    rows = {"prompt": "Hi", "completion": "Hello!"}, {"prompt": [ASKED], "completion": [ANSWERED]}
    for row in rows:
        assert read(tmp_path / "train.jsonl", row, kind="chat")[0].messages == (ASKED, ANSWERED)
    assert read(tmp_path / "train.jsonl", rows[0]).kind == "text-to-text"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."},
        {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [WORSE]},
        {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, WORSE]},
        {"prompt": "Hi", "chosen": [ASKED, ANSWERED], "rejected": [ASKED, WORSE]},
    ],
    ids=str,
)
def test_preferences(row: dict[str, Any], tmp_path: Path) -> None:
    found = read(tmp_path / "train.jsonl", row)
    assert found.kind == "preference"
    assert (found[0].prompt, found[0].chosen, found[0].rejected) == ((ASKED,), (ANSWERED,), (WORSE,))


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("conversation", {"messages": [ASKED]}, "answers nothing"),
        ("conversation", {"messages": [ANSWERED]}, "answers nothing"),
        ("conversation", {"messages": []}, "no messages"),
        ("conversation", {"messages": "[{"}, "not JSON"),
        ("conversation", {"messages": [{"role": "assistent", "content": "x"}]}, "did you mean 'assistant'"),
        ("conversation", {"messages": [ASKED, {"role": "assistant", "content": " "}]}, "is empty"),
        ("conversation", {"messages": [ASKED, {"role": "assistant"}]}, "content of message 1 is no text"),
        ("conversation", {"instruction": "Hi", "output": ""}, "column 'output': is empty"),
        ("conversation", {"text": "Hi"}, "no columns are known"),
        ("preference", {"prompt": "Hi", "chosen": "Hello!", "rejected": "Hello!"}, "the same"),
        ("preference", {"chosen": "Hello!", "rejected": "Go"}, "answers nothing"),
        ("preference", {"chosen": [ASKED], "rejected": [ASKED, WORSE]}, "no answer of its own"),
    ],
    ids=str,
)
def test_what_is_refused(kind: str, row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read(tmp_path / "train.jsonl", row, kind=kind)
    good = {"messages": [ASKED, ANSWERED]} if "messages" in row else None
    if good is not None:
        found = read(tmp_path / "train.jsonl", good, row, kind=kind, on_problem="skip")
        assert len(found) == len(found.problems) == 1
        assert "line 2" in found.problems[0].where
