"""Plans: the figures of papers reproduced, defaults that make sense, and every source of a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.training.published import FIGURES, ROUNDED, Figure, built, table

import tsumugu as tg
from tsumugu.core.errors import CheckpointError, ConfigError, UnknownNameError
from tsumugu.core.registry import FAMILIES
from tsumugu.training.conventions import Shape, chinchilla
from tsumugu.training.flops import count_flops
from tsumugu.training.hardware import find_device, measure_machine
from tsumugu.training.layouts import Wish
from tsumugu.training.outline import outline
from tsumugu.training.planning import MACHINE_MFU, lengths, make_plan
from tsumugu.training.scaling import LAWS

A100 = find_device("a100")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("figure", FIGURES, ids=lambda each: f"{each.model}, {each.what}, {each.source}")
def test_figures_of_papers(figure: Figure) -> None:
    assert abs(figure.difference) <= 0.03


def test_how_many_models_that_is() -> None:
    assert len({each.preset or each.model for each in FIGURES}) >= 18
    assert len({each.source for each in FIGURES}) >= 8


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_documentation_shows_these_figures(language: str) -> None:
    page = DOCS / language / "plan.md"
    if not page.exists():
        pytest.skip("there are no docs here")
    lines = page.read_text("utf-8").splitlines()
    assert [line for line in table() if line not in lines] == []


@pytest.mark.parametrize("name", ROUNDED)
def test_rows_that_go_by_other_numbers_of_parameters(name: str) -> None:
    """The table is reproduced by its own N; by the model's, which is smaller, it is missed by 4 to 6 %."""
    preset, published, billions, factor, millions = ROUNDED[name]
    assert factor * millions * 1e6 * billions * 1e9 == pytest.approx(published, rel=0.002)
    ours = factor * built(preset).num_parameters() * billions * 1e9
    assert -0.06 < ours / published - 1 < -0.04


@pytest.mark.parametrize(
    ("millions", "layers", "width", "inner", "heads", "size", "ratio"),
    [
        (73, 10, 640, 2560, 10, 64, 1.03),
        (305, 20, 1024, 4096, 16, 64, 1.10),
        (552, 24, 1280, 5120, 10, 128, 1.08),
        (1143, 26, 1792, 7168, 14, 128, 1.04),
        (1593, 28, 2048, 8192, 16, 128, 1.03),
        (6796, 40, 3584, 14336, 28, 128, 0.99),
    ],
)
def test_chinchillas_ratios(
    millions: int, layers: int, width: int, inner: int, heads: int, size: int, ratio: float
) -> None:
    """Hoffmann et al. 2022, table A4: their count over 6 N D; it comes out with neither embeddings nor logits."""
    shape = Shape(layers, width, heads * size, heads, inner, 2, 32000, millions * 1_000_000)
    without = chinchilla(shape, 2048) - 3 * 4 * width * 32000
    assert without / (6 * shape.parameters) == pytest.approx(ratio, abs=0.0085)


def test_scaling_laws() -> None:
    """For Gopher's budget approach 3 gives 40 billion parameters (Hoffmann et al. 2022, figure 4), and the replication
    about as many as Chinchilla has, at 20 tokens for each (Besiroglu et al. 2024, abstract and section 4)."""
    assert LAWS["hoffmann"].optimum(5.76e23)[0] == pytest.approx(40e9, rel=0.02)
    parameters, tokens = LAWS["besiroglu"].optimum(5.76e23)
    assert parameters == pytest.approx(70e9, rel=0.05)
    assert tokens / parameters == pytest.approx(20, rel=0.1)
    for law in LAWS.values():
        best, text = law.optimum(1e21)
        assert 6 * best * text == pytest.approx(1e21)
        assert law.tokens_for(best) == pytest.approx(text)
        losses = [law.loss(best * factor, text / factor) for factor in (0.9, 1.0, 1.1)]
        assert min(losses) == losses[1], "the optimum is one"


def test_a_plan() -> None:
    model = built("gpt3-175b")
    plan = make_plan(model, A100, name="x", devices=1024, batch=1536, tokens=300e9, mfu=0.4, price=2.5)
    assert plan.parameters == 174_604_259_328
    count = count_flops(model, 2048)
    assert plan.flops == pytest.approx(count.training().total / 2048 * 300e9)
    assert plan.seconds == pytest.approx(plan.flops / (1024 * 312e12 * 0.4))
    assert plan.price == pytest.approx(plan.seconds / 3600 * 1024 * 2.5)
    assert plan.steps == pytest.approx(300e9 / (1536 * 2048))
    assert (plan.best, plan.estimated, plan.enough) == (plan.candidates[0][0], False, 1024)
    cuts = [(each.layout.tensor, each.layout.pipeline) for each, _ in plan.candidates]
    assert len(set(cuts)) == len(cuts) == 5
    values = json.loads(json.dumps(plan.as_dict()))
    assert values["flops"]["per_token"] == pytest.approx(3.59e11 * 3, rel=0.01)
    assert values["time"]["days"] == pytest.approx(29.2, rel=0.01)
    assert values["layouts"][0]["reason"].startswith("fastest that fits")
    assert math.isfinite(values["budget"]["loss"]["hoffmann"])


