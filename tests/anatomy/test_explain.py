"""Attributions against captum used by hand on the reference library's models; completeness, faithfulness, pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients
from tests.models.references import spread
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import tsumugu as tg
from tsumugu.anatomy.explain import explain, in_words
from tsumugu.anatomy.explain_page import render, svg
from tsumugu.anatomy.insides import attentions, lens, rollout
from tsumugu.anatomy.targets import ask
from tsumugu.cli import main
from tsumugu.core.errors import InputError
from tsumugu.core.registry import FAMILIES
from tsumugu.engines.torch import load_model

TEXT = "the value of an expression is an object"
LABELS = ("bad", "good", "neither")


@pytest.fixture(scope="module")
def heads(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small BERT with a head, and its tokenizer, in a folder."""
    tokenizer = tg.load_tokenizer(encoder_folder)
    family = FAMILIES["bert"]
    made: dict[str, Path] = {}

    def folder(head: str) -> Path:
        if head not in made:
            sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64, "max_positions": 64}
            config = family.config_class(vocab_size=len(tokenizer), labels=LABELS, **sizes)
            model = family.build(config, head).eval()
            spread(model, 5)
            made[head] = tmp_path_factory.mktemp(head)
            tg.save_model(model, made[head], tokenizer=tokenizer)
        return made[head]

    return folder


