"""``tsumugu similarity``: how alike texts are in meaning."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated, Any

from cyclopts import Parameter

from tsumugu.cli.downloads import downloads
from tsumugu.cli.inputs import require_texts
from tsumugu.cli.options import Device, DType, Engine, Model, Quantize, Quiet, quantization


def similarity(
    text: str,
    other: str,
    /,
    *more: str,
    model: Model = "minilm",
    json: Annotated[bool, Parameter(negative="", help="As JSON Lines.")] = False,
    dtype: DType = "float32",
    device: Device = "cpu",
    engine: Engine = "auto",
    quantize: Quantize = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare TEXT with OTHER: a cosine between -1 and 1. With MORE texts, rank them all, the most alike first.

    Parameters
    ----------
    text
        What the others are compared with.
    other
        A text.
    more
        Further texts.
    """
    require_texts([text, other, *more], mend="give the text itself")
    from tsumugu.tasks.sentence_similarity import SentenceSimilarity

    with downloads(quiet=quiet) as watch:
        computing: Any = {"dtype": dtype, "device": device, "engine": engine, "quantize": quantization(quantize)}
        task = SentenceSimilarity.load(model or "minilm", progress=watch, **computing)
    for answer in task.rank(text, [other, *more]):
        if json:
            print(jsonlib.dumps({"text": answer["text"], "score": answer["score"]}, ensure_ascii=False))
        elif more:
            print(f"{answer['score']:7.4f}  {answer['text']}")
        else:
            print(f"{answer['score']:.4f}")
