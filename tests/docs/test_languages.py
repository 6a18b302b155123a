"""English and Japanese pages are the same pages: files, headings, code. Their links lead somewhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from tests.docs import markdown
from tests.docs.markdown import ROOT

from tsumugu.cli import VERBS
from tsumugu.cli.prepare import prepare
from tsumugu.core.registry import FAMILY_SUMMARIES, TASKS
from tsumugu.corpus.filters import PRESETS
from tsumugu.corpus.measures import MEASURES

PAGES = [pytest.param(page, id=markdown.name(page)) for page in markdown.pages()]
BOTH = [each for page in markdown.pages() for each in (page, markdown.twin(page))]
EVERY = [pytest.param(page, id=markdown.name(page)) for page in [*BOTH, ROOT / "CHANGELOG.md"]]
CODE = (*markdown.RUN, "yaml", "json", "toml", "make")


def test_the_same_files() -> None:
    english = {page.relative_to(ROOT / "docs" / "en") for page in (ROOT / "docs" / "en").rglob("*.md")}
    japanese = {page.relative_to(ROOT / "docs" / "ja") for page in (ROOT / "docs" / "ja").rglob("*.md")}
    assert english == japanese
    assert (ROOT / "README.ja.md").is_file()
    assert (ROOT / "CONTRIBUTING.ja.md").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_the_same_headings(page: Path) -> None:
    english, japanese = (markdown.headings(each.read_text("utf-8")) for each in (page, markdown.twin(page)))
    levels = [[level for level, _ in found] for found in (english, japanese)]
    assert levels[0] == levels[1], f"{english}\n{japanese}"


@pytest.mark.parametrize("page", PAGES)
def test_the_same_code_but_for_comments(page: Path) -> None:
    english, japanese = (
        [each for each in markdown.blocks(one.read_text("utf-8")) if each.language in CODE or each.titled]
        for one in (page, markdown.twin(page))
    )
    assert len(english) == len(japanese)
    for first, second in zip(english, japanese, strict=True):
        where = f"{markdown.name(page)}, line {first.line}, and its twin, line {second.line}"
        assert first.language == second.language, where
        assert first.skipped == second.skipped, where
        assert markdown.without_comments(first) == markdown.without_comments(second), where


@pytest.mark.parametrize("page", EVERY)
def test_no_example_hides_from_the_tests(page: Path) -> None:
    indented = re.findall(r"^[ >\t]+`{3,}.*$", page.read_text("utf-8"), re.MULTILINE)
    assert not indented, "fences stand at the left margin"
    unnamed = [each.line for each in markdown.blocks(page.read_text("utf-8")) if not each.language]
    assert not unnamed, "every fence names its language"


@pytest.mark.parametrize("page", EVERY)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    lost = []
    for link in markdown.links(text):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, fragment = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        if not target.exists():
            lost.append(link)
        elif fragment and target.suffix == ".md":
            known = [markdown.anchor(heading) for _, heading in markdown.headings(target.read_text("utf-8"))]
            if fragment not in known:
                lost.append(link)
    assert not lost


@pytest.mark.parametrize("page", EVERY)
def test_the_project_speaks_of_itself_only(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not re.search(r"(?<![\w~.])/(root|home|Users|work)/", text), "no paths of one machine"


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_pages_name_what_there_is(language: str) -> None:
    folder = ROOT / "docs" / language
    families, tasks, commands = (
        (folder / name).read_text("utf-8") for name in ("models.md", "tasks.md", "command-line.md")
    )
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([\w, 、-]+) \| .* \|.*\|$", families, re.MULTILINE))
    for name, summary in FAMILY_SUMMARIES.items():
        assert name in rows, f"models.md has no row for the family {name}"
        assert tuple(re.split(r"[,、] ?", rows[name])) == summary.model_types
    for name in TASKS:
        assert f"\n## {name}\n" in tasks, f"tasks.md has no section for {name}"
    for name in VERBS:
        assert f"| `{name}` |" in commands, f"command-line.md does not list the verb {name}"


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_page_on_corpora_names_every_option_rule_and_reason(language: str) -> None:
    page = (ROOT / "docs" / language / "corpus.md").read_text("utf-8")
    for parameter in inspect.signature(prepare).parameters:
        name = {"as_json": "json"}.get(parameter, parameter).replace("_", "-")
        assert name == "inputs" or f"`--{name}`" in page, f"corpus.md does not tell of --{name}"
    numbered = {f"repeated_{n}_grams" for n in range(6, 10)}  # the page says: from 5 to 10
    for name in [*PRESETS, *sorted(MEASURES.keys() - numbered)]:
        assert f"`{name}`" in page, f"corpus.md does not tell of {name}"
    for reason in ("empty", "language", "exact duplicate", "near duplicate"):
        assert f"| `{reason}` |" in page
