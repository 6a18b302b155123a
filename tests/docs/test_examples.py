"""Every example of the README and the documentation runs, and prints what the page says.

Only the English pages are run: `test_languages` holds the Japanese ones to the same code.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.docs import markdown
from tests.docs.conftest import Runner

WEIGHTS = ("smollm2", "minilm")


def _parameters() -> list[object]:
    found = []
    for page in markdown.pages():
        examples = markdown.examples(page.read_text("utf-8"))
        if examples:
            weights = any(word in each.code for each in examples for word in WEIGHTS)
            marks = [pytest.mark.weights] if weights else []
            found.append(pytest.param(page, id=markdown.name(page), marks=marks))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", _parameters())
def test_the_examples_of_a_page_print_what_it_shows(
    page: Path, request: pytest.FixtureRequest, run_page: Runner, empty_home: Path, tmp_path: Path
) -> None:
    if request.node.get_closest_marker("weights") is not None:
        request.getfixturevalue("home_with_models")
    examples = markdown.examples(page.read_text("utf-8"))
    results = run_page(tmp_path, [{"kind": each.kind, "code": each.code} for each in examples])
    faults = []
    for example, result in zip(examples, results, strict=True):
        printed = result["output"].replace(str(empty_home), "~").replace(str(tmp_path) + os.sep, "")
        place = f"{markdown.name(page)}, line {example.line}:\n{example.code}"
        refused = (example.expected or " ").splitlines()[-1].startswith("tsumugu: ")
        if result["code"] != (2 if refused else 0):
            faults.append(f"{place}\nleft with code {result['code']}:\n{printed}")
        elif example.expected is not None and not markdown.agrees(example.expected, printed):
            faults.append(f"{place}\nprinted\n{printed}\nbut the page shows\n{example.expected}")
    assert not faults, "\n\n".join(faults)


def test_that_the_comparison_can_fail() -> None:
    assert markdown.agrees("0.6712  a…\n…\nz", " 0.6720 abc\nanything\n\nmore\nz\n")
    assert not markdown.agrees("0.6712", "0.6751")
    assert not markdown.agrees("a\nb", "a")
    assert not markdown.agrees("a", "a\nb")
    assert not markdown.agrees("", "Traceback")
