"""Configurations check themselves, name what is wrong, and come back from JSON as they were."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsumugu.core.config import Config, limits
from tsumugu.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Rope(Config):
    theta: float = limits(10000.0, low=1.0)
    kind: Literal["default", "linear", "llama3"] = "default"


@dataclass(frozen=True, kw_only=True)
class Net(Config):
    width: int = limits(low=1, high=65536, help="channels")
    depth: int = limits(12, low=0)
    dropout: float = limits(0.0, low=0.0, high=1.0)
    tied: bool = True
    name: str = "net"
    heads: int | None = limits(None, low=1)
    act: Literal["gelu", "silu"] = "gelu"
    seed: int | str = 0
    flag: bool | int = False
    betas: tuple[float, float] = limits((0.9, 0.999), low=0.0, high=1.0)
    stop: tuple[str, ...] = ()
    grid: tuple[tuple[int, ...], ...] = ()
    rope: Rope = Rope()
    other_rope: Rope | None = None
    ropes: tuple[Rope, ...] = ()
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    by_name: dict[str, Rope] = dataclasses.field(default_factory=dict)
    extra: Any = None

    def check(self) -> None:
        if self.heads and self.width % self.heads:
            self.refuse("heads", f"{self.width} channels do not divide by {self.heads}", mend="choose a divisor")


def message(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Net.from_dict({"width": 8, **values})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"dropot": 0.1}, "Net: unknown key 'dropot'; did you mean 'dropout'?"),
        ({"Width": 1}, "Net: unknown key 'Width'; did you mean 'width'?"),
        ({"rope": {"thta": 2.0}}, "Net.rope: unknown key 'thta'; did you mean 'theta'?"),
        ({"ropes": [{}, {"kin": "linear"}]}, "Net.ropes[1]: unknown key 'kin'; did you mean 'kind'?"),
        ({"by_name": {"a": {"theta": 0}}}, "Net.by_name['a'].theta: 0.0 is too small; at least 1.0"),
        ({"width": "8"}, "Net.width: expected int, found '8'"),
        ({"width": 8.0}, "Net.width: expected int, found 8.0"),
        ({"width": True}, "Net.width: expected int, found True"),
        ({"width": None}, "Net.width: expected int, found None"),
        ({"width": 0}, "Net.width: 0 is too small; at least 1"),
        ({"width": 70000}, "Net.width: 70000 is too large; at most 65536"),
        ({"width": 10**5000}, "Net.width: a huge number is too large; at most 65536"),
        ({"dropout": 10**400}, "Net.dropout: a huge number is too large"),
        ({"dropout": "high"}, "Net.dropout: expected float, found 'high'"),
        ({"dropout": True}, "Net.dropout: expected float, found True"),
        ({"dropout": float("nan")}, "Net.dropout: nan is not a finite number"),
        ({"dropout": float("inf")}, "Net.dropout: inf is not a finite number"),
        ({"dropout": -0.1}, "Net.dropout: -0.1 is too small; at least 0.0"),
        ({"tied": 1}, "Net.tied: expected bool, found 1"),
        ({"tied": "yes"}, "Net.tied: expected bool, found 'yes'"),
        ({"name": 3}, "Net.name: expected str, found 3"),
        ({"name": b"x"}, "Net.name: expected str, found b'x'"),
        ({"heads": 0}, "Net.heads: 0 is too small; at least 1"),
        ({"heads": 3}, "Net.heads: 8 channels do not divide by 3; choose a divisor"),
        ({"act": "gleu"}, "Net.act: 'gleu' is not a legal value; did you mean 'gelu'?"),
        ({"act": 3}, "Net.act: 3 is not a legal value; known: gelu, silu"),
        ({"act": ["gelu"]}, "Net.act: ['gelu'] is not a legal value; known: gelu, silu"),
        ({"act": 10**5000}, "Net.act: a huge number is not a legal value; known: gelu, silu"),
        ({"width": [10**5000]}, "Net.width: expected int, found a list"),
        ({"seed": 1.5}, "Net.seed: expected int or str, found 1.5"),
        ({"betas": [0.9]}, "Net.betas: expected 2 values, found 1"),
        ({"betas": 0.9}, "Net.betas: expected a list, found 0.9"),
        ({"betas": "ab"}, "Net.betas: expected a list, found 'ab'"),
        ({"betas": [0.9, 1.5]}, "Net.betas[1]: 1.5 is too large; at most 1.0"),
        ({"stop": "END"}, "Net.stop: expected a list, found 'END'"),
        ({"stop": ["a", 3]}, "Net.stop[1]: expected str, found 3"),
        ({"grid": [[1], [2, "x"]]}, "Net.grid[1][1]: expected int, found 'x'"),
        ({"rope": 3}, "Net.rope: expected an object of keys and values, found 3"),
        ({"other_rope": {"theta": 0}}, "Net.other_rope.theta: 0.0 is too small; at least 1.0"),
        ({"labels": [1]}, "Net.labels: expected an object, found [1]"),
        ({"labels": {"a": "b"}}, "Net.labels['a']: expected int, found 'b'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(values, expected):
    assert message(**values) == expected


def test_a_long_value_is_shown_short():
    assert len(message(width="x" * 100_000)) < 200


def test_missing_keys_are_all_named():
    @dataclass(frozen=True, kw_only=True)
    class Two(Config):
        one: int
        two: int

    with pytest.raises(ConfigError, match=r"^Two: missing 'one', 'two'$"):
        Two.from_dict({})


@pytest.mark.parametrize("data", [[], "text", None, 3])
def test_only_an_object_is_a_configuration(data):
    with pytest.raises(ConfigError, match="expected an object"):
        Net.from_dict(data)


def test_where_replaces_the_name_of_the_class():
    with pytest.raises(ConfigError, match=r"^recipe\.yaml: rope\.theta: 0\.0 is too small; at least 1\.0$"):
        Net.from_dict({"width": 8, "rope": {"theta": 0}}, where="recipe.yaml")
    with pytest.raises(ConfigError, match=r"^recipe\.yaml: unknown key 'wdth'; did you mean 'width'"):
        Net.from_dict({"wdth": 8}, where="recipe.yaml")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2", b"{'width': 8}", b"\xff\xfe", b"nul", b"[" * 100_000, b'{"width": ' + b"9" * 5000 + b"}"],
    ids=lambda content: repr(content[:12]),
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, content: bytes):
    path = tmp_path / "net.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Net.from_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_an_os_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        Net.from_json(tmp_path / "absent.json")


def test_frozen_compared_and_replaced():
    net = Net(width=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        net.width = 9  # type: ignore[misc]
    assert net == Net.from_dict({"width": 8})
    wider = net.replace(width=16, rope={"theta": 2})
    assert (wider.width, wider.rope.theta, net.width) == (16, 2.0, 8)
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        net.replace(widht=3)
    with pytest.raises(ConfigError, match="too small"):
        net.replace(width=0)


def test_a_mapping_is_copied_so_that_the_callers_stays_his():
    labels = {"a": 1}
    net = Net(width=8, labels=labels)
    labels["b"] = 2
    assert net.labels == {"a": 1}


def test_integers_count_as_real_numbers_and_lists_as_tuples():
    net = Net(width=8, dropout=1, betas=[0, 1], stop=["a"], grid=[[1], []])
    assert (type(net.dropout), net.betas, net.stop, net.grid) == (float, (0.0, 1.0), ("a",), ((1,), ()))


def test_a_union_prefers_the_type_that_needs_no_change():
    net = Net(width=8, seed="7", flag=1)
    assert (net.seed, net.flag, type(net.flag)) == ("7", 1, int)
    assert Net(width=8, flag=True).flag is True


numbers = st.floats(0, 1) | st.integers(0, 1)
ropes = st.builds(Rope, theta=st.floats(1, 1e300), kind=st.sampled_from(["default", "linear", "llama3"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
nets = st.builds(
    Net,
    width=st.integers(1, 100).map(lambda n: 12 * n),
    depth=st.integers(0, 10**30),
    dropout=numbers,
    tied=st.booleans(),
    name=st.text(),
    heads=st.sampled_from([None, 1, 2, 3, 4, 6, 12]),
    act=st.sampled_from(["gelu", "silu"]),
    seed=st.integers() | st.text(),
    flag=st.booleans() | st.integers(),
    betas=st.tuples(numbers, numbers),
    stop=st.lists(st.text()),
    grid=st.lists(st.lists(st.integers())),
    rope=ropes,
    other_rope=st.none() | ropes,
    ropes=st.lists(ropes, max_size=3),
    labels=st.dictionaries(st.text(), st.integers()),
    by_name=st.dictionaries(st.text(), ropes, max_size=3),
    extra=json_values,
)


@given(net=nets)
def test_json_gives_back_an_equal_configuration(net: Net):
    text = net.to_json()
    assert text.endswith("}\n")
    again = Net.from_json(text)
    assert again == net
    assert type(again.flag) is type(net.flag)
    assert Net.from_dict(net.to_dict()) == net
    assert json.loads(text) == json.loads(again.to_json())


@given(data=st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Net)]) | st.text(), json_values))
def test_any_json_object_is_taken_or_refused_in_one_line(data: dict[str, Any]):
    refused = None
    try:
        net = Net.from_dict(data)
    except ConfigError as error:
        refused = str(error)
    if refused is not None:
        assert refused.isprintable()
    else:
        assert Net.from_json(net.to_json()) == net
