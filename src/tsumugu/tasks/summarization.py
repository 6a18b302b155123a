"""Summarization: a shorter text that says what a long one says, written by an encoder-decoder."""

from __future__ import annotations

from tsumugu.tasks.text2text_generation import Text2TextGeneration


class Summarization(Text2TextGeneration):
    """Summaries, as `[{"summary_text"}]` for a text. Options are those of `text2text-generation`.

    For a summary of the text's own sentences see `extractive-summarization`.
    """

    name = "summarization"
    key = "summary"