@pytest.mark.parametrize("method", ["integrated-gradients", "input-x-gradient", "occlusion"])
def test_equal_to_captum_by_hand_on_the_reference_model(method: str, heads: Callable[[str], Path]) -> None:
    folder = heads("sequence-classification")
    model, tokenizer = load_model(folder), tg.load_tokenizer(folder)
    question = ask("text-classification", model, tokenizer, TEXT, target="good")
    found = explain(model, question, method=method, steps=64)
    theirs = BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.tensor([tokenizer.encode(TEXT)])
    table = theirs.bert.embeddings.word_embeddings
    away = torch.full_like(ids, 0)
    away[0, 0], away[0, -1] = ids[0, 0], ids[0, -1]
    inputs, empty = table(ids).detach(), table(away).detach()

    def score(embeddings: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = theirs(inputs_embeds=embeddings).logits[:, 1]
        return given

    if method == "integrated-gradients":
        wanted = IntegratedGradients(score).attribute(inputs, baselines=empty, n_steps=found.settings["steps"])
    elif method == "input-x-gradient":
        wanted = InputXGradient(score).attribute(inputs.requires_grad_())
    else:
        places = torch.arange(ids.shape[1])[None, :, None]
        wanted = FeatureAblation(score).attribute(inputs, baselines=empty, feature_mask=places) / inputs.shape[-1]
    total = wanted.sum(-1)[0].detach()
    assert torch.allclose(torch.tensor(found.attributions, dtype=torch.float32)[1:-1], total[1:-1], atol=1e-4)
    both = [share + aside for share, aside in zip(found.attributions, found.set_aside, strict=True)]
    assert torch.allclose(torch.tensor(both, dtype=torch.float32), total, atol=1e-4)
    assert found.attributions[0] == found.attributions[-1] == 0
    assert any(found.set_aside) == (method == "input-x-gradient")
    assert found.value == pytest.approx(float(score(inputs).detach()), abs=1e-5)


def questions(heads: Callable[[str], Path], decoder: Path) -> Iterator[tuple[Any, Any]]:
    for head, texts in (
        ("sequence-classification", [TEXT]),
        ("sequence-classification", [TEXT, "a class"]),
        ("token-classification", [TEXT]),
        ("question-answering", ["what is it?", TEXT]),
        ("masked-lm", ["the value of [MASK] expression"]),
        ("base", [TEXT, "a class is an object"]),
    ):
        model, tokenizer = load_model(heads(head)), tg.load_tokenizer(heads(head))
        yield model, ask(head, model, tokenizer, *texts)
    model = load_model(decoder)
    yield model, ask("text-generation", model, tg.load_tokenizer(decoder), TEXT)


@pytest.mark.parametrize("method", ["integrated-gradients", "shapley"])
def test_attributions_sum_up(method: str, heads: Callable[[str], Path], decoder_folder: Path) -> None:
    for model, question in questions(heads, decoder_folder):
        found = explain(model, question, method=method, samples=5)
        assert abs(found.missed) <= 1e-3, question.task
        assert len(found.tokens) == len(found.attributions) == question.ids.shape[1]
        assert all(value == 0 for value, fixed in zip(found.attributions, found.fixed, strict=True) if fixed)
        assert sum(value for _, value, _ in in_words(found, question)) == pytest.approx(sum(found.attributions))


def test_targets_can_be_chosen(heads: Callable[[str], Path], decoder_folder: Path) -> None:
    folder = heads("token-classification")
    model, tokenizer = load_model(folder), tg.load_tokenizer(folder)
    question = ask("ner", model, tokenizer, TEXT, target="bad@expression")
    assert question.answer.startswith("bad for ex")
    place = next(i for i, span in enumerate(question.spans) if span is not None and span[0] == TEXT.find("expression"))
    with torch.no_grad():
        output = model(question.ids)
    assert float(question.score(output)) == float(output.logits[0, place, 0])
    for wrong in ("worse", "bad@nowhere"):
        with pytest.raises(InputError):
            ask("ner", model, tokenizer, TEXT, target=wrong)
    writer = load_model(decoder_folder)
    with pytest.raises(InputError, match="tokens, not one"):
        ask("text-generation", writer, tg.load_tokenizer(decoder_folder), TEXT, target="the value of")
    with pytest.raises(InputError, match="can read"):
        ask("ner", model, tokenizer, TEXT * 20)
    with pytest.raises(InputError, match="no text"):
        ask("ner", model, tokenizer, " ")


def test_bytes_of_one_character_are_one_word(decoder_folder: Path) -> None:
    model, tokenizer = load_model(decoder_folder), tg.load_tokenizer(decoder_folder)
    question = ask("text-generation", model, tokenizer, "猫 is a cat")
    words = [text for text, _, _ in in_words(explain(model, question, method="occlusion"), question)]
    assert words[0] == "猫"
    assert "".join(words) == "猫 is a cat"


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_attention_is_that_of_the_reference(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    if kind == "bert":
        theirs: Any = BertForSequenceClassification(
            BertConfig(**sizes, intermediate_size=64, attn_implementation="eager")
        )
    else:
        theirs = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_layer=2, n_head=4, n_embd=32, attn_implementation="eager"))
    theirs.eval().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    ids = torch.randint(99, (1, 7))
    with torch.no_grad():
        wanted = torch.cat(theirs(ids, output_attentions=True).attentions)
    found = attentions(model, ids)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5
    flow = rollout(found)
    mixed = [0.5 * layer.mean(0) + 0.5 * torch.eye(7) for layer in wanted]
    assert torch.allclose(flow, mixed[1] @ mixed[0], atol=1e-5)
    assert torch.allclose(flow.sum(-1), torch.ones(7), atol=1e-5)


def test_grouped_heads_and_rotation_too(decoder_folder: Path) -> None:
    model = load_model(decoder_folder)
    ids = torch.tensor([[3, 9, 27, 81]])
    found = attentions(model, ids)
    assert found.shape == (2, 4, 4, 4)
    assert torch.equal(found.triu(1), torch.zeros_like(found))
    layer = model.decoder.layers[0]
    states = layer.attention_norm(model.embeddings(ids))
    value = layer.attention._heads(layer.attention.value(states)).repeat_interleave(2, dim=1)
    by_hand = layer.attention.output((found[:1] @ value).transpose(1, 2).reshape(1, 4, -1))
    rotation = model.rotary(torch.arange(4)[None], torch.float32)
    from tsumugu.blocks.mask import causal_mask

    assert torch.allclose(by_hand, layer.attention(states, mask=causal_mask(4), rotation=rotation), atol=1e-5)


