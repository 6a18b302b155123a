"""How true explanations are: completeness, deletion, random weights, and captum by hand on the reference model.

Prints three tables in Markdown. For each model and method: figures are means over a few texts, but for the two
differences, which are the largest ones. The check with random weights again on texts of 66 or 67 words, of which chance
makes smaller correlations. And for each task, how far the sums of the methods that promise to be complete miss.
"""

from __future__ import annotations

import math
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
from tsumugu.anatomy.explain import COMPLETE, METHODS, Explanation, explain
from tsumugu.anatomy.targets import Question, ask
from tsumugu.core.registry import TASKS as TASK_NAMES
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
LONG = (
    "The night train to the coast was late again, so the passengers sat in the small waiting room and talked "
    "about the weather, the price of bread and the old bridge that the council wants to close. When it came "
    "at last, nobody hurried. They folded their papers, picked up their bags and walked slowly along the wet "
    "platform to the last carriage, which is always warm.",
    "My grandmother kept bees behind the house, eleven white boxes in a row under the cherry trees. She never"
    " wore gloves, and she spoke to them while she worked, about the harvest, about letters from my uncle, "
    "about the cold spring of the year before. In autumn she filled jars until midnight, and the whole "
    "kitchen smelt of wax and smoke for weeks, even the towels.",
    "The new library opened on Monday with a long speech by the mayor and a short one by the architect. Most "
    "visitors went straight to the top floor, where a wide window looks over the river and the harbour. The "
    "shelves are still half empty, but the reading room is quiet, the chairs are good, and on the first "
    "evening every single place was taken by eight.",
)
OTHERS = (
    "Travellers wait at a station for a delayed train.",
    "A woman takes care of her hives and makes honey.",
    "A building for books welcomes its first readers.",
)
FEW = 5
"""Orders of Shapley values of long texts, and of the sums of tasks: any number sums up."""
TASKS: dict[str, tuple[str, ...]] = {
    "text-classification": ("A warm and funny story, a little too long.",),
    "nli": ("Two dogs run through the snow.", "Animals are outside."),
    "ner": ("Anna Berg moved from Oslo to Madrid in May.",),
    "question-answering": ("Who moved?", "Anna Berg moved from Oslo to Madrid in May."),
    "sts": PAIRS[0],
    "fill-mask": ("The capital of France is [MASK].",),
}
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
        ("minilm", METHODS, _likeness(few)),
        ("smollm2", ("shapley", "occlusion", "input-x-gradient"), _next_token(few)),
    ):
        if report.smoke and name == "smollm2":
            continue
        asked = list(cases)
        for method in methods:
            rows = [_judged(*case, method) for case in asked]
            _print(name, method, rows)
    _at_length(few)
    _completeness(few)


def _at_length(few: int | None) -> None:
    """Rank correlations with attributions of shuffled weights, where chance has little room."""
    print("\n| model | method | tokens | with random weights | by chance |\n|---|---|--:|--:|--:|", flush=True)
    minilm, smollm2 = pull("minilm").path, None if few else pull("smollm2").path
    for path, methods in (
        (minilm, METHODS),
        (smollm2, ("occlusion", "input-x-gradient")),
    ):
        if path is None:
            continue
        model, tokenizer = load_model(path), tg.load_tokenizer(path)
        task = "sts" if path == minilm else "text-generation"
        for method in methods:
            found = []
            for text, other in list(zip(LONG, OTHERS, strict=True))[:few]:
                question = ask(task, model, tokenizer, *((text, other) if task == "sts" else (text,)))
                found.append(explain(model, question, method=method, samples=FEW, check=True))
            counts = [each.fixed.count(False) for each in found]
            alike = statistics.mean(abs(each.checks["rank_correlation_with_random_weights"]) for each in found)
            # Of n ranks a correlation's deviation is 1 / sqrt(n - 1); its absolute value is 0.8 of that on average.
            chance = statistics.mean(0.8 / math.sqrt(count - 1) for count in counts)
            length = f"{min(counts)} to {max(counts)}"
            name = "minilm" if task == "sts" else "smollm2"
            print(f"| {name} | {method} | {length} | {alike:.2f} | {chance:.2f} |", flush=True)


def _completeness(few: int | None) -> None:
    """How far attributions miss the difference that they promise to sum up to; heads that minilm lacks are random."""
    print(f"\n| task | {' | '.join(COMPLETE)} |\n|---|--:|--:|", flush=True)
    path = pull("minilm").path
    for task, texts in list(TASKS.items())[:few]:
        torch.manual_seed(0)
        model, tokenizer = load_model(path, task=TASK_NAMES.canonical(task), strict=False), tg.load_tokenizer(path)
        _missed(task, model, ask(task, model, tokenizer, *texts))
    if few is None:
        path = pull("smollm2").path
        model = load_model(path)
        _missed("text-generation", model, ask("text-generation", model, tg.load_tokenizer(path), PROMPTS[0]))


def _missed(task: str, model: Any, question: Question) -> None:
    found = [explain(model, question, method=method, samples=FEW) for method in COMPLETE]
    print(f"| {task} | {' | '.join(f'{abs(each.missed):.1e}' for each in found)} |", flush=True)


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
    complete = method in COMPLETE
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
