"""Texts that quote their prompt, with tokens guessed from it, against the same model without guesses."""

from __future__ import annotations

from pathlib import Path

import tsumugu as tg
from benchmarks.harness import Report
from benchmarks.workers import THREADS, clock

PASSAGE = Path(__file__).parent.parent / "docs" / "en" / "design.md"
GUESSES = 7
ASKED = {
    "copying": "{passage}\n\nThe same text once more:\n\n{beginning}",
    "editing code": "```python\n{code}\n```\n\nThe same with comments in English:\n\n```python\n{first}",
}


def run(report: Report) -> None:
    model, tokenizer = tg.load_model("smollm2", engine="auto", quantize="auto", threads=THREADS), None
    tokenizer = tg.load_tokenizer("smollm2")
    page = PASSAGE.read_text("utf-8")
    passage, code = page[:900], page[page.index("from dataclasses") :][:900]
    tokens = 16 if report.smoke else 128
    for work, asked in ASKED.items():
        text = asked.format(passage=passage, beginning=passage[:40], code=code, first=code.partition("\n")[0])
        ids = tokenizer.encode(text)

        def written(guesses: int, ids: list[int] = ids) -> tuple[float, list[int]]:
            began = clock()
            found = tg.generate(
                model, ids, max_new_tokens=tokens, min_new_tokens=tokens, prompt_lookup=guesses, stream=True
            )
            first = next(found)  # what comes before is reading, which both do alike
            began = clock()
            return -began, [first, *found]

        def seconds(guesses: int, written=written) -> float:  # type: ignore[no-untyped-def]
            negative, _ = written(guesses)
            return float(clock() + negative)

        assert written(0)[1] == written(GUESSES)[1], "the tokens differ"
        report.compare(
            f"SmolLM2-135M, {work}, {tokens} tokens, {GUESSES} guessed",
            lambda seconds=seconds: seconds(GUESSES),  # type: ignore[misc]
            lambda seconds=seconds: seconds(0),  # type: ignore[misc]
            peer_name="without guesses",
            limit="how much of the text is quoted; one pass over the weights for each run of right guesses",
        )
