"""The network of a model as an SVG drawing: boxes with shapes, from the token ids above to the answer below.

Colours are CSS variables of the page around it, each with a colour of its own for where there is no such page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, LINE, GAP, PAD = 330, 17, 20, 10
_COLOURS = {
    "ids": "#8a8f98",
    "embeddings": "#3f74c9",
    "attention": "#c2571a",
    "feed-forward": "#2f8f5b",
    "norm": "#8a6fb3",
    "head": "#b0406f",
    "output": "#8a8f98",
    "stack": "#8a8f98",
}


def draw(blocks: Sequence[dict[str, Any]], *, label: str) -> str:
    """An SVG drawing of the blocks that `algorithm.blocks_of` gives; two stacks stand side by side."""
    stacks = [index for index, block in enumerate(blocks) if block["kind"] == "stack"]
    writes = [index for index in stacks if blocks[index]["title"] == "decoder"]
    columns: list[Sequence[dict[str, Any]]] = [blocks]
    if writes and len(stacks) > len(writes):  # an encoder, then a decoder that looks at it
        first = writes[0] - (blocks[writes[0] - 1]["title"] == "decoder positions")
        same = {"kind": "embeddings", "title": "the same embeddings", "lines": [], "parameters": 0}
        columns = [blocks[:first], [{**blocks[0], "title": "token ids written so far"}, same, *blocks[first:]]]
    parts, height, right = [], 0.0, 0.0
    ends: list[float] = []
    for number, column in enumerate(columns):
        left = number * (WIDTH + 90)
        drawn, bottom = _column(column, left)
        parts += drawn
        ends.append(bottom)
        height, right = max(height, bottom), left + WIDTH
    if len(columns) == 2:
        middle = WIDTH + 45
        parts.append(
            f'<path d="M{WIDTH / 2} {ends[0]} v14 H{middle} V{height / 2} H{WIDTH + 88}" class="line" '
            'marker-end="url(#arrow)"/>'
        )
        height = max(height, ends[0] + 20)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -8 {right + 24:.0f} {height + 16:.0f}" '
        f'width="{right + 24:.0f}" role="img" aria-label="{_safe(label)}" class="diagram" font-family="sans-serif" '
        f'font-size="12.5"><title>{_safe(label)}</title>{_STYLE}{"".join(parts)}</svg>'
    )


_STYLE = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 L8 4 L0 8 z" fill="var(--line, #8a8f98)"/></marker></defs>'
    "<style>.diagram .line{fill:none;stroke:var(--line,#8a8f98);stroke-width:1.3}"
    ".diagram text{fill:var(--ink,#1d2129)}.diagram .soft{fill:var(--soft,#5a616b)}"
    ".diagram .box{fill:var(--panel,#ffffff)}</style>"
)


def _column(blocks: Sequence[dict[str, Any]], left: float) -> tuple[list[str], float]:
    parts: list[str] = []
    y = 0.0
    for index, block in enumerate(blocks):
        if index:
            parts.append(_arrow(left + WIDTH / 2, y, y + GAP))
            y += GAP
        drawn, height = _stack(block, left, y) if block["kind"] == "stack" else _box(block, left, y, WIDTH)
        parts += drawn
        y += height
    return parts, y


def _stack(block: dict[str, Any], left: float, top: float) -> tuple[list[str], float]:
    """A frame around the boxes of one layer, with how often it is repeated."""
    y = top + LINE + 2 * PAD + (LINE if "layers" in block else 0)
    inner: list[str] = []
    tops: list[float] = []
    for index, each in enumerate(block["inner"]):
        if index:
            inner.append(_arrow(left + WIDTH / 2, y, y + GAP - 6))
            y += GAP - 6
        tops.append(y)
        drawn, height = _box(each, left + 34, y, WIDTH - 68)
        inner += drawn
        y += height
        if "residual" in each:
            inner.append(_residual(left + 34, tops[-each["residual"]] - 5, y + 5))
    height = y + PAD - top
    several = f"{block['count']} × the same layer" if block["count"] > 1 else "one layer"
    head = f"{block['title']}: {several}"
    which = block.get("layers", "")
    frame = (
        f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{height}" rx="9" fill="none" '
        'stroke="var(--line,#8a8f98)" stroke-dasharray="5 4"/>'
        f'<text x="{left + PAD}" y="{top + LINE + 3}" font-weight="600">{_safe(head)}</text>'
        f'<text class="soft" x="{left + 34}" y="{top + 2 * LINE + 3}">{_safe(which)}</text>'
        + _count(block, left + WIDTH - PAD, top + LINE + 3)
    )
    return [frame, *inner], height


def _box(block: dict[str, Any], left: float, top: float, width: float) -> tuple[list[str], float]:
    colour = _COLOURS.get(block["kind"], "#8a8f98")
    lines: list[str] = block["lines"]
    if block["kind"] in ("norm", "ids", "output"):  # one line says it all
        lines, title = [], "  ".join([block["title"], *lines])
    else:
        title = block["title"]
    height = 2 * PAD + LINE * (1 + len(lines)) - 4
    parts = [
        f'<rect class="box" x="{left}" y="{top}" width="{width}" height="{height}" rx="7" stroke="{colour}"/>'
        f'<rect x="{left}" y="{top}" width="5" height="{height}" rx="2.5" fill="{colour}"/>'
        f'<text x="{left + 14}" y="{top + PAD + 11}" font-weight="600">{_safe(title)}</text>'
        + _count(block, left + width - PAD, top + PAD + 11)
    ]
    for number, line in enumerate(lines, 1):
        parts.append(f'<text class="soft" x="{left + 14}" y="{top + PAD + 11 + LINE * number}">{_safe(line)}</text>')
    return parts, height


def _count(block: dict[str, Any], right: float, y: float) -> str:
    if not block["parameters"]:
        return ""
    return f'<text class="soft" x="{right}" y="{y}" text-anchor="end">{short(block["parameters"])}</text>'


def _arrow(x: float, top: float, bottom: float) -> str:
    return f'<path class="line" d="M{x} {top} V{bottom - 1}" marker-end="url(#arrow)"/>'


def _residual(left: float, top: float, bottom: float) -> str:
    return f'<path class="line" d="M{left + 20} {top} H{left - 16} V{bottom} H{left + 18}" marker-end="url(#arrow)"/>'


def short(number: float) -> str:
    """A count in at most four signs, such as 28.3M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:,.0f}"


def _safe(text: str) -> str:
    return escape(text, {'"': "&quot;"})
