"""What each part adds to a token's score: against the reference models taken apart by hand; the sum is the score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.references import spread
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import tsumugu as tg
from tsumugu.anatomy.contributions import contributions
from tsumugu.cli import main
from tsumugu.core.errors import InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.engines.torch import load_model


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_equal_to_the_reference_taken_apart(kind: str, tmp_path: Path) -> None:
    if kind == "gpt2":
        theirs: Any = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_layer=2, n_head=4, n_embd=32))
        spread(theirs, 3)
        base, blocks, last = theirs.transformer, theirs.transformer.h, theirs.transformer.ln_f
        outputs = [each.attn.c_proj for each in blocks]
        weights = [each.weight for each in outputs]
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        theirs = LlamaForCausalLM(LlamaConfig(vocab_size=99, intermediate_size=64, **sizes))
        spread(theirs, 3)
        base, blocks, last = theirs.model, theirs.model.layers, theirs.model.norm
        outputs = [each.self_attn.o_proj for each in blocks]
        weights = [each.weight.T for each in outputs]
    theirs.eval().save_pretrained(tmp_path)
    seen: dict[Any, torch.Tensor] = {}
    for index, (output, block) in enumerate(zip(outputs, blocks, strict=True)):
        output.register_forward_hook(lambda module, given, out, i=index: seen.__setitem__(("z", i), given[0][0, -1]))
        block.mlp.register_forward_hook(lambda module, given, out, i=index: seen.__setitem__(("mlp", i), out[0, -1]))
    last.register_forward_hook(lambda module, given, out: seen.__setitem__("end", given[0][0, -1]))
    blocks[0].register_forward_pre_hook(lambda module, given: seen.__setitem__("start", given[0][0, -1]))
    ids = torch.randint(99, (1, 9), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        logits = theirs(ids).logits[0, -1]
        token, other = logits.topk(2).indices.tolist()
        towards = theirs.lm_head.weight[token] - theirs.lm_head.weight[other]

        def added(states: torch.Tensor) -> float:
            end = seen["end"]
            if kind == "gpt2":
                states, spreading = states - states.mean(), end.std(correction=0) ** 2 + last.eps
            else:
                spreading = end.pow(2).mean() + last.variance_epsilon
            return float((states / spreading.sqrt() * last.weight) @ towards)

        heads = [
            [added(seen["z", i][8 * h : 8 * h + 8] @ weights[i][8 * h : 8 * h + 8]) for h in range(4)] for i in range(2)
        ]
        feed = [added(seen["mlp", i]) for i in range(2)]
        start = added(seen["start"])
        biases = [added(each.bias) if kind == "gpt2" else 0.0 for each in outputs]
    assert base is not None
    found = contributions(load_model(tmp_path), ids, token=token, against=other)
    assert found.score == pytest.approx(float(logits[token] - logits[other]), abs=1e-4)
    for ours, wanted in zip(found.heads, heads, strict=True):
        assert ours == pytest.approx(wanted, abs=1e-4)
    assert found.feed_forward == pytest.approx(feed, abs=1e-4)
    assert found.biases == pytest.approx(biases, abs=1e-4)
    assert found.embeddings == pytest.approx(start, abs=1e-4)
    assert abs(found.missed) <= 1e-4


@pytest.mark.parametrize("family", ["gpt2", "gpt3", "megatron", "llama", "gemma3"])
def test_the_sum_is_the_score(family: str) -> None:
    kind = FAMILIES[family]
    sizes: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_positions": 64}
    if family in ("llama", "gemma3"):
        sizes |= {"num_kv_heads": 2, "intermediate_size": 64}
    if family == "gemma3":
        sizes |= {"head_dim": 8}
    model = kind.build(kind.config_class(**sizes), "causal-lm").eval()
    spread(model, 8)
    ids = torch.tensor([[3, 9, 27, 81]])
    with torch.no_grad():
        logits = model(ids).logits[0]
    for place in (-1, 1):
        found = contributions(model, ids, token=5, place=place)
        assert found.score == pytest.approx(float(logits[place, 5]), abs=1e-4)
        assert abs(found.missed) <= 1e-4
        total = sum(value for _, value in found.ranked())
        assert total == pytest.approx(found.score, abs=1e-4)
    with pytest.raises(InputError, match="no sum"):
        contributions(kind.build(kind.config_class(**sizes), "base").eval(), ids, token=5)


@pytest.mark.weights
def test_the_sum_is_the_score_of_real_weights(smollm2_path: Path) -> None:
    model, tokenizer = load_model(smollm2_path), tg.load_tokenizer(smollm2_path)
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    paris, rome = (tokenizer.encode(each, add_special_tokens=False)[0] for each in (" Paris", " Rome"))
    found = contributions(model, ids, token=paris, against=rome)
    assert found.score > 0
    assert abs(found.missed) <= 1e-4


def test_the_command_line(
    decoder_folder: Path,
    encoder_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    visit: Callable[[Path], Any],
) -> None:
    def ran(*options: str, model: Path = decoder_folder, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main(["explain", "text-generation", "the value of 猫", "-m", str(model), "--method", "occlusion", *options])
        printed = capsys.readouterr()
        assert left.value.code == code, printed.err
        return printed.err if code else printed.out

    found = json.loads(ran("--parts", "--json"))["parts"]
    assert abs(found["missed"]) <= 1e-4
    assert len(found["heads"]) == 2
    assert "feed-forward" in ran("--parts")
    assert "above 'a'" in ran("--parts", "--against", "a")
    page = tmp_path / "page.html"
    ran("--html", str(page))
    seen = visit(page)
    assert seen.requests == seen.complaints == []
    assert '<section id="parts">' in seen.dom
    assert ran("--parts", "--against", "the value of", code=2).count("\n") == 1
    assert ran("--against", "a", code=2).count("\n") == 1
