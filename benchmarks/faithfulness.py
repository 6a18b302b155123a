"""How true explanations are: completeness, deletion, random weights, and captum by hand on the reference model.

Prints a row of Markdown for each model and method; figures are means over a few texts, but for the two differences,
which are the largest ones.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, ShapleyValueSampling
from torch.nn.functional import normalize
from transformers import BertModel, LlamaForCausalLM

import tsumugu as tg
from benchmarks.harness import Report
from tsumugu.anatomy.explain import Explanation, explain
from tsumugu.anatomy.targets import Question, ask
from tsumugu.engines.torch import load_model
from tsumugu.hub.resolve import pull

PAIRS = (
    ("How do I get to the railway station?", "Which way is it to the train stop?"),
    ("A man is playing a guitar on the street.", "Someone makes music outside."),
    ("The bank raised its interest rates again.", "Borrowing money became more expensive."),
    ("Two dogs run through the snow.", "Animals are playing in winter."),
    ("She forgot her umbrella at the office.", "The rain had stopped by noon."),
)
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of one hundred",
    "The opposite of hot is",
    "My mother's sister is my",
    "Monday, Tuesday, Wednesday,",
)
COLUMNS = (
    "model",
    "method",
    "misses the difference by",
    "deletion",
    "random order",
    "insertion",
    "with random weights",
    "differs from captum by hand by",
)

Score = Callable[[torch.Tensor], torch.Tensor]


def run(report: Report) -> None:
    """Print the table."""
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|{'--:|' * (len(COLUMNS) - 2)}", flush=True)
    few = 1 if report.smoke else None
    for name, methods, cases in (
        ("minilm", ("integrated-gradients", "shapley", "occlusion", "input-x-gradient"), _likeness(few)),
        ("smollm2", ("shapley", "occlusion", "input-x-gradient"), _next_token(few)),
    ):
        if report.smoke and name == "smollm2":
            continue
        asked = list(cases)
        for method in methods:
            rows = [_judged(*case, method) for case in asked]
            _print(name, method, rows)


def _judged(model: Any, question: Question, theirs: Score, table: Any, method: str) -> tuple[Explanation, float]:
    """An explanation with its checks, and its largest difference from captum's on the reference model."""
    found = explain(model, question, method=method, check=True)
    pad = model.config.pad_token_id
    with torch.no_grad():
        inputs = table(question.ids).clone()
        away = torch.zeros_like(inputs) if pad is None else table(torch.full_like(question.ids, pad))
    empty = torch.where(question.fixed[None, :, None], inputs, away)
    free = ~question.fixed
    features = torch.where(free, free.long().cumsum(0), 0)[None, :, None]
    features = features - features.min()
    common: dict[str, Any] = {"baselines": empty, "feature_mask": features, "perturbations_per_eval": 16}
    match method:
        case "integrated-gradients":
            steps = found.settings["steps"]
            way = IntegratedGradients(theirs)
            wanted = way.attribute(inputs, baselines=empty, n_steps=steps, internal_batch_size=16)
        case "input-x-gradient":
            wanted = InputXGradient(theirs).attribute(inputs.requires_grad_())
        case "occlusion":
            with torch.no_grad():
                wanted = FeatureAblation(theirs).attribute(inputs, **common) / inputs.shape[-1]
        case _:
            torch.manual_seed(found.settings["seed"])
            with torch.no_grad():
                samples = found.settings["samples"]
                wanted = ShapleyValueSampling(theirs).attribute(inputs, n_samples=samples, **common) / inputs.shape[-1]
    difference = wanted.detach().sum(-1)[0].double() - torch.tensor(found.attributions)
    return found, float(difference[free].abs().max())


def _print(name: str, method: str, rows: list[tuple[Explanation, float]]) -> None:
    found = [each for each, _ in rows]
    complete = method in ("integrated-gradients", "shapley")
    missed = f"{max(abs(each.missed) for each in found):.1e}" if complete else "need not sum"
    areas = [
        statistics.mean(each.checks[key]["area"] for each in found) for key in ("deletion", "random_order", "insertion")
    ]
    alike = statistics.mean(abs(each.checks["rank_correlation_with_random_weights"]) for each in found)
    figures = [missed, *(f"{each:.3f}" for each in areas), f"{alike:.2f}", f"{max(far for _, far in rows):.1e}"]
    print(f"| {name} | {method} | {' | '.join(figures)} |", flush=True)


def _likeness(few: int | None) -> Iterator[tuple[Any, Question, Score, Any]]:
    """The cosine of two texts' vectors, as a function of the first."""
    path = pull("minilm").path
    model, tokenizer = load_model(path), tg.load_tokenizer(path)
    theirs = BertModel.from_pretrained(path, attn_implementation="eager").eval()
    for one, other in PAIRS[:few]:
        question = ask("sts", model, tokenizer, one, other)
        with torch.no_grad():
            fixed = normalize(theirs(torch.tensor([tokenizer.encode(other)])).last_hidden_state.mean(1), dim=-1)

        def score(embeddings: torch.Tensor, fixed: torch.Tensor = fixed) -> torch.Tensor:
            vector = normalize(theirs(inputs_embeds=embeddings).last_hidden_state.mean(1), dim=-1)
            return (vector * fixed).sum(-1)

        yield model, question, score, theirs.embeddings.word_embeddings


def _next_token(few: int | None) -> Iterator[tuple[Any, Question, Score, Any]]:
    """The score of the likeliest next token."""
    path = pull("smollm2").path
    model, tokenizer = load_model(path), tg.load_tokenizer(path)
    with tempfile.TemporaryDirectory() as folder:
        tg.save_model(model, Path(folder), tokenizer=tokenizer)
        theirs = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for prompt in PROMPTS[:few]:
        question = ask("text-generation", model, tokenizer, prompt)

        def score(embeddings: torch.Tensor, token: int = question.token_id or 0) -> torch.Tensor:
            found: torch.Tensor = theirs(inputs_embeds=embeddings).logits[:, -1, token]
            return found

        yield model, question, score, theirs.model.embed_tokens
