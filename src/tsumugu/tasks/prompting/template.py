"""Prompts as Jinja templates: what stands in the package, in the user's folder, or in the call.

A template writes `items` one after the other, each with its `answer`: the examples, then the row whose answer is asked
for. What comes before that answer is the prompt, and what comes after it says how an answer ends.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.hub.home import home
from tsumugu.text.chat import render_template

LANGUAGES = ("en", "ja")
MARK = f"\ue000{secrets.token_hex(8)}\ue001"
"""Stands for the answer that is asked for; no text holds it by chance."""


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        context: the text before the answer, without white space at its end.
        lead: that white space, with which an answer begins.
        tail: what would follow the answer.
    """

    context: str
    lead: str
    tail: str


@dataclass(frozen=True)
class PromptTemplate:
    """A template by its source."""

    source: str
    where: str

    @classmethod
    def find(cls, task: str, *, language: str = "en", given: str | Path | None = None) -> PromptTemplate:
        """The template of a task.

        Args:
            task: the task's name.
            language: en or ja.
            given: a template's file, a folder that has one called `task`.jinja, or a template itself. When left out,
                `prompts/LANGUAGE/TASK.jinja` in tsumugu's home, else the package's own.

        Raises:
            InputError: no such file.
        """
        name = f"{task}.jinja"
        if isinstance(given, str) and ("{" in given or "\n" in given):
            return cls(given, "template")
        if given is not None:
            path = Path(given).expanduser()
            return cls(_read(path / name if path.is_dir() else path), str(path))
        own = home() / "prompts" / language / name
        if own.is_file():
            return cls(_read(own), str(own))
        return cls(_packaged(language, name), name)

    def render(self, items: Sequence[Mapping[str, Any]], **values: Any) -> Prompt:
        """The prompt that asks for the answer of the last item; the others have theirs.

        Raises:
            InputError: the template fails, or does not write that answer once.
        """
        asked = [*items[:-1], {**items[-1], "answer": MARK}]
        text = render_template(self.source, {"items": asked, **values})
        before, mark, after = text.partition(MARK)
        if not mark or MARK in after:
            raise InputError("the template must write the last item's answer, once", where=self.where)
        context = before.rstrip()
        return Prompt(context, before[len(context) :], after)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=str(path)) from None


@lru_cache
def _packaged(language: str, name: str) -> str:
    folder = resources.files(__package__) / "templates" / language
    return (folder / name).read_text("utf-8")
