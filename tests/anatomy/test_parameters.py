"""The figures of tensors, against plain numpy over the files."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors import safe_open
from safetensors.numpy import save_file

from tsumugu.anatomy.describe import describe, open_model
from tsumugu.anatomy.parameters import look_at
from tsumugu.checkpoints.load import open_checkpoint


def arrays(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path / "model.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


@pytest.mark.parametrize("kind", ["encoder_folder", "decoder_folder"])
def test_figures_are_those_of_numpy(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    found = describe(folder)["parameters"]
    plain = arrays(folder)
    assert found["in_file"] == sum(each.size for each in plain.values())
    assert found["bytes"] == sum(each.nbytes for each in plain.values())
    assert sum(each["numel"] for each in found["by_part"]) == found["in_file"]
    assert [each["name"] for each in found["tensors"]] == list(open_checkpoint(folder).tensors)
    for each in found["tensors"]:
        wide = plain[each["name"]].astype(np.float64)
        assert each["shape"] == wide.shape
        assert each["norm"] == pytest.approx(np.linalg.norm(wide), rel=1e-10)
        assert each["mean"] == pytest.approx(wide.mean(), rel=1e-9, abs=1e-12)
        assert each["std"] == pytest.approx(wide.std(), rel=1e-6, abs=1e-9)
        assert (each["low"], each["high"]) == (wide.min(), wide.max())
        assert each["ours"]
        if wide.ndim == 2:
            values = np.linalg.svd(wide, compute_uv=False)
            shares = values / values.sum()
            assert each["spectrum"]["largest"] == pytest.approx(values[0], rel=1e-9)
            assert each["spectrum"]["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-9)
            assert each["spectrum"]["effective_rank"] == pytest.approx(
                math.exp(-(shares * np.log(shares)).sum()), rel=1e-6
            )
            assert len(each["spectrum"]["points"]) == 33


def test_shared_weights_count_once(decoder_folder: Path, encoder_folder: Path) -> None:
    found = describe(decoder_folder, spectra=False)["parameters"]
    assert found["shared"] == {"head.weight": "embeddings.token.weight"}
    assert found["total"] == found["in_file"] == found["trainable"]
    parts = {each["part"]: each["numel"] for each in found["by_part"]}
    assert parts["embeddings"] == 400 * 48
    assert parts["attention"] == 2 * (48 * 48 * 2 + 48 * 24 * 2)
    assert parts["feed-forward"] == 2 * 3 * 48 * 64
    assert parts["norms"] == 5 * 48
    assert "head" not in parts
    encoder = describe(encoder_folder, spectra=False)["parameters"]
    assert {each["part"] for each in encoder["by_part"]} == {"embeddings", "attention", "feed-forward", "norms", "head"}


def test_odd_rows_and_numbers_are_found(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    table[[2, 5]] = 0
    table[7] = table[1]
    broken = np.array([1.0, np.nan, np.inf], np.float32)
    save_file(
        {"embed.weight": table, "b": broken, "n": np.arange(3), "flat": np.full(4, 2.0, np.float32)},
        tmp_path / "a.safetensors",
    )
    found = describe(tmp_path / "a.safetensors")
    by_name = {each["name"]: each for each in found["parameters"]["tensors"]}
    assert (by_name["embed.weight"]["zero_rows"], by_name["embed.weight"]["repeated_rows"]) == (2, 2)
    assert by_name["b"]["broken"] == 2
    assert (by_name["b"]["low"], by_name["b"]["norm"]) == (1.0, 1.0)
    assert not by_name["n"]["parameter"]
    assert found["parameters"]["in_file"] == 67
    assert sorted(found["parameters"]["notes"]) == [
        "b: 2 numbers are not finite",
        "embed.weight: 1 of 10 rows equal an earlier one",
        "embed.weight: 2 of 10 rows are 0 throughout",
        "flat: all numbers are 2",
    ]
    assert "no config.json" in found["algorithm"]["problem"]


def write_quantised(path: Path, exact: np.ndarray, kind: GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(path, "unknown")
    writer.add_tensor("w.weight", gguf.quants.quantize(exact, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_rounding_is_told_and_measured(name: str, tmp_path: Path) -> None:
    kind = GGMLQuantizationType[name]
    exact = np.random.default_rng(1).normal(size=(64, 256)).astype(np.float32)
    write_quantised(tmp_path / "q.gguf", exact, kind)
    entries = open_checkpoint(tmp_path / "q.gguf").tensors
    (found,) = look_at(entries, {}, exact={"w.weight": torch.from_numpy(exact)})
    decoded = gguf.quants.dequantize(gguf.quants.quantize(exact, kind), kind)
    actual = np.linalg.norm(decoded.astype(np.float64) - exact) / np.linalg.norm(exact.astype(np.float64))
    assert found.rounding is not None
    assert found.rounding.measured == pytest.approx(actual, rel=1e-9)
    assert found.rounding.expected == pytest.approx(actual, rel=0.12)
    assert found.rounding.bits == pytest.approx(8 * gguf.quants.quantize(exact, kind).nbytes / exact.size)


def test_exact_values_are_laid_beside_a_gguf_file(decoder_folder: Path, tmp_path: Path) -> None:
    import tsumugu as tg

    model, tokenizer = tg.load_model(decoder_folder), tg.load_tokenizer(decoder_folder)
    config = model.config.replace(hidden_size=64, intermediate_size=96, head_dim=16)
    wide = model.family.build(config, "causal-lm")
    torch.manual_seed(0)
    with torch.no_grad():
        for each in wide.parameters():
            each.normal_(std=0.1)
    tg.save_model(wide, tmp_path / "exact", tokenizer=tokenizer)
    tg.save_model(wide, tmp_path / "q.gguf", tokenizer=tokenizer, storage="Q8_0")
    found = describe(tmp_path / "q.gguf", exact=tmp_path / "exact", spectra=False)
    rounded = {each["name"]: each["rounding"] for each in found["parameters"]["tensors"] if "rounding" in each}
    assert len(rounded) == 1 + 2 * 7
    assert all(0.002 < each["measured"] < 0.008 for each in rounded.values())
    assert all(each["measured"] == pytest.approx(each["expected"], rel=0.1) for each in rounded.values())


def test_parts_of_a_family_that_is_not_known(tmp_path: Path) -> None:
    wanted = {
        "lm_head.weight": "head",
        "model.embed_tokens.weight": "embeddings",
        "model.layers.0.input_layernorm.weight": "norms",
        "model.layers.0.mlp.up.weight": "feed-forward",
        "model.layers.0.self_attn.q_proj.weight": "attention",
        "thing": "other",
    }
    save_file({name: np.ones((2, 2), np.float32) for name in wanted}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "strange", "hidden_size": 2}')
    found = describe(tmp_path)
    assert {each["name"]: each["part"] for each in found["parameters"]["tensors"]} == wanted
    assert found["hyperparameters"]["architecture"]["hidden_size"] == 2
    assert "no family loads model_type 'strange'" in found["algorithm"]["problem"]


@pytest.mark.weights
def test_smollm2(smollm2_path: Path) -> None:
    found = describe("smollm2", spectra=False)
    reader = gguf.GGUFReader(smollm2_path)
    assert found["parameters"]["total"] == sum(int(each.n_elements) for each in reader.tensors) == 134_515_008
    assert found["parameters"]["bytes"] == sum(int(each.n_bytes) for each in reader.tensors)
    by_name = {each["name"]: each for each in found["parameters"]["tensors"]}
    for tensor in reader.tensors[:4]:
        plain = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        assert by_name[tensor.name]["norm"] == pytest.approx(np.linalg.norm(plain), rel=1e-10)
    table = gguf.quants.dequantize(reader.tensors[0].data, reader.tensors[0].tensor_type)
    rows = np.ascontiguousarray(table).view(np.dtype((np.void, table.shape[1] * 4)))
    repeated = len(table) - len(np.unique(rows))
    assert by_name["token_embd.weight"]["repeated_rows"] == repeated
    assert found["algorithm"]["tokenizer"]["vocabulary"] == 49152


@pytest.mark.weights
def test_minilm(minilm_path: Path) -> None:
    found = describe("minilm", spectra=False)
    plain = arrays(minilm_path)
    assert found["parameters"]["total"] == sum(each.size for each in plain.values() if each.dtype.kind == "f")
    assert found["parameters"]["bytes"] == sum(each.nbytes for each in plain.values())
    assert found["algorithm"]["predicts"] == "one vector for a text"
    assert "Sentence-BERT" in found["algorithm"]["papers"][1]["citation"]


def test_every_family_is_drawn_and_cited() -> None:
    import dataclasses

    from tsumugu.anatomy.algorithm import describe_algorithm
    from tsumugu.anatomy.diagram import draw
    from tsumugu.core.registry import FAMILIES

    for name in FAMILIES:
        family = FAMILIES[name]
        known = {each.name for each in dataclasses.fields(family.config_class)}
        small = {"num_layers": 2, "num_decoder_layers": 2} if "num_decoder_layers" in known else {"num_layers": 2}
        config = family.config_class.from_dict({key: value for key, value in small.items() if key in known})
        for head in family.heads:
            with torch.device("meta"):
                model = family.build(config, head)
            found = describe_algorithm(model, None, model_type=None, pooled=False)
            counted = sum(block["parameters"] for block in found["blocks"])
            assert counted == model.num_parameters(), (name, head)
            assert found["papers"], name
            svg = draw(found["blocks"], label=name)
            assert svg.count("<text") >= len(found["blocks"])


def test_open_model_names_what_does_not_fit(decoder_folder: Path, tmp_path: Path) -> None:
    import json

    for each in decoder_folder.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert any(name.startswith("decoder.layers.2.") for name in open_model(tmp_path).fit["missing"])