def test_defaults() -> None:
    plan = make_plan(built("llama3.1-8b"), A100, name="x", devices=6)
    assert (plan.setup.context, plan.tokens) == (8192, 20 * plan.parameters)
    assert plan.setup.batch * 8192 >= 1 << 19
    assert plan.setup.batch % 6 == 0
    assert (plan.mfu, plan.estimated) == (plan.candidates[0][0].mfu, True)
    masked = make_plan(built("bert-base"), A100, name="x")
    assert (masked.setup.asked, masked.inference) == (0.15, None)
    assert "3n" not in masked.conventions
    written = make_plan(built("t5-base"), A100, name="x")
    assert (written.setup.context, written.setup.target) == (512, 114)
    assert [*written.conventions] == ["3n"]
    assert "megatron" not in plan.conventions


def test_lengths() -> None:
    assert lengths(built("roberta-base")) == (512, 0)
    assert lengths(built("t5-base"), 100, 7) == (100, 7)
    assert lengths(built("gpt2"), 5) == (5, 0)
    with pytest.raises(ConfigError, match="1025 tokens are more than the 1024"):
        lengths(built("gpt2"), 1025)
    with pytest.raises(ConfigError, match="513 tokens are more than the 512"):
        lengths(built("roberta-base"), 513)
    with pytest.raises(ConfigError, match="writes no second text"):
        lengths(built("gpt2"), 5, 5)


def test_too_few_devices() -> None:
    plan = make_plan(built("llama-65b"), find_device("v100"), name="x", devices=8, precision="fp16")
    assert plan.best is not None
    assert not plan.best.fits
    assert plan.enough is not None
    again = make_plan(built("llama-65b"), find_device("v100"), name="x", devices=plan.enough, precision="fp16")
    assert again.best is not None
    assert again.best.fits
    fixed = Wish(tensor=1, pipeline=1, zero=0)
    stuck = make_plan(built("llama-65b"), find_device("v100"), name="x", devices=8, precision="fp16", wish=fixed)
    assert stuck.enough is None


def test_this_machine() -> None:
    machine = measure_machine(rows=64, inner=64, columns=128, seconds=0.1)
    assert machine.cores >= 1
    assert machine.memory > 1 << 28
    assert 1e8 < machine.flops < 1e14
    large = measure_machine(inner=12288, columns=49152 // 8, seconds=0.05)
    assert 2 * large.rows * large.inner * large.columns <= 3e9, "no single product takes long"
    plan = make_plan(built("gpt2"), machine, name="x", context=256, batch=16, tokens=1e6)
    assert plan.seconds == pytest.approx(plan.flops / (machine.flops * MACHINE_MFU))
    assert (plan.setup.precision, plan.memory.master_weights, plan.candidates) == ("fp32", 0, [])
    json.dumps(plan.as_dict())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mfu": 40.0}, "40.0 is no share of the peak"),
        ({"mfu": 0.0}, "is no share"),
        ({"devices": 0}, "0 devices"),
        ({"batch": 0}, "too small"),
        ({"batch": 3, "devices": 2}, "no layout of 2 devices divides 12 layers, 12 heads and a batch of 3"),
        ({"optimizer": "adamm"}, "did you mean 'adamw'"),
    ],
)
def test_what_is_refused(given: dict[str, Any], said: str) -> None:
    options = {"wish": Wish(tensor=1, pipeline=1), "name": "x", **given}
    with pytest.raises(ConfigError, match=said):
        make_plan(built("gpt2"), A100, **options)


def test_sources_of_a_model(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    config = family.config_class(
        vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=32
    )
    model = family.build(config, "causal-lm")
    tg.save_model(model, tmp_path / "folder")
    recipe = {"model": {"family": "llama", "preset": "7b", "config": {"num_layers": 3}}, "train": {"anything": 1}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for source in (tmp_path / "folder", str(tmp_path / "folder"), tmp_path / "folder" / "config.json"):
        found = outline(source)
        assert (found.config, found.head_name, found.device.type) == (config, "causal-lm", "meta")
    assert outline(tmp_path / "folder", head="base").head_name == "base"
    from_recipe = outline(tmp_path / "recipe.yaml")
    assert (from_recipe.config.num_layers, from_recipe.config.hidden_size) == (3, 4096)
    assert outline("bert-base").head_name == "masked-lm"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "[]", "expected an object"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "{}", "no model_type"),
        ("a.yaml", "model: [1]", "names no family"),
        ("a.yaml", "model: {family: gpt2, config: 3}", "expected keys and values"),
        ("a.yaml", "model: {family: gpt2, config: {num_layer: 3}}", "did you mean 'num_layers'"),
        ("a.yaml", "model: {family: gpt2, preset: huge}", "no published model is called 'huge'"),
        ("a.yaml", "- 1", "expected keys and values"),
        ("a.yaml", "{", "not valid YAML"),
    ],
)
def test_broken_sources(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((ConfigError, UnknownNameError), match=said):
        outline(tmp_path / name)


def test_sources_without_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        outline(tmp_path / "empty")
    with pytest.raises(UnknownNameError, match="did you mean 'gpt3-175b'"):
        outline("gpt3-175")
