"""Recipes: read, changed, printed, and read back; those of the package describe models that can be built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsumugu.core.errors import ConfigError
from tsumugu.core.registry import OBJECTIVES
from tsumugu.training.outline import outline
from tsumugu.training.recipe import Recipe, find_recipe, recipe_names

SMALL = {"model": {"family": "gpt2"}, "data": {"inputs": ["a.txt"]}}


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_of_the_package(name):
    recipe = Recipe.from_yaml(name)
    assert recipe.name == name
    assert recipe_names()[name]
    kind = OBJECTIVES[recipe.objective["name"]]
    kind.from_dict({key: each for key, each in recipe.objective.items() if key != "name"})
    parameters = outline(find_recipe(name)).num_parameters()
    said = name.rpartition("-")[2]
    if said.endswith("m") and said[:-1].isdecimal():  # the vocabulary is the tokenizer's in the end
        assert abs(parameters / 1e6 / int(said[:-1]) - 1) < 0.6


@pytest.mark.parametrize("name", recipe_names())
def test_what_is_printed_is_read_back(name, tmp_path):
    recipe = Recipe.from_yaml(name)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), "utf-8")
    assert Recipe.from_yaml(tmp_path / "recipe.yaml") == recipe


def test_values_are_given_by_dotted_names():
    told = {"train.lr": "3e-4", "data.inputs": "b.txt", "model.config.num_layers": "2", "train.ema": "0.99"}
    recipe = Recipe.from_values(SMALL, told)
    assert (recipe.train.lr, recipe.data.inputs, recipe.train.ema) == (3e-4, ("b.txt",), 0.99)
    assert recipe.model.config == {"num_layers": 2}
    assert Recipe.from_values(SMALL, {"data.inputs": "[a, b]"}).data.inputs == ("a", "b")
    assert Recipe.from_values({**SMALL, "train": None}).train == Recipe.from_values(SMALL).train
    assert SMALL == {"model": {"family": "gpt2"}, "data": {"inputs": ["a.txt"]}}


@given(st.floats(min_value=1e-30, max_value=1e30), st.integers(1, 10**12))
def test_numbers_survive(rate, steps):
    text = Recipe.from_values(SMALL, {"train.lr": f"{rate:e}", "train.steps": str(steps)})
    assert text.train.lr == float(f"{rate:e}")
    assert text.train.steps == steps


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"train.learning_rate": "1"}, "unknown key 'learning_rate'"),
        ({"trian.lr": "1"}, "unknown key 'trian'; did you mean 'train'"),
        ({"train.lr": "high"}, "expected float, found 'high'"),
        ({"train.lr.peak": "1"}, "train.lr is a value, not a section"),
        ({"train.lr": "[1"}, "is no value"),
        ({"data.corpus": "c"}, "raw text and a prepared corpus exclude each other"),
        ({"model.init": "x", "model.preset": "gpt2"}, "say their own hyperparameters"),
        ({"train.batch": "0"}, "0 is too small; at least 1"),
    ],
)
def test_what_cannot_be_is_said(told, message):
    values = {**SMALL, "train": {"lr": 1e-3}}
    with pytest.raises(ConfigError, match=message):
        Recipe.from_values(values, told)


def test_unknown_recipes_and_broken_files(tmp_path):
    with pytest.raises(ConfigError, match="there is no such recipe; did you mean 'gpt2-tiny'"):
        Recipe.from_yaml("gpt2-tyni")
    (tmp_path / "a.yaml").write_text("- a\n", "utf-8")
    with pytest.raises(ConfigError, match="expected keys and values"):
        Recipe.from_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("model: !!python/object/apply:os.system [echo]\n", "utf-8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        Recipe.from_yaml(tmp_path / "b.yaml")
