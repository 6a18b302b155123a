"""Errors are one line, whatever they quote, and survive the way between processes."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsumugu.core.errors import (
    CheckpointError,
    ConfigError,
    HubError,
    InputError,
    MissingExtraError,
    TsumuguError,
    UnknownNameError,
    did_you_mean,
    nearest,
)

CLASSES = [TsumuguError, ConfigError, UnknownNameError, InputError, CheckpointError, HubError]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("where", "mend", "line"),
    [
        (None, None, "too long"),
        ("a.txt", None, "a.txt: too long"),
        (None, "cut it", "too long; cut it"),
        ("a.txt", "cut it", "a.txt: too long; cut it"),
    ],
)
def test_what_where_and_mend_in_one_line(cls, where, mend, line):
    assert str(cls("too long", where=where, mend=mend)) == line
    assert str(cls("too long.", where=where, mend=mend)) == line


@given(
    cls=st.sampled_from(CLASSES),
    what=st.text(),
    where=st.none() | st.text(),
    mend=st.none() | st.text(),
)
def test_any_text_stays_one_printable_line(cls, what, where, mend):
    line = str(cls(what, where=where, mend=mend))
    assert line.isprintable()
    line.encode("utf-8")


def test_terminal_commands_and_surrogates_are_shown_and_not_obeyed():
    assert str(InputError("bad name '\x1b[2J\udc80'")) == r"bad name '\x1b[2J\udc80'"


def test_japanese_and_emoji_are_left_alone():
    assert str(InputError("知らない名前 '紡ぐ🧵'")) == "知らない名前 '紡ぐ🧵'"


def test_a_huge_quotation_is_cut_in_the_middle():
    line = str(InputError("x" * 10_000_000, where="file", mend="shorten it"))
    assert len(line) < 1100
    assert line.startswith("file: xxx")
    assert line.endswith("xxx; shorten it")


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_travel_between_processes(cls):
    error = cls("too long", where="a.txt", mend="cut it")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert str(twin) == str(error)


def test_a_missing_extra_says_how_to_get_it():
    error = MissingExtraError("jax", extra="jax", purpose="the tensor format 'jax'")
    assert str(error) == "the tensor format 'jax' needs jax; pip install 'tsumugu[jax]'"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert isinstance(error, ImportError)


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (ConfigError, ValueError),
        (InputError, ValueError),
        (CheckpointError, ValueError),
        (UnknownNameError, KeyError),
        (HubError, OSError),
    ],
)
def test_errors_are_caught_by_the_usual_kind_too(cls, base):
    with pytest.raises(base, match="wrong"):
        raise cls("wrong")


def test_nearest_ignores_case_and_distant_names():
    known = ["llama", "BERT", "gpt2"]
    assert nearest("Lama", known) == "llama"
    assert nearest("bert", known) == "BERT"
    assert nearest("xyzzy", known) is None
    assert nearest("x", []) is None


def test_the_mend_is_the_nearest_or_the_list():
    assert did_you_mean("lama", ["llama", "bert"]) == "did you mean 'llama'?"
    assert did_you_mean("xyzzy", ["llama", "bert"]) == "known: bert, llama"
    assert did_you_mean("xyzzy", [f"n{i:02}" for i in range(20)], limit=2) == "known: n00, n01, …"
