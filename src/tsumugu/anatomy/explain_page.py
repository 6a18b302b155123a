"""Explanations as a page, as one SVG line, and as text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from markupsafe import Markup

from tsumugu.anatomy import edits as turning
from tsumugu.anatomy import influence
from tsumugu.anatomy.candidates import marked
from tsumugu.anatomy.charts import COLOURS, GRID, chart, lines
from tsumugu.anatomy.contributions import Contributions
from tsumugu.anatomy.edits import Counterfactuals
from tsumugu.anatomy.explain import COMPLETE, Explanation, in_words
from tsumugu.anatomy.influence import Neighbours
from tsumugu.anatomy.insides import rollout
from tsumugu.anatomy.page import fill, real, tint
from tsumugu.anatomy.targets import Question
from tsumugu.core.errors import one_line

Word = tuple[str, float, bool]

_MOST_TOKENS = 60  # of an attention matrix that can still be read


def render(
    explanation: Explanation,
    question: Question,
    *,
    model: str,
    other: str | None = None,
    attention: torch.Tensor | None = None,
    lens: Sequence[Sequence[dict[str, Any]]] = (),
    near: Neighbours | None = None,
    edits: Counterfactuals | None = None,
    parts: Contributions | None = None,
    token: str = "",
) -> str:
    """One HTML page that needs nothing else.

    Args:
        model: its name.
        other: the second text of a pair, where it is not among the tokens.
        attention: `[layers, heads, queries, keys]`.
        lens: what `insides.lens` gives.
        near: the labelled examples that pull the answer.
        edits: what turns the answer.
        parts: of a decoder, what they add to the score of `token`.
    """
    words = in_words(explanation, question)
    most = max((abs(value) for _, value, fixed in words if not fixed), default=0.0) or 1.0
    curves = explanation.checks
    return fill(
        "explain.html",
        e=explanation,
        model=model,
        other=other,
        said="".join(text for text, _, _ in words),
        words=[(_spaced(words, i), value, fixed, tint(value / most)) for i, (_, value, fixed) in enumerate(words)],
        bars=Markup(_bars(words)),
        facts=list(facts(explanation)),
        curves=Markup(_curves(curves)) if curves else None,
        checks=list(checks(explanation)),
        attention=[] if attention is None else list(_attention(attention, question)),
        lens=lens,
        near=near,
        edits=edits,
        edited=[] if edits is None else _edited(edits, question),
        edit_facts=None if edits is None else turning.facts(edits),
        parts=parts,
        token=token,
        part_chart=None if parts is None else Markup(_parts(parts)),
        near_facts=None if near is None else influence.facts(near),
        quoted=lambda text: one_line(text.replace(" ", "␣").replace("\n", "↵"), limit=40),
    )


def facts(explanation: Explanation) -> Iterator[tuple[str, str]]:
    """The numbers behind an explanation, in words."""
    yield "score", f"{explanation.value:.4f}, and {explanation.empty:.4f} with every token taken away"
    total = sum(explanation.attributions)
    if explanation.method in COMPLETE:
        yield "sum of attributions", f"{total:.4f}: misses the difference by {abs(explanation.missed):.1e}"
    else:
        yield "sum of attributions", f"{total:.4f}; by this method it need not be the difference"
    if any(explanation.set_aside):
        yield "set aside", f"{sum(explanation.set_aside):.4f} on special tokens, which are not counted"
    for key, value in explanation.settings.items():
        yield key, str(value)


def checks(explanation: Explanation) -> Iterator[tuple[str, str]]:
    """How an explanation stood its tests."""
    found = explanation.checks
    if not found:
        return
    yield (
        "deletion",
        f"{found['deletion']['area']:.4f} on average while tokens go, the most important first (low is good)",
    )
    yield "in random order", f"{found['random_order']['area']:.4f}"
    yield "insertion", f"{found['insertion']['area']:.4f} on average while tokens come (high is good)"
    correlation = found["rank_correlation_with_random_weights"]
    yield "with random weights", f"rank correlation {correlation:.2f} (near 0: it depends on what was learnt)"


def svg(explanation: Explanation, question: Question) -> str:
    """The text on coloured ground as one SVG drawing, wrapped at 100 columns."""
    words = in_words(explanation, question)
    most = max((abs(value) for _, value, fixed in words if not fixed), default=0.0) or 1.0
    unit, line = 8.6, 30
    x, y, parts = 0.0, 0, []
    for index, (_, value, fixed) in enumerate(words):
        text = _spaced(words, index)
        width = unit * sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)
        if x + width > 100 * unit and x:
            x, y = 0.0, y + line
        colour = (47, 143, 91) if value > 0 else (201, 75, 60)
        alpha = 0.0 if fixed else 0.85 * min(abs(value) / most, 1.0)
        shown = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
        box = f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="24" rx="4" fill="rgb{colour}"'
        parts.append(
            f'{box} fill-opacity="{alpha:.3f}"/><text x="{x:.1f}" y="{y + 17}" textLength="{max(width, 1):.1f}" '
            f'lengthAdjust="spacingAndGlyphs" xml:space="preserve" opacity="{0.5 if fixed else 1}">{shown}</text>'
        )
        x += width
    fonts = "'Noto Sans Mono CJK JP', 'IPAGothic', ui-monospace, monospace"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -8 {100 * unit + 16:.0f} {y + 40}" font-size="14" '
        f'font-family="{fonts}"><rect x="-8" y="-8" width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _spaced(words: Sequence[Word], index: int) -> str:
    """A word with the space behind it, where it is one of Latin letters and the next one stands apart."""
    text, _, fixed = words[index]
    following = words[index + 1][0] if index + 1 < len(words) else ""
    wide = any(unicodedata.east_asian_width(each) in "WF" for each in text[-1:] + following[:1])
    apart = not (
        text.endswith((" ", "\n")) or following.startswith((" ", "\n")) or wide or following in tuple(".,;:!?)")
    )
    return text + (" " if (apart or fixed) and following else "")


def _bars(words: Sequence[Word]) -> str:
    free = [(text, value) for text, value, fixed in words if not fixed]
    best = sorted(range(len(free)), key=lambda i: -abs(free[i][1]))[:18]
    shown = [free[i] for i in sorted(best)]

    def draw(axes: Any) -> None:
        places = range(len(shown))
        colours = [COLOURS[2] if value > 0 else COLOURS[1] for _, value in shown]
        axes.barh(places, [value for _, value in shown], color=colours, height=0.66)
        axes.set_yticks(list(places), [one_line(text, limit=24) or " " for text, _ in shown], parse_math=False)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color=GRID)

    return chart(draw, label="Attributions", size=(5.2, 0.6 + 0.24 * max(len(shown), 2)))


def _curves(found: dict[str, Any]) -> str:
    names = {
        "deletion": "taken away, most important first",
        "random_order": "taken away at random",
        "insertion": "put in",
    }
    series = {
        names[key]: [(float(i), score) for i, score in enumerate(found[key]["scores"])] for key in names if key in found
    }
    return lines(series, label="Deletion and insertion", x="tokens", y="score", marks=True)


def _attention(weights: torch.Tensor, question: Question) -> Iterator[tuple[str, Markup, str]]:
    """The rollout, and each layer's mean over heads."""
    if weights.shape[-1] > _MOST_TOKENS:
        weights = weights[..., :_MOST_TOKENS, :_MOST_TOKENS]
    names = [one_line(token, limit=14) for token in question.tokens[: weights.shape[-1]]]
    for group in question.groups:
        if len(group) == 1 and group[0] < len(names):
            names[group[0]] = one_line(question.shown(group), limit=14) or names[group[0]]
    flow = rollout(weights)
    text = "How much of each token (across) is in each (down) at the end, by attention and the residual paths."
    yield "Rollout", Markup(_matrix(flow, names, "Rollout")), text
    text = "The mean over heads; rows sum up to 1."
    for layer in sorted({0, len(weights) // 2, len(weights) - 1}):
        yield f"Layer {layer + 1}", Markup(_matrix(weights[layer].mean(0), names, f"Layer {layer + 1}")), text


def _edited(found: Counterfactuals, question: Question) -> list[tuple[str, float, list[tuple[str, str]]]]:
    """Each edited text: the answer, its probability, and what was kept, taken away and put in."""
    shown = found.found or ([] if found.closest is None else [found.closest])
    return [(each.label, each.chance, marked(question.texts, each.edits)) for each in shown]


def _parts(found: Contributions) -> str:
    """Layers down; across the heads and, apart from them, the feed-forward."""
    gap = float("nan")
    table = [[*heads, gap, feed] for heads, feed in zip(found.heads, found.feed_forward, strict=True)]
    most = max(abs(each) for row in table for each in row if each == each) or 1.0
    count = len(found.heads[0])

    def draw(axes: Any) -> None:
        axes.grid(visible=False)
        image = axes.imshow(table, cmap="RdYlGn", vmin=-most, vmax=most, aspect="auto")
        axes.figure.colorbar(image, ax=axes, shrink=0.8)
        axes.set_xticks([*range(count), count + 1], [*map(str, range(1, count + 1)), "feed-forward"], fontsize=7)
        axes.set_yticks(range(len(table)), [str(each + 1) for each in range(len(table))], fontsize=7)
        axes.set_xlabel("head")
        axes.set_ylabel("layer")

    return chart(draw, label="What each part adds", size=(min(2.4 + 0.3 * count, 9), min(1.2 + 0.17 * len(table), 9)))


def _matrix(values: torch.Tensor, names: Sequence[str], label: str) -> str:
    def draw(axes: Any) -> None:
        axes.grid(visible=False)
        axes.imshow(values.numpy(), cmap="viridis", vmin=0, aspect="auto")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)

    side = min(1.4 + 0.19 * len(names), 9.0)
    return chart(draw, label=label, size=(side + 0.6, side))


def in_text(explanation: Explanation, question: Question) -> Iterator[str]:
    """A line for each word, with a bar."""
    words = [each for each in in_words(explanation, question) if not each[2]]
    most = max((abs(value) for _, value, _ in words), default=0.0) or 1.0
    for text, value, _ in words:
        bar = "█" * round(20 * abs(value) / most)
        left, right = (bar, "") if value < 0 else ("", bar)
        yield f"{left:>20}│{right:<20} {real(round(value, 6)):>9}  {one_line(text, limit=40)}"
