"""The anatomy of a model as one HTML page: self-contained, no script, nothing fetched, right in dark and light."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from tsumugu import __version__
from tsumugu.anatomy.charts import bars, histogram, lines
from tsumugu.anatomy.diagram import draw, short
from tsumugu.anatomy.overlap import in_words as overlap_in_words

Rows = list[tuple[str, str]]

_JAPANESE = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_SHOWN = 400


def render(anatomy: Mapping[str, Any]) -> str:
    """The page of an anatomy, as `describe` gives it or as it was read back from anatomy.json."""
    algorithm, parameters = anatomy["algorithm"], anatomy["parameters"]
    blocks = algorithm.get("blocks")
    hyper = anatomy["hyperparameters"]
    data = anatomy.get("distribution")
    return fill(
        "page.html",
        a=anatomy,
        written_by=anatomy["written_by"],
        tiles=list(_tiles(anatomy)),
        diagram=Markup(draw(blocks, label=f"Architecture of {anatomy['model']['name']}")) if blocks else None,
        algorithm=_algorithm(anatomy),
        tokenizer=_tokenizer(algorithm.get("tokenizer")),
        parameters=_parameters(parameters),
        parameter_charts=list(_parameter_charts(parameters)),
        hyperparameters=flat(hyper.get("architecture", {})),
        training=flat(hyper.get("training", {})),
        environment=flat(hyper.get("environment", {})),
        data_facts=_data_facts(data) if data else [],
        data_charts=list(_data_charts(data)) if data else [],
        data_tables=list(_data_tables(data)) if data else [],
        evaluation=flat(anatomy.get("evaluation", {})),
    )


def fill(template: str, **values: Any) -> str:
    """A template of this room, which lies in frame.html, filled in; every value is escaped unless it is `Markup`."""
    room = files("tsumugu.anatomy")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: room.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
    )
    style = Markup(room.joinpath("style.css").read_text("utf-8"))
    helpers = {"number": number, "real": real, "rounding": _rounding, "lang": language, "style": style}
    about = {"written_by": f"tsumugu {__version__}", **helpers, **values}
    return environment.get_template(template).render(about)


def language(value: Any) -> Markup:
    """An attribute that has a text with Japanese in it set as Japanese."""
    return Markup(' lang="ja"') if _JAPANESE.search(str(value)) else Markup("")


def number(value: Any) -> str:
    """A whole number with commas; nothing for nothing."""
    return f"{value:,}" if isinstance(value, int) else "" if value is None or value == "" else str(value)


def real(value: Any) -> str:
    """A number in four digits."""
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def tint(share: float) -> str:
    """A ground for words: of the page's colours for what speaks for (above 0) and against, the stronger the further."""
    name = "--plus" if share > 0 else "--minus"
    return f"rgba(var({name}), {0.85 * min(abs(share), 1.0):.3f})"


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"


