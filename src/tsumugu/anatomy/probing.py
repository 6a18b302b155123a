"""What each layer knows: a linear classifier on its states, beside one that had to learn labels drawn by chance.

A probe that also learns the chance labels says little about the layer: it is the probe that is strong. How much better
it does on the true ones is the selectivity. The labels of the control belong to a token, so that a token seen in
training has the same one in the test; a text is seen only once, so there the control is the share that guessing finds.

Sources: Alain and Bengio 2017, "Understanding intermediate layers using linear classifier probes"; Hewitt and Liang
2019, "Designing and Interpreting Probes with Control Tasks", sections 2 and 3.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup

from tsumugu.anatomy.charts import COLOURS, chart
from tsumugu.anatomy.influence import grouped
from tsumugu.anatomy.page import fill
from tsumugu.anatomy.pictures import picture
from tsumugu.blocks.heads import pool
from tsumugu.core.errors import InputError, MissingExtraError
from tsumugu.core.pooling import PoolingMode
from tsumugu.data.labelled.examples import Examples, SpanExample
from tsumugu.models.base import Model
from tsumugu.text.tokenizer import Tokenizer

KINDS = ("text-classification", "pair-classification", "token-classification")
MOST_TOKENS = 20_000
"""Tokens that probes of tokens learn from, and as many that they are tested on."""
LEAST = 5
"""Texts or tokens that probes are tested on."""


@dataclass(frozen=True)
class Depth:
    """A layer's probes, as shares of right answers on rows that they did not learn from."""

    layer: int
    accuracy: float
    control: float

    @property
    def selectivity(self) -> float:
        return self.accuracy - self.control


@dataclass(frozen=True)
class Probes:
    """All layers' probes; depth 0 is the embeddings.

    Attributes:
        unit: text or token.
        labels: that were told apart; `majority`: the share of the commonest in the test.
        train, test: how many texts or tokens.
    """

    unit: str
    labels: list[str]
    train: int
    test: int
    majority: float
    layers: list[Depth]

    @property
    def best(self) -> Depth:
        return max(self.layers, key=lambda each: each.accuracy)

    @property
    def margin(self) -> float:
        """Half of the widest 95 % interval of a share: of an accuracy of one half, by the normal approximation."""
        return float(1.96 * 0.5 / self.test**0.5)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        depths = [{**vars(each), "selectivity": each.selectivity} for each in self.layers]
        return {**vars(self), "margin": self.margin, "layers": depths}


@dataclass
class _Read:
    """States of each layer `[rows, layers, dim]`, the labels, and what makes two rows the same for the control."""

    states: npt.NDArray[np.float32]
    labels: npt.NDArray[np.str_]
    types: npt.NDArray[np.int64]


