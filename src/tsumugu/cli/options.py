"""Options that several verbs share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from tsumugu.core.errors import InputError

Device = Annotated[str, Parameter(help="Where to compute: cpu, cuda, cuda:1, mps.")]
DType = Annotated[
    Literal["float32", "bfloat16", "float16", "float64", "auto"],
    Parameter(help="Type of the weights; auto keeps the checkpoint's own."),
]
Engine = Annotated[
    Literal["auto", "torch", "onnx", "native"],
    Parameter(help="What computes: native and onnx on a CPU, torch anywhere; auto takes the quickest that can."),
]
Quantize = Annotated[
    Literal["auto", "none", "int8", "int4"],
    Parameter(help="Weights on a compiled engine; auto: as few bits as a quantised checkpoint has, else whole."),
]
KVCache = Annotated[
    Literal["float32", "int8"],
    Parameter(help="Keys and values of what a decoder has read; int8, on native: a quarter of the memory."),
]
Model = Annotated[
    str | None,
    Parameter(
        ("--model", "-m"), help="A folder, a file, org/name[@revision], pypi:dist, or a short name such as smollm2."
    ),
]
Adapter = Annotated[
    str | None,
    Parameter(help="An adapter's folder, in PEFT's layout; --model may be one too, and brings its own model."),
]
Quiet = Annotated[bool, Parameter(("--quiet", "-q"), negative="", help="No progress, no summary.")]


Words = Annotated[list[str] | None, Parameter(negative="")]
Switch = Annotated[bool, Parameter(negative="")]


@Parameter(name="*", group=Group("Task", sort_key=5))
@dataclass(kw_only=True)
class TaskFlags:
    """What single tasks ask for; each refuses what it does not know."""

    targets: Annotated[Words, Parameter(help="fill-mask: choose among these words.")] = None
    pooling: Annotated[str | None, Parameter(help="Vectors: mean, cls, max or last, not the checkpoint's own.")] = None
    candidate_labels: Annotated[
        Words, Parameter(("--label", "-l"), help="zero-shot-classification: choose among these; may be repeated.")
    ] = None
    hypothesis_template: Annotated[
        str | None, Parameter(help="zero-shot-classification: the sentence about a label, with {} for it.")
    ] = None
    multi_label: Annotated[Switch, Parameter(help="zero-shot-classification: judge each label by itself.")] = False
    function_to_apply: Annotated[
        str | None, Parameter(help="text-classification: sigmoid, softmax or none, for the scores.")
    ] = None
    aggregation_strategy: Annotated[
        str | None,
        Parameter(("--aggregation", "-a"), help="token-classification: none, simple, first, average or max."),
    ] = None
    ignore_labels: Annotated[Words, Parameter(help="token-classification: leave these out, instead of O.")] = None
    stride: Annotated[int | None, Parameter(help="token-classification: tokens that pieces share.")] = None
    max_answer_len: Annotated[int | None, Parameter(help="question-answering: tokens of an answer at most.")] = None
    doc_stride: Annotated[int | None, Parameter(help="question-answering: tokens that pieces share.")] = None
    handle_impossible_answer: Annotated[
        Switch, Parameter("--no-answer", help="question-answering: there may be no answer.")
    ] = False
    num_sentences: Annotated[int | None, Parameter(help="extractive-summarization: how many.")] = None
    method: Annotated[str | None, Parameter(help="extractive-summarization: lexrank or lead.")] = None
    candidates: Annotated[int | None, Parameter(help="semantic-search: how many the reranker reads.")] = None
    prefix: Annotated[str | None, Parameter(help="Encoder-decoders: put in front of the text.")] = None
    max_length: Annotated[int | None, Parameter(help="Encoder-decoders: as --max-new-tokens, plus 1.")] = None
    min_length: Annotated[int | None, Parameter(help="Encoder-decoders: as --min-new-tokens, plus 1.")] = None

    def chosen(self) -> dict[str, Any]:
        """Only what was asked for."""
        return _given(self)


@Parameter(name="*", group=Group("Prompts", sort_key=7))
@dataclass(kw_only=True)
class PromptFlags:
    """How a task is put to a model that only writes text."""

    examples: Annotated[Path | None, Parameter(help="A file of labelled data that the prompt shows.")] = None
    shots: Annotated[int | None, Parameter(help="How many of them; all when left out.")] = None
    choose: Annotated[
        Literal["first", "similar", "random"] | None, Parameter(help="Which of them; similar: most like each row.")
    ] = None
    embedder: Annotated[str | None, Parameter(help="The encoder that says how like they are; minilm.")] = None
    template: Annotated[Path | None, Parameter(help="A Jinja template, or a folder of them, in place of ours.")] = None
    language: Annotated[Literal["en", "ja"] | None, Parameter(help="Of the prompt.")] = None
    chat: Annotated[Switch, Parameter(help="Ask in the model's chat format.")] = False
    labels: Annotated[
        Words, Parameter(help="The labels, with commas between them; LABEL=WORD says the word for it in the prompt.")
    ] = None
    calibration: Annotated[
        Literal["none", "contextual", "pmi"] | None,
        Parameter(("--calibration", "--calibrate"), help="Even out what the model likes to say in any case."),
    ] = None
    votes: Annotated[
        int | None, Parameter(("--votes", "--vote"), help="Draw so many answers, take what most agree on.")
    ] = None

    def chosen(self) -> dict[str, Any]:
        """Only what was asked for."""
        options = _given(self)
        for name in {"examples", "template"} & options.keys():
            if not options[name].exists():
                raise InputError("there is no such file", where=f"--{name} {options[name]}")
            options[name] = str(options[name])
        if "labels" in options:
            parts = [each.partition("=") for one in options["labels"] for each in one.split(",")]
            words = {label.strip(): word.strip() or label.strip() for label, _, word in parts}
            options["labels"] = words if any(equals for _, equals, _ in parts) else list(words)
        return options


@Parameter(name="*", group=Group("Generation", sort_key=10))
@dataclass(kw_only=True)
class GenerationFlags:
    """How text is written; greedy unless a flag of drawing is given."""

    max_new_tokens: Annotated[int | None, Parameter(("--max-new-tokens", "-n"), help="Tokens to write at most.")] = None
    min_new_tokens: Annotated[int | None, Parameter(help="No end before so many.")] = None
    greedy: Annotated[bool, Parameter(negative="", help="Always the likeliest token.")] = False
    temperature: Annotated[float | None, Parameter(help="Draw; above 1 more varied, below 1 safer.")] = None
    top_k: Annotated[int | None, Parameter(help="Draw among the k likeliest; of labels or words: show k.")] = None
    top_p: Annotated[float | None, Parameter(help="Draw among the likeliest with this probability together.")] = None
    min_p: Annotated[float | None, Parameter(help="Draw among those at least this fraction as likely.")] = None
    repetition_penalty: Annotated[float | None, Parameter(help="Above 1 discourages tokens already there.")] = None
    frequency_penalty: Annotated[float | None, Parameter(help="Taken off for each time a token was written.")] = None
    presence_penalty: Annotated[float | None, Parameter(help="Taken off once a token was written.")] = None
    no_repeat_ngram_size: Annotated[int | None, Parameter(help="No run of so many tokens comes twice.")] = None
    seed: Annotated[int | None, Parameter(help="Of the draws: the same seed, the same text.")] = None
    num_beams: Annotated[int | None, Parameter(help="Beam search with so many beams.")] = None
    length_penalty: Annotated[float | None, Parameter(help="Exponent on the length in a beam's score.")] = None
    num_return_sequences: Annotated[int | None, Parameter(help="Texts for each prompt.")] = None
    stop: Annotated[list[str] | None, Parameter(negative="", help="Text that ends the text; may be repeated.")] = None
    prompt_lookup: Annotated[
        int | None, Parameter(help="Guess so many tokens at once where the text repeats itself: the same text, sooner.")
    ] = None
    draft: Annotated[str | None, Parameter(help="A smaller model that guesses tokens: the same text, sooner.")] = None
    draft_tokens: Annotated[int | None, Parameter(help="Tokens that the draft guesses at once.")] = None
    truncation: Annotated[bool, Parameter(negative="", help="Drop the beginning of a prompt that is too long.")] = False
    choices: Annotated[Words, Parameter("--choice", help="The text is one of these; may be repeated.")] = None
    regex: Annotated[str | None, Parameter(help="The whole text matches this regular expression.")] = None
    json_schema: Annotated[Path | None, Parameter(help="The text is JSON that fits the schema in this file.")] = None

    def chosen(self) -> dict[str, Any]:
        """Only what was asked for."""
        options = _given(self)
        if options.pop("greedy", False):
            options["do_sample"] = False
        if "stop" in options:
            options["stop_strings"] = tuple(options.pop("stop"))
        if "choices" in options:
            options["choices"] = tuple(options["choices"])
        if "json_schema" in options:
            options["json_schema"] = options["json_schema"].read_text("utf-8")
        return options


def quantization(word: str) -> str | None:
    """What `--quantize` means to `load_model`."""
    return None if word == "none" else word


def _given(flags: Any) -> dict[str, Any]:
    """The flags that were given, by name; 0 is a value."""
    values = {each.name: getattr(flags, each.name) for each in fields(flags)}
    return {name: value for name, value in values.items() if value is not None and value is not False}
