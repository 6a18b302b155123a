"""Reading our own Markdown: fenced blocks with what is said about them, headings, and links.

An example is a fence at the left margin. It is not run when the line before it is `<!-- skip: reason -->`, or when its
info string has the word `no-run`. A fence of `text` with a title, right after a `python` one, is what that one prints.
"""

from __future__ import annotations

import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ("python", "console", "bash")
_FENCE = re.compile(r"(`{3,})\s*([\w+-]*)\s*(.*)")
_SKIP = re.compile(r"<!-- skip: .+ -->")
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the rest of its info string, its text, the line it begins on."""

    language: str
    info: str
    text: str
    line: int
    skipped: bool

    @property
    def titled(self) -> bool:
        return "title=" in self.info


@dataclass(frozen=True)
class Example:
    """Something a reader may type, and what it prints (None: not shown)."""

    kind: str
    code: str
    expected: str | None
    line: int


def pages() -> list[Path]:
    """Every English page that has a Japanese one; the one that may empty the caches comes last."""
    documentation = sorted((ROOT / "docs" / "en").glob("*.md"), key=lambda page: (page.name == "cache.md", page.name))
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *documentation]


def twin(page: Path) -> Path:
    """The Japanese page of an English one."""
    if page.parent == ROOT:
        return page.with_suffix(".ja.md")
    return ROOT / "docs" / "ja" / page.name


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found: list[Block] = []
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        match = _FENCE.fullmatch(lines[index])
        if match is None:
            index += 1
            continue
        ticks, language, info = match.groups()
        end = next(at for at in range(index + 1, len(lines)) if lines[at].strip() == ticks)
        before = next((lines[at] for at in range(index - 1, -1, -1) if lines[at].strip()), "")
        skipped = bool(_SKIP.fullmatch(before)) or "no-run" in info.split()
        found.append(Block(language, info, "\n".join(lines[index + 1 : end]), index + 1, skipped))
        index = end + 1
    return found


def prose(text: str) -> str:
    """The page without its fenced blocks and code spans."""
    lines, inside = [], None
    for line in text.splitlines():
        match = _FENCE.fullmatch(line)
        if inside is None and match is not None:
            inside = match[1]
        elif inside is not None and line.strip() == inside:
            inside = None
        elif inside is None:
            lines.append(line)
    return "\n".join(lines)


def headings(text: str) -> list[tuple[int, str]]:
    """Level and text of every heading."""
    found = re.finditer(r"^(#{1,6}) (.+)$", prose(text), re.MULTILINE)
    return [(len(each[1]), each[2].strip()) for each in found]


def anchor(heading: str) -> str:
    """The fragment that a heading gets, on the site and where the repository is browsed."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")


def links(text: str) -> list[str]:
    """Targets of the page's links."""
    return _LINK.findall(re.sub(r"`[^`]*`", "", prose(text)))


def examples(text: str) -> list[Example]:
    """What a page invites the reader to run, in order."""
    found: list[Example] = []
    every = blocks(text)
    for index, block in enumerate(every):
        if block.language not in RUN or block.skipped:
            continue
        if block.language == "python":
            following = every[index + 1] if index + 1 < len(every) else None
            shown = following is not None and following.language == "text" and following.titled
            found.append(Example("python", block.text, following.text if shown and following else None, block.line))
        else:
            found += _commands(block)
    return found


def _commands(block: Block) -> list[Example]:
    """The commands of a `bash` block (no output shown) or a `console` block (`$ command`, then what it prints)."""
    if block.language == "bash":
        return [Example("shell", block.text, None, block.line)]
    found: list[Example] = []
    command: list[str] | None = None
    output: list[str] = []
    start = block.line
    for number, line in enumerate([*block.text.splitlines(), "$ "], block.line + 1):
        if line.startswith("$ "):
            if command is not None:
                found.append(Example("shell", "\n".join(command), "\n".join(output), start))
            command, output, start = [line[2:]], [], number
        elif command and not output and (command[-1].endswith("\\") or line.startswith("> ")):
            command.append(line.removeprefix("> "))
        else:
            output.append(line)
    return found


def without_comments(block: Block) -> list[str]:
    """The lines of a block that do something."""
    if block.language == "python":
        kept = [token for token in _tokens(block.text) if token.type not in (tokenize.COMMENT, tokenize.NL)]
        return [f"{token.type} {token.string}" for token in kept]
    lines = (re.sub(r"(^|\s\s+)# .*$", "", line).rstrip() for line in block.text.splitlines())
    return [line for line in lines if line]


def _tokens(code: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(code).readline))


def agrees(expected: str, printed: str) -> bool:
    """Whether what was printed is what the page shows.

    A line `…` stands for any lines, `…` in a line for any text; real numbers may differ by 0.002, spaces in number.
    """
    return _lines_agree(_clean(expected), _clean(printed))


def _clean(text: str) -> list[str]:
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    return [line for line in lines if line]


def _lines_agree(expected: list[str], printed: list[str]) -> bool:
    if not expected:
        return not printed
    if expected[0] == "…":
        return any(_lines_agree(expected[1:], printed[skip:]) for skip in range(len(printed) + 1))
    return bool(printed) and _line_agrees(expected[0], printed[0]) and _lines_agree(expected[1:], printed[1:])


def _line_agrees(expected: str, printed: str) -> bool:
    number = r"-?\d+\.\d+(?:e[+-]?\d+)?"
    pattern, wanted = "", []
    for part in re.split(rf"({number}|…)", expected):
        if part == "…":
            pattern += ".*?"
        elif re.fullmatch(number, part):
            pattern += rf"({number})"
            wanted.append(float(part))
        else:
            pattern += re.escape(part)
    match = re.fullmatch(pattern, printed)
    return match is not None and all(
        abs(float(found) - value) <= 0.002 for found, value in zip(match.groups(), wanted, strict=True)
    )