def test_the_lens_ends_with_the_answer(decoder_folder: Path) -> None:
    model, tokenizer = load_model(decoder_folder), tg.load_tokenizer(decoder_folder)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    found = lens(model, tokenizer, ids, top=3)
    assert len(found) == 3
    with torch.no_grad():
        wanted = model(ids).logits[0, -1].softmax(-1).topk(3)
    assert [each["id"] for each in found[-1]] == wanted.indices.tolist()
    assert [each["chance"] for each in found[-1]] == pytest.approx(wanted.values.tolist())


def test_curves_begin_and_end_where_they_must(heads: Callable[[str], Path]) -> None:
    model, tokenizer = load_model(heads("base")), tg.load_tokenizer(heads("base"))
    question = ask("sts", model, tokenizer, TEXT, "a class is an object")
    found = explain(model, question, check=True)
    gone, come = found.checks["deletion"]["scores"], found.checks["insertion"]["scores"]
    assert gone[0] == pytest.approx(found.value, abs=1e-5)
    assert gone[-1] == pytest.approx(found.empty, abs=1e-5)
    assert come[0] == pytest.approx(found.empty, abs=1e-5)
    assert come[-1] == pytest.approx(found.value, abs=1e-5)
    assert len(gone) == 1 + sum(not each for each in found.fixed)


@pytest.mark.weights
def test_explanations_of_minilm_are_faithful(minilm_path: Path) -> None:
    model, tokenizer = load_model(minilm_path), tg.load_tokenizer(minilm_path)
    question = ask(
        "sts", model, tokenizer, "How do I get to the railway station?", "Which way is it to the train stop?"
    )
    found = explain(model, question, check=True)
    assert abs(found.missed) <= 1e-3
    checks = found.checks
    assert checks["deletion"]["area"] < checks["random_order"]["area"] < checks["insertion"]["area"]
    assert abs(checks["rank_correlation_with_random_weights"]) < 0.7
    words = {text: value for text, value, _ in in_words(found, question)}
    assert max(words, key=lambda word: words[word]) == "railway"


def test_the_page_asks_for_nothing(decoder_folder: Path, tmp_path: Path, visit: Callable[[Path], Any]) -> None:
    model, tokenizer = load_model(decoder_folder), tg.load_tokenizer(decoder_folder)
    text = "<script>x</script> 猫 & cat"
    question = ask("text-generation", model, tokenizer, text)
    found = explain(model, question, method="occlusion", check=True)
    weights = attentions(model, question.ids)
    page = tmp_path / "page.html"
    page.write_text(
        render(found, question, model="m", attention=weights, lens=lens(model, tokenizer, question.ids)), "utf-8"
    )
    seen = visit(page)
    assert seen.requests == []
    assert seen.complaints == []
    assert "<script" not in seen.dom
    assert '<section id="lens">' in seen.dom
    drawing = tmp_path / "page.svg"
    drawing.write_text(svg(found, question), "utf-8")
    seen = visit(drawing)
    assert seen.requests == []
    assert "猫" in seen.dom
    assert "parsererror" not in seen.dom


def test_the_command_line(heads: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ran(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main(["explain", *arguments])
        printed = capsys.readouterr()
        assert left.value.code == code, printed.err
        return printed.err if code else printed.out

    folder = str(heads("base"))
    found = json.loads(ran("sts", TEXT, "a class", "-m", folder, "--json", "--method", "shapley"))
    assert found["method"] == "shapley"
    assert abs(found["missed"]) < 1e-3
    assert "expression" in ran("sts", TEXT, "a class", "-m", folder)
    page, drawing = tmp_path / "x.html", tmp_path / "x.svg"
    ran("sts", TEXT, "a class", "-m", folder, "--html", str(page), "--svg", str(drawing))
    assert page.is_file()
    assert drawing.is_file()
    for wrong in (
        ["sts", TEXT, "-m", folder],
        ["sts", TEXT, TEXT, TEXT, "-m", folder],
        ["sts", TEXT, "a", "-m", folder, "--html", "x.pdf"],
        ["text-generation", TEXT, "-m", folder],
    ):
        assert ran(*wrong, code=2).count("\n") == 1
