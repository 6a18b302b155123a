"""The likelihood of texts, held to a softmax over all logits, window by window."""

from __future__ import annotations

import math
import pydoc_data.topics
from pathlib import Path

import pytest
import torch

import tsumugu as tg
from tsumugu.core.errors import InputError
from tsumugu.corpus.documents import Document
from tsumugu.evaluation.comparison import rank
from tsumugu.evaluation.evaluate import evaluate
from tsumugu.evaluation.likelihood import likelihoods
from tsumugu.evaluation.results import Settings, load

TOPIC = pydoc_data.topics.topics["assert"]


def plain(model, ids: list[int], size: int) -> float:
    """Each token from the window that is the first to hold it, by a softmax over all logits."""
    total, begin, done = 0.0, 0, 1
    while done < len(ids):
        window = ids[begin : begin + size]
        with torch.inference_mode():
            table = model(torch.tensor([window])).logits[0].double().log_softmax(-1)
        for at in range(len(window)):
            place = begin + at + 1
            if done <= place < len(ids):
                total -= float(table[at, ids[place]])
        done = min(begin + size + 1, len(ids))
        begin = done - 1 - size // 2
    return total


@pytest.mark.parametrize(("length", "size"), [(20, 96), (400, 96), (400, 16), (333, 7)])
def test_each_token_is_predicted_once(decoder_folder: Path, length: int, size: int) -> None:
    model, tokenizer = tg.load_model(decoder_folder), tg.load_tokenizer(decoder_folder)
    text = TOPIC[:length]
    (item,) = likelihoods(model, tokenizer, [Document(text, "a"), Document("", "b")], context=size)
    ids = [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    nats, tokens = item.prediction.answer
    assert tokens == len(ids) - 1
    assert item.reference == len(text)
    assert nats == pytest.approx(plain(model, ids, size), rel=1e-5)


def test_models_are_evaluated_on_raw_text(decoder_folder: Path, tmp_path: Path) -> None:
    lines = [line.replace("e", "ü") for line in TOPIC.splitlines() if line.strip()][:8]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n", "utf-8")
    options = {"model": str(decoder_folder), "task": "perplexity", "document": "line", "settings": Settings(50)}
    found = evaluate(tmp_path / "a.txt", **options)
    nats = sum(item.prediction.answer[0] for item in found.items)
    assert found.scores["bits_per_byte"] == pytest.approx(
        nats / sum(len(line.encode()) for line in lines) / math.log(2)
    )
    assert found.results.examples == len(lines)
    assert found.results.higher == {"bits_per_byte": False, "perplexity": False}
    found.save(tmp_path / "out")
    assert load(tmp_path / "out")[0].to_dict() == found.results.to_dict()
    again = rank([(found.results, found.items)] * 2)
    assert again.ranks[1].difference is not None
    assert again.ranks[1].difference.p == 1


def test_what_predicts_no_text(encoder_folder: Path, decoder_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = tg.load_model(encoder_folder), tg.load_tokenizer(encoder_folder)
    with pytest.raises(InputError, match="a model with head 'masked-lm' does not predict the next token"):
        next(likelihoods(model, tokenizer, [Document("a", "a")]))
    decoder, pieces = tg.load_model(decoder_folder), tg.load_tokenizer(decoder_folder)
    with pytest.raises(InputError, match="1 tokens are no context"):
        next(likelihoods(decoder, pieces, [Document("a", "a")], context=1))
    with pytest.raises(InputError, match="language modelling needs a model and raw text"):
        evaluate(tmp_path, baseline="majority", task="language-modeling")