def flat(values: Any, prefix: str = "") -> Rows:
    """Nested values as rows of dotted keys and texts."""
    if isinstance(values, Mapping):
        rows = [row for key, value in values.items() for row in flat(value, f"{prefix}.{key}" if prefix else str(key))]
        return rows or ([(prefix, "none")] if prefix else [])
    if isinstance(values, list) and any(isinstance(each, Mapping | list) for each in values):
        return [row for i, each in enumerate(values[:20]) for row in flat(each, f"{prefix}[{i}]")]
    text = ", ".join(map(str, values)) if isinstance(values, list | tuple) else _plain(values)
    return [(prefix, text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")]


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,g}" if isinstance(value, float) else str(value)


def _tiles(anatomy: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    config = anatomy["hyperparameters"].get("architecture", {})
    parameters = anatomy["parameters"]
    yield short(parameters["total"]), "parameters"
    yield size(parameters["bytes"]), f"in {anatomy['model']['format']}"
    if anatomy["algorithm"].get("family"):
        yield str(anatomy["algorithm"]["family"]), "family"
    for key, name in (
        ("num_layers", "layers"),
        ("hidden_size", "wide"),
        ("num_heads", "attention heads"),
        ("max_positions", "tokens at once"),
        ("vocab_size", "tokens in the vocabulary"),
    ):
        if isinstance(config.get(key), int):
            yield f"{config[key]:,}", name


def _algorithm(anatomy: Mapping[str, Any]) -> Rows:
    algorithm, model = anatomy["algorithm"], anatomy["model"]
    rows = [
        ("family", algorithm.get("family")),
        ("class on the hub", algorithm.get("architecture")),
        ("predicts", algorithm.get("predicts")),
        ("objective", algorithm.get("objective")),
        ("source", model.get("source")),
        ("revision", model.get("revision")),
        ("licence", model.get("licence")),
        ("not loaded because", algorithm.get("problem")),
    ]
    return [(key, str(value)) for key, value in rows if value]


def _tokenizer(about: Mapping[str, Any] | None) -> Rows:
    if not about:
        return []
    special = ", ".join(f"{token} ({role.removesuffix('_token')})" for role, token in about["special_tokens"].items())
    rows = [
        ("algorithm", about["algorithm"]),
        ("vocabulary", f"{about['vocabulary']:,} tokens"),
        ("merges", None if about["merges"] is None else f"{about['merges']:,}"),
        ("normaliser", ", ".join(about["normalizer"]) or "none"),
        ("pre-tokeniser", ", ".join(about["pre_tokenizer"]) or "none"),
        ("special tokens", special),
        ("longest text", None if about["max_length"] is None else f"{about['max_length']:,} tokens"),
        ("chat template", "yes" if about["chat_template"] else "no"),
    ]
    return [(key, value) for key, value in rows if value]


def _parameters(about: Mapping[str, Any]) -> Rows:
    shared = ", ".join(f"{name} is {other}" for name, other in about["shared"].items()) or "none"
    rows = [
        ("in all", f"{about['total']:,}"),
        ("trainable", f"{about['trainable']:,}"),
        ("in the file", f"{about['in_file']:,} in {about['tensors_in_file']:,} tensors"),
        ("bytes", f"{about['bytes']:,}"),
        ("shared", shared),
    ]
    for key, names in about["fit"].items():
        rows.append((key.replace("_", " "), f"{len(names)}: {', '.join(names[:6])}{', …' if len(names) > 6 else ''}"))
    return rows


def _parameter_charts(about: Mapping[str, Any]) -> Iterator[tuple[str, Markup, str]]:
    parts = {each["part"]: each["numel"] for each in about["by_part"]}
    yield "Numbers by part", Markup(bars(parts, label="Parameters by part", unit="numbers")), ""
    stored = {each["part"]: each["bytes"] for each in about["by_part"]}
    if any(each["type"] not in ("F32", "F16", "BF16", "F64") for each in about["by_type"]):
        yield "Bytes by part", Markup(bars(stored, label="Bytes by part", unit="bytes")), ""
    norms: dict[str, list[tuple[float, float]]] = {}
    ranks: dict[str, list[tuple[float, float]]] = {}
    for place, each in enumerate(about["by_layer"]):
        for part, norm in each["parts"].items():
            norms.setdefault(part, []).append((place, norm))
    layers = {each["layer"]: place for place, each in enumerate(about["by_layer"])}
    for tensor in about["tensors"]:
        if tensor.get("spectrum") and tensor.get("layer") in layers:
            share = tensor["spectrum"]["effective_rank"] / min(tensor["shape"])
            ranks.setdefault(_kind(tensor["name"]), []).append((layers[tensor["layer"]], share))
    if len(layers) > 1:
        svg = lines(norms, label="Norms by layer", x="layer", y="Frobenius norm", marks=len(layers) < 40)
        yield "Norms by layer", Markup(svg), ""
        if ranks:
            svg = lines(
                dict(list(ranks.items())[:8]), label="Effective rank by layer", x="layer", y="share of full rank"
            )
            text = "e to the entropy of the singular values, over their number: 1 where all are equal."
            yield "Effective rank by layer", Markup(svg), text
    spectra = {
        str(each["name"]): [(i / 32, value) for i, value in enumerate(each["spectrum"]["points"]) if value > 0]
        for each in sorted(about["tensors"], key=lambda each: -each["numel"])[:4]
        if each.get("spectrum")
    }
    if spectra:
        svg = lines(
            spectra, label="Singular values", x="place, from the largest on", y="singular value", logarithmic="y"
        )
        yield "Singular values of the largest matrices", Markup(svg), ""
    errors = [each for each in about["tensors"] if each.get("rounding") and each["rounding"]["expected"] is not None]
    if errors:
        kinds: dict[str, list[float]] = {}
        for each in errors:
            kind = f"{each['storage']} {_kind(each['name'])}"
            told = each["rounding"]["measured"]
            kinds.setdefault(kind, []).append(100 * (each["rounding"]["expected"] if told is None else told))
        worst = {kind: max(values) for kind, values in sorted(kinds.items(), key=lambda pair: -max(pair[1]))[:9]}
        measured = any(each["rounding"]["measured"] is not None for each in errors)
        text = (
            "Root mean square of the error over that of the exact values, measured; the worst tensor of each kind."
            if measured
            else "What a grid of the blocks' own steps loses on average; the worst tensor of each kind."
        )
        svg = bars(worst, label="Rounding error", unit="% of the values' root mean square")
        yield "Error of quantisation", Markup(svg), text


def _kind(name: str) -> str:
    """What a tensor of a layer is called without its layer."""
    return re.sub(r"^.*?\.\d+\.", "", name).removesuffix(".weight")


def _rounding(tensor: Mapping[str, Any]) -> str:
    about = tensor.get("rounding")
    if not about:
        return ""
    told = about["expected"] if about["measured"] is None else about["measured"]
    return "" if told is None else f"{100 * told:.2f} %"


def _data_facts(data: Mapping[str, Any]) -> Rows:
    vocabulary, duplicates = data["vocabulary"], data["duplicates"]
    used = vocabulary["used"] / max(vocabulary["size"], 1)
    near = (
        f"; {duplicates['near']:,} of {duplicates['near_of']:,} are nearly like an earlier one"
        if "near" in duplicates
        else f"; near ones left out: {duplicates['near_left_out']}"
    )
    rows = [
        ("documents", f"{data['documents']:,}{'' if data['whole'] else ' (the first ones of more)'}"),
        ("tokens", f"{data['tokens']:,}"),
        ("characters for a token", f"{data['characters'] / max(data['tokens'], 1):.2f}"),
        ("tokens of a document", f"{data['lengths']['mean']:,.1f} on average, {_quantiles(data)}"),
        (
            "vocabulary used",
            f"{vocabulary['used']:,} of {vocabulary['size']:,} ({used:.1%}), {vocabulary['once']:,} once",
        ),
        ("entropy of tokens", f"{vocabulary['entropy_bits']:.2f} bits"),
        ("duplicates", f"{duplicates['exact']:,} of {duplicates['of']:,} equal an earlier one{near}"),
    ]
    rows += [(f"overlap with {each['name']}", overlap_in_words(each)) for each in data.get("overlap", [])]
    if "languages_left_out" in data:
        rows.append(("languages", f"left out: {data['languages_left_out']}"))
    return rows


def _quantiles(data: Mapping[str, Any]) -> str:
    found = data["lengths"]["quantiles"]
    return f"half of them up to {found['50']:,.0f}, 95 % up to {found['95']:,.0f}, the longest {found['100']:,.0f}"


def _data_charts(data: Mapping[str, Any]) -> Iterator[tuple[str, Markup, str]]:
    about = data["lengths"]["histogram"]
    svg = histogram(about["edges"], about["counts"], label="Lengths of documents", x="tokens", y="documents")
    yield "Lengths of documents", Markup(svg), ""
    zipf = data["zipf"]
    points = [(float(a), float(b)) for a, b in zip(zipf["ranks"], zipf["counts"], strict=True)]
    svg = lines({"tokens": points}, label="Zipf curve", x="rank", y="count", logarithmic="xy", marks=True)
    slope = zipf["slope"]
    text = "" if slope is None else f"Slope {slope:.2f} between ranks 10 and 1,000; natural text is near -1."
    yield "Tokens by rank (Zipf)", Markup(svg), text
    for key, title in (("languages", "Languages"), ("labels", "Labels")):
        if data.get(key):
            svg = bars(dict(list(data[key].items())[:12]), label=title, unit="documents")
            yield title, Markup(svg), ""


def _data_tables(data: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    yield "Commonest tokens", [(each["token"], each["count"]) for each in data["top_tokens"][:12]]
    for n, found in data["top_ngrams"].items():
        if found:
            yield f"Commonest runs of {n} words", [(each["text"], each["count"]) for each in found[:12]]
