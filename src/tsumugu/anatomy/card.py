"""A model card for a folder: README.md with the YAML that the hub reads, and anatomy.json with everything in numbers.

Source: the hub's model card metadata, as `huggingface_hub.ModelCardData` and `EvalResult` write it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tsumugu.anatomy.describe import Anatomy, describe
from tsumugu.anatomy.diagram import short
from tsumugu.anatomy.page import flat, size
from tsumugu.checkpoints.atomic import new_file
from tsumugu.core.errors import InputError

CARD, ANATOMY = "README.md", "anatomy.json"

PIPELINE_TAGS = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "pretraining": "fill-mask",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "base": "feature-extraction",
    "encoder": "feature-extraction",
}
"""The hub's word for what a model with each head is used for; a family's that writes another text has none."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure of an evaluation.

    Attributes:
        task: the hub's word for the task, such as "text-classification".
        dataset: a name for people; `dataset_id`: the hub's, or any name of lower-case letters.
        split: of the dataset.
        metric: such as "accuracy"; `value`: what was measured.
    """

    task: str
    dataset: str
    metric: str
    value: float
    dataset_id: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class About:
    """What the files of a model do not say, for its card.

    Attributes:
        name: of the model; the folder's own when left out.
        licence: as the hub writes it, such as "apache-2.0".
        languages: ISO 639-1 codes; taken from the data's distribution when left out.
        base_model: what it was fine-tuned from.
        datasets: names of what it was trained on.
        tags: further words to find it by.
        results: figures of evaluations.
        notes: paragraphs on use and limits, in Markdown.
    """

    name: str | None = None
    licence: str | None = None
    languages: Sequence[str] = ()
    base_model: str | None = None
    datasets: Sequence[str] = ()
    tags: Sequence[str] = ()
    results: Sequence[Result] = ()
    notes: str | None = None


def write_card(
    folder: str | Path,
    about: About | None = None,
    *,
    anatomy: Anatomy | None = None,
    dataset: Mapping[str, Any] | None = None,
    distribution: Mapping[str, Any] | None = None,
    spectra: bool = False,
) -> Path:
    """Write README.md and anatomy.json into the folder of a model; each appears whole or not at all.

    The recipe, environment and log of the run that the folder lies in are found and told. Called at the end of a run.

    Args:
        folder: with config.json and weights.
        about: what the files do not say.
        anatomy: as `describe` gave it; made here when left out.
        dataset, distribution: sections of the anatomy on the data, where the caller knows them.
        spectra: find singular values too, which takes the longest.

    Returns:
        The path of README.md.

    Raises:
        CheckpointError: the folder holds no model, or cannot be written.
    """
    folder = Path(folder)
    about = about or About()
    if not folder.is_dir():
        raise InputError("a card is written into the folder of a model", where=str(folder))
    found = dict(anatomy) if anatomy is not None else describe(folder, spectra=spectra)
    if about.name is not None:
        found["model"] = {**found["model"], "name": about.name}
    if about.licence is not None:
        found["model"] = {**found["model"], "licence": about.licence}
    if dataset is not None:
        found["dataset"] = dict(dataset)
    if distribution is not None:
        found["distribution"] = dict(distribution)
    if about.results:
        results = [{key: each for key, each in vars(result).items() if each is not None} for result in about.results]
        found["evaluation"] = {**found.get("evaluation", {}), "results": results}
    text = str(card_of(found, about))
    with new_file(folder / ANATOMY) as partial:
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    with new_file(folder / CARD) as partial:
        partial.write_text(text, "utf-8")
    return folder / CARD


def card_of(anatomy: Mapping[str, Any], about: About) -> ModelCard:
    """The card of an anatomy, not yet written."""
    algorithm = anatomy["algorithm"]
    languages = list(about.languages) or _languages(anatomy.get("distribution") or {})
    results = [_result(each) for each in about.results]
    name = str(anatomy["model"]["name"])
    licence = anatomy["model"].get("licence")
    data = ModelCardData(
        language=languages or None,
        license=str(licence).lower() if licence else None,
        library_name="tsumugu",
        pipeline_tag=_pipeline_tag(algorithm),
        base_model=about.base_model,
        datasets=list(about.datasets) or None,
        tags=[*dict.fromkeys([str(algorithm["family"]), *about.tags])] if algorithm.get("family") else list(about.tags),
        metrics=[*dict.fromkeys(each.metric for each in about.results)] or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(anatomy, about, name)}")


def _pipeline_tag(algorithm: Mapping[str, Any]) -> str | None:
    if algorithm.get("predicts") == "one vector for a text":
        return "sentence-similarity"
    return PIPELINE_TAGS.get(str(algorithm.get("head")))


def _result(each: Result) -> EvalResult:
    return EvalResult(
        task_type=each.task,
        dataset_type=each.dataset_id or each.dataset.lower().replace(" ", "-"),
        dataset_name=each.dataset,
        dataset_split=each.split,
        metric_type=each.metric,
        metric_value=each.value,
    )


def _languages(distribution: Mapping[str, Any]) -> list[str]:
    """The languages of at least a twentieth of the documents."""
    found = distribution.get("languages", {})
    total = sum(found.values())
    return [code for code, count in found.items() if 20 * count >= total and code != "und"]


def _body(anatomy: Mapping[str, Any], about: About, name: str) -> str:
    algorithm, parameters = anatomy["algorithm"], anatomy["parameters"]
    hyper = anatomy["hyperparameters"]
    parts = [f"# {name}", _summary(anatomy)]
    if about.notes:
        parts.append(about.notes.strip())
    parts.append("## Use\n\n```python\nimport tsumugu as tg\n\n" + _use(algorithm) + "\n```")
    parts.append("## Algorithm\n\n" + _table(_algorithm(algorithm)))
    if algorithm.get("papers"):
        parts.append("\n".join(f"- [{each['citation']}]({each['url']})" for each in algorithm["papers"]))
    rows = [(each["part"], f"{each['numel']:,}", size(each["bytes"])) for each in parameters["by_part"]]
    parts.append("## Parameters\n\n" + _table(rows, ("part", "numbers", "stored")))
    if parameters["notes"]:
        parts.append("\n".join(f"- {_cell(each)}" for each in parameters["notes"][:10]))
    parts.append("## Hyperparameters\n\n" + _table(flat(hyper.get("architecture", {}))))
    if hyper.get("training"):
        parts.append("### Training\n\n" + _table(flat(hyper["training"])))
    parts.append("## Data\n\n" + _data(anatomy))
    if anatomy.get("evaluation"):
        parts.append("## Evaluation\n\n" + _table(flat(anatomy["evaluation"])))
    if algorithm.get("papers"):
        parts.append("## Citation\n\n```bibtex\n" + "\n".join(each["bibtex"] for each in algorithm["papers"]) + "\n```")
    return "\n\n".join(parts) + "\n"


def _summary(anatomy: Mapping[str, Any]) -> str:
    algorithm, parameters = anatomy["algorithm"], anatomy["parameters"]
    if not algorithm.get("family"):
        return f"A model of {short(parameters['total'])} parameters."
    return f"A {algorithm['family']} model ({algorithm['summary']}) of {short(parameters['total'])} parameters."


def _use(algorithm: Mapping[str, Any]) -> str:
    if _pipeline_tag(algorithm) == "sentence-similarity":
        return 'vectors = tg.pipeline("sentence-embedding", "FOLDER").encode(["…"])'
    if algorithm.get("head") == "causal-lm":
        return 'write = tg.pipeline("text-generation", "FOLDER")\nwrite("…")'
    return (
        'model, tokenizer = tg.load_model("FOLDER"), tg.load_tokenizer("FOLDER")\n'
        'output = model(**tokenizer(["…"], return_tensors="pt"))'
    )


def _algorithm(algorithm: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(key, algorithm.get(key)) for key in ("family", "architecture", "predicts", "objective")]
    tokenizer = algorithm.get("tokenizer")
    if tokenizer:
        rows.append(("tokenizer", f"{tokenizer['algorithm']}, {tokenizer['vocabulary']:,} tokens"))
    return [(key, str(value)) for key, value in rows if value]


def _data(anatomy: Mapping[str, Any]) -> str:
    sources = (anatomy.get("dataset") or {}).get("sources", [])
    found = anatomy.get("distribution")
    parts = []
    if sources:
        rows = [(str(e.get("name")), _count(e.get("documents")), _count(e.get("tokens"))) for e in sources]
        parts.append(_table(rows, ("source", "documents", "tokens")))
    if found:
        lengths = found["lengths"]
        shown = [
            ("documents", f"{found['documents']:,}"),
            ("tokens", f"{found['tokens']:,}"),
            ("tokens of a document", f"{lengths['mean']:,.1f} on average, {lengths['quantiles']['95']:,.0f} at 95 %"),
            ("vocabulary used", f"{found['vocabulary']['used']:,} of {found['vocabulary']['size']:,}"),
            ("documents that equal an earlier one", f"{found['duplicates']['exact']:,}"),
        ]
        shown += [(f"language {key}", f"{value:,}") for key, value in list(found.get("languages", {}).items())[:5]]
        shown += [(f"label {key}", f"{value:,}") for key, value in list(found.get("labels", {}).items())[:20]]
        parts.append(_table(shown))
    return "\n\n".join(parts) or "The files do not say what it was trained on."


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = ("", "")) -> str:
    width = len(head)
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * width}"]
    return "\n".join([*lines, *(f"| {' | '.join(_cell(each) for each in row)} |" for row in rows)])


def _cell(text: str) -> str:
    """A text that cannot leave its cell, nor become a tag."""
    for sign, shown in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("\n", " "), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(sign, shown)
    return text