def probe(
    model: Model,
    tokenizer: Tokenizer,
    train: Examples,
    test: Examples | None = None,
    *,
    pooling: PoolingMode = "mean",
    regularisation: float = 1.0,
    seed: int = 0,
    watch: Callable[[str, int], None] | None = None,
) -> Probes:
    """A logistic regression on every layer's states, and one on labels drawn by chance.

    Args:
        model: an encoder or a decoder, in eval mode.
        train: labelled texts, pairs, or texts with spans; of the last, tokens are told apart, by the label of the span
            that they stand in or O.
        test: others that the probes are tested on; a fifth of `train` when left out.
        pooling: how a text's token states become one vector.
        regularisation: the inverse of the penalty's weight, as scikit-learn's C.
        seed: of the split and of the chance labels.
        watch: called with what goes on and how much of it is done.

    Raises:
        InputError: data of another kind, fewer than two labels, or too few rows to test on.
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise MissingExtraError("scikit-learn", extra="eval", purpose="probing") from None
    if train.kind not in KINDS:
        raise InputError(f"data for {train.kind} are not probed", where="data", mend=f"known: {', '.join(KINDS)}")
    chance = np.random.default_rng(seed)
    rows = list(train)
    others = None if test is None else list(test)
    if others is None:
        order = chance.permutation(len(rows))
        cut = max(len(rows) // 5, 1)
        rows, others = [rows[at] for at in order[cut:]], [rows[at] for at in order[:cut]]
    learnt = _read(model, tokenizer, rows, pooling, watch)
    asked = _read(model, tokenizer, others, pooling, watch)
    if len(asked.labels) < LEAST:
        said = f"{len(asked.labels)} to test are too few for a share of right answers; {LEAST} at least"
        raise InputError(said, where="data", mend="give more data, or others to test on")
    labels = sorted(set(learnt.labels.tolist()))
    if len(labels) < 2:
        raise InputError("the data to learn from have one label, and telling apart takes two", where="data")
    drawn = _chance_labels(learnt, asked, train.kind == "token-classification", chance)
    depths = []
    for layer in range(learnt.states.shape[1]):
        scores = []
        for given, wanted in ((learnt.labels, asked.labels), drawn):
            if len(set(given.tolist())) < 2:
                scores.append(float((wanted == given[0]).mean()))
                continue
            line = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=1000))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # 1000 steps are enough for what is asked here
                line.fit(learnt.states[:, layer], given)
            scores.append(float((line.predict(asked.states[:, layer]) == wanted).mean()))
        depths.append(Depth(layer, *scores))
        if watch is not None:
            watch("fitting layers", 1)
    return Probes(
        unit="token" if train.kind == "token-classification" else "text",
        labels=labels,
        train=len(learnt.labels),
        test=len(asked.labels),
        majority=Counter(asked.labels.tolist()).most_common(1)[0][1] / len(asked.labels),
        layers=depths,
    )


def _chance_labels(
    learnt: _Read, asked: _Read, by_type: bool, chance: np.random.Generator
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.str_]]:
    """Labels drawn as often as the true ones occur: one for each token of the vocabulary, or one for each text."""
    if not by_type:
        return chance.choice(learnt.labels, len(learnt.labels)), chance.choice(learnt.labels, len(asked.labels))
    types = np.unique(np.concatenate([learnt.types, asked.types]))
    drawn = chance.choice(learnt.labels, len(types))
    return drawn[np.searchsorted(types, learnt.types)], drawn[np.searchsorted(types, asked.types)]


@torch.inference_mode()
def _read(
    model: Model,
    tokenizer: Tokenizer,
    rows: Sequence[Any],
    pooling: PoolingMode,
    watch: Callable[[str, int], None] | None,
) -> _Read:
    """The states of all layers for texts or, where there are spans, for tokens."""
    spans = isinstance(rows[0], SpanExample)
    states: list[npt.NDArray[np.float32]] = []
    labels: list[str] = []
    types: list[int] = []
    for group, given in grouped(model, tokenizer, [each.texts for each in rows]):
        found = model(**given, output_hidden_states=True).hidden_states
        if found is None:
            raise InputError(f"models of the {model.family.name} family do not show their layers", where="model")
        if spans:
            for row, number in enumerate(group):
                kept, names, ids = _tokens(tokenizer, rows[number], int(given["attention_mask"][row].sum()))
                states.append(np.stack([each[row, kept].float().cpu().numpy() for each in found], 1))
                labels += names
                types += ids
            if len(labels) >= MOST_TOKENS:
                break
        else:
            pooled = [pool(each, given["attention_mask"], pooling).float().cpu().numpy() for each in found]
            states.append(np.stack(pooled, 1))
            labels += [str(rows[number].answer) for number in group]
            types += group
        if watch is not None:
            watch("reading", len(group))
    every = slice(MOST_TOKENS if spans else None)
    return _Read(np.concatenate(states)[every], np.array(labels)[every], np.array(types, np.int64)[every])


def _tokens(tokenizer: Tokenizer, row: SpanExample, length: int) -> tuple[list[int], list[str], list[int]]:
    """The places of a text's tokens, special ones left out, the label of each, and its id."""
    encoded = tokenizer([row.text], return_offsets_mapping=True).encodings[0]
    kept, names, ids = [], [], []
    for place, (start, end) in enumerate(encoded.offsets[:length]):
        if encoded.special_tokens_mask[place] or end <= start:
            continue
        inside = [each.label for each in row.spans if each.start < end and start < each.end]
        kept.append(place)
        names.append(inside[0] if inside else "O")
        ids.append(encoded.ids[place])
    return kept, names, ids


def in_text(found: Probes) -> Iterator[str]:
    """A line for each layer, with a bar."""
    labels = f"{len(found.labels)} labels" if len(found.labels) > 6 else ", ".join(found.labels)
    yield f"{found.train:,} {found.unit}s to learn from, {found.test:,} to test: {labels}"
    yield f"the commonest label alone: {found.majority:.1%}; shares are known to ±{found.margin:.1%}"
    yield f"{'layer':>5}  {'accuracy':>8}  {'control':>8}  selectivity"
    for each in found.layers:
        bar = "█" * round(20 * max(each.selectivity, 0.0))
        yield f"{each.layer:>5}  {each.accuracy:>8.1%}  {each.control:>8.1%}  {each.selectivity:>+10.1%}  {bar}"
    yield f"the most is known after layer {found.best.layer}"


def plot(found: Probes, target: Path, *, title: str = "") -> None:
    """Accuracy and control by layer, as PNG or SVG."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        _curve(axes, found)
        axes.set_title(title, loc="left", parse_math=False)

    picture(target, draw, (7, 4), title)


def _curve(axes: Any, found: Probes) -> None:
    """Accuracy with its 95 % interval, the control, and what the commonest label alone gives."""
    depths = np.array([each.layer for each in found.layers])
    shares = np.array([each.accuracy for each in found.layers])
    far = 1.96 * np.sqrt(shares * (1 - shares) / found.test)
    axes.fill_between(depths, shares - far, np.minimum(shares + far, 1.0), color=COLOURS[0], alpha=0.15, linewidth=0)
    axes.plot(depths, shares, marker="o", color=COLOURS[0], label="labels")
    axes.plot(depths, [each.control for each in found.layers], marker="s", color=COLOURS[1], label="chance labels")
    axes.axhline(found.majority, color=COLOURS[7], linestyle="--", label="the commonest label")
    axes.set_xlabel("layer (0: embeddings)")
    axes.set_ylabel("share of right answers")
    axes.set_ylim(0, 1.04)
    axes.legend(frameon=False)


def render(found: Probes, *, model: str, data: str) -> str:
    """One HTML page that needs nothing else: the curve, and a table of layers."""
    return fill(
        "probing.html",
        found=found,
        model=model,
        data=data,
        curve=Markup(chart(lambda axes: _curve(axes, found), label="Accuracy by layer", size=(6.4, 3.6))),
        percent=lambda share: f"{share:.1%}",
    )
