"""Tensors keep their bits on the way through four frameworks, and their memory wherever it can be shared."""

from __future__ import annotations

import gc
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsumugu.core.errors import InputError, UnknownNameError
from tsumugu.core.tensors import DTYPES, TensorFormat, convert_tensor, format_of, to_numpy, to_torch

FORMATS = ["pt", "tf", "jax", "np"]
KIND = {"pt": torch.Tensor, "tf": tf.Tensor, "jax": jax.Array, "np": np.ndarray}


def numpy_dtype(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def raw_array(shape, dtype, seed=0):
    """An array of random bits, so that NaN payloads, subnormals and both zeros occur; aligned to 64 bytes."""
    size, width = math.prod(shape), numpy_dtype(dtype).itemsize
    room = np.zeros(size * width + 64, np.uint8)
    start = -room.ctypes.data % 64
    room = room[start : start + size * width]
    bits = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, size * width, np.uint8)
    room[:] = bits
    return room.view(numpy_dtype(dtype)).reshape(shape)


def make(form, array):
    """A tensor of the framework `form`, made without the code that is tested."""
    if form == "np":
        return array
    if form == "tf":
        return tf.constant(array)
    if form == "jax":
        with jax.enable_x64(True):
            return jnp.array(array)
    bits = torch.frombuffer(bytearray(array.tobytes()) or bytearray(1), dtype=torch.uint8)[: array.nbytes]
    return bits.clone().view(getattr(torch, array.dtype.name)).reshape(array.shape)


def bits(tensor):
    """The bytes of a tensor of any framework in row-major order, read without the code that is tested."""
    if isinstance(tensor, torch.Tensor):
        if tensor.numel() == 0:
            return b""
        flat = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
        flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
        return flat.view(torch.uint8).numpy().tobytes()
    return np.asarray(tensor.numpy() if isinstance(tensor, tf.Tensor) else tensor).tobytes()


def dtype_name(tensor):
    return tensor.dtype.name if isinstance(tensor, tf.Tensor) else str(tensor.dtype).removeprefix("torch.")


def address(tensor):
    """Where the first byte of a tensor lies."""
    if isinstance(tensor, torch.Tensor):
        return tensor.data_ptr()
    if isinstance(tensor, jax.Array):
        return tensor.unsafe_buffer_pointer()
    if isinstance(tensor, tf.Tensor):
        return torch.utils.dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(tensor)).data_ptr()
    return tensor.ctypes.data


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(2, 3, 5), (7,), (), (0, 4), (3, 0)], ids=str)
def test_every_format_to_every_format_bit_for_bit(source, to, dtype, shape):
    tensor = make(source, raw_array(shape, dtype))
    result = convert_tensor(tensor, to)
    assert isinstance(result, KIND[to])
    assert format_of(result) == to
    assert tuple(result.shape) == shape
    assert dtype_name(result) == dtype
    assert bits(result) == bits(tensor)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=5).map(tuple),
    dtype=st.sampled_from(sorted(DTYPES)),
    path=st.lists(st.sampled_from(FORMATS), min_size=1, max_size=6),
    seed=st.integers(0, 9),
)
def test_any_chain_of_conversions_returns_what_went_in(shape, dtype, path, seed):
    array = raw_array(shape, dtype, seed)
    tensor = array
    for to in [*path, "np"]:
        tensor = convert_tensor(tensor, to)
    assert tensor.dtype == array.dtype
    assert tensor.shape == array.shape
    assert tensor.tobytes() == array.tobytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), to=st.sampled_from(FORMATS), dtype=st.sampled_from(sorted(DTYPES)))
def test_strided_views_arrive_in_order(data, to, dtype):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple))
    array = raw_array(shape, dtype).transpose(data.draw(st.permutations(range(len(shape)))))
    view = array[tuple(slice(None, None, data.draw(st.sampled_from([1, 2, -1, -2]))) for _ in shape)]
    result = convert_tensor(view, to)
    assert tuple(result.shape) == view.shape
    assert bits(result) == view.tobytes()

    tensor = make("pt", array[:]).transpose(0, -1)[1:]
    assert bits(convert_tensor(tensor, to)) == bits(tensor)


@pytest.mark.parametrize("to", ["tf", "jax", "np"])
@pytest.mark.parametrize("lazy", ["conj", "imag_of_conj", "expanded", "transposed", "gradient", "parameter"])
def test_pytorch_tensors_with_more_than_bytes(to, lazy):
    complex_ = torch.randn(3, 4, dtype=torch.complex64)
    real = torch.randn(3, 4)
    tensor = {
        "conj": complex_.conj(),
        "imag_of_conj": complex_.conj().imag,  # carries PyTorch's negative bit
        "expanded": real[:1].expand(3, 4),
        "transposed": real.t(),
        "gradient": real.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(real),
    }[lazy]
    result = convert_tensor(tensor, to)
    assert bits(result) == bits(tensor)
    assert tensor.requires_grad is (lazy in {"gradient", "parameter"})


# What is shared ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "bfloat16", "complex128"])
def test_aligned_memory_is_shared(source, to, dtype):
    tensor = make(source, raw_array((64, 8), dtype))
    shared = address(convert_tensor(tensor, to)) == address(tensor)
    assert shared is ((source, to, dtype) != ("np", "tf", "bfloat16"))


@pytest.mark.parametrize("to", ["tf", "jax", "np"])
def test_a_write_is_seen_on_the_other_side(to):
    tensor = torch.zeros(64)
    other = convert_tensor(tensor, to)
    tensor[5] = 3.0
    assert float(other[5]) == 3.0
    array = raw_array((64,), "int32")
    other = convert_tensor(array, "pt")
    other[7] = -9
    assert array[7] == -9


def test_strided_views_are_shared_between_pytorch_and_numpy():
    array = raw_array((8, 8), "bfloat16")
    tensor = to_torch(array.T[2:, ::3])
    assert tensor.data_ptr() == array.T[2:, ::3].ctypes.data
    assert to_numpy(tensor).ctypes.data == tensor.data_ptr()
    assert to_numpy(tensor).tobytes() == array.T[2:, ::3].tobytes()


@pytest.mark.parametrize("to", ["tf", "jax"])
@pytest.mark.parametrize("offset", [1, 4, 8])
def test_misaligned_memory_is_copied_and_can_be_computed_with(to, offset):
    tensor = torch.arange(400.0)[offset:]
    result = convert_tensor(tensor, to)
    assert address(result) != tensor.data_ptr()
    total = tf.reduce_sum(result * result) if to == "tf" else (result * result).sum()
    assert float(total) == pytest.approx(float((tensor * tensor).sum()))
    assert bits(convert_tensor(tensor.numpy(), to)) == bits(tensor)


def test_read_only_arrays_never_become_writable():
    array = raw_array((16,), "float32")
    array.flags.writeable = False
    before = array.tobytes()
    to_torch(array).zero_()
    assert array.tobytes() == before
    for form in ("jax", "tf"):
        view = to_numpy(make(form, array))
        assert not view.flags.writeable
        assert bits(convert_tensor(view, "tf")) == before


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_shared_memory_outlives_its_source(source, to):
    array = raw_array((1 << 14,), "int32")
    expected = array.tobytes()
    tensor = make(source, array)
    result = convert_tensor(tensor, to)
    del tensor, array
    gc.collect()
    noise = [torch.full((1 << 14,), i, dtype=torch.int32) for i in range(20)]
    noise += [np.full(1 << 14, i, np.int32) for i in range(20)]
    assert bits(result) == expected
    assert len(noise) == 40


# Lists and numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    ("lists", "dtype"),
    [
        ([[1, 2, 3], [4, 5, 6]], "integer"),
        ((1, 2), "integer"),
        (7, "integer"),
        ([], "integer"),
        ([[], []], "integer"),
        ([2**31, -(2**31)], "int64"),
        ([2**63], "uint64"),
        ([1, 2.5], "float32"),
        ([[0.1], [math.inf], [-math.inf]], "float32"),
        (0.5, "float32"),
        ([True, False], "bool"),
        ([True, 3], "integer"),
        ([1 + 2j, 3], "complex64"),
    ],
    ids=str,
)
def test_lists_become_the_usual_dtype(to, lists, dtype):
    expected = {"tf": "int32", "jax": "int32"}.get(to, "int64") if dtype == "integer" else dtype
    result = convert_tensor(lists, to)
    reference = np.array(lists).astype(expected)
    assert isinstance(result, KIND[to])
    assert dtype_name(result) == expected
    assert tuple(result.shape) == reference.shape
    assert bits(result) == reference.tobytes()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 4).flatmap(
        lambda width: st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=width, max_size=width), min_size=1)
    ),
    to=st.sampled_from(FORMATS),
)
def test_integers_of_any_size_arrive_unchanged(rows, to):
    assert np.asarray(convert_tensor(rows, to)).tolist() == rows


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("inner", FORMATS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "int16"])
def test_tensors_in_lists_are_stacked_and_keep_their_dtype(inner, to, dtype):
    rows = [raw_array((3,), dtype, seed) for seed in range(2)]
    result = convert_tensor([[make(inner, row)] for row in rows], to)
    assert dtype_name(result) == dtype
    assert bits(result) == np.stack(rows)[:, None].tobytes()


def test_the_asked_dtype_of_numbers_is_not_reached_through_float32():
    assert to_torch([0.1], dtype=torch.float64).item() == 0.1
    assert to_torch([1e300], dtype=torch.float64).item() == 1e300
    assert to_torch(np.float32([1.5]), dtype=torch.bfloat16).dtype == torch.bfloat16


RAGGED = [
    ([[1, 2], [3]], "row 1 has length 1, the first one 2"),
    ([[1, 2], 3], "row 1 is int"),
    ([1, 2, [3]], "row 2 is a list"),
    ([[[1], [2]], [[1], [2, 3]]], "row [1][1] has length 2, the first one 1"),
    ([[], [1]], "row 1 has length 1, the first one 0"),
    ([np.zeros(3), np.zeros(2)], "row 1 has shape [2], row 0 [3]"),
    ([torch.zeros(3), torch.zeros(3, 1)], "row 1 has shape [3, 1]"),
    ([[1, 2], "ab"], "row 1 is str"),
    ([1, "2"], "row 1 holds str"),
    (["a", "b"], "row 0 holds str"),
    ([[1, None]], "row [0][1] holds NoneType"),
    ([1, torch.zeros(3)], "row 1 holds Tensor"),
    ([2**64], "64 bits"),
    ([2**63, -1], "64 bits"),
    ([1.0, 1e300], "too large for float32"),
    ("text", "str"),
    (b"bytes", "bytes"),
    (None, "NoneType"),
    ({"input_ids": [1]}, "dict"),
    ({1, 2}, "set"),
    (object(), "object"),
]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(("wrong", "said"), RAGGED, ids=[said for _, said in RAGGED])
def test_what_is_no_tensor_is_refused_by_name(wrong, said, to):
    with pytest.raises(InputError) as caught:
        convert_tensor(wrong, to)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_holds_itself_is_refused():
    endless: list = []
    endless.append(endless)
    with pytest.raises(InputError):
        convert_tensor(endless, "np")


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (np.array(["a"]), "str"),
        (np.array([None]), "object"),
        (np.array(["2020-01-01"], "datetime64[D]"), "datetime64"),
        (np.zeros(2, [("a", "i4")]), "void"),
        (np.longdouble([1]), "longdouble"),
        (np.ma.masked_array([1, 2], [True, False]), "masked"),
        (torch.zeros(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.zeros(2, device="meta"), "meta"),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
        (torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8), "qint8"),
        (tf.constant(["a"]), "string"),
        (jax.random.key(0), "key"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_without_a_common_dtype_are_refused(tensor, said, to):
    if format_of(tensor) == to and to != "np":
        assert convert_tensor(tensor, to) is tensor
        return
    with pytest.raises(InputError) as caught:
        convert_tensor(tensor, to)
    # The name of NumPy's long double depends on the machine.
    assert (np.longdouble(0).dtype.name if said == "longdouble" else said) in str(caught.value)


def test_tensors_without_values_are_refused():
    deleted = jnp.zeros(3)
    deleted.delete()
    with pytest.raises(InputError, match="deleted"):
        convert_tensor(deleted, "np")
    with pytest.raises(InputError, match="JAX transformation"):
        jax.jit(lambda x: convert_tensor(x, "tf"))(jnp.zeros(3))
    with pytest.raises(InputError, match=r"tf\.function"):
        tf.function(lambda x: convert_tensor(x, "pt"), autograph=False)(tf.zeros(3))


def test_variables_foreign_byte_order_and_scalars():
    assert to_torch(tf.Variable([1.5, 2.5])).tolist() == [1.5, 2.5]
    assert isinstance(convert_tensor(np.float16(2), "np"), np.ndarray)
    assert convert_tensor(np.float16(2), "pt").dtype == torch.float16
    for to in FORMATS:
        assert np.asarray(convert_tensor(np.array([1, 2**63], np.ulonglong), to)).tolist() == [1, 2**63]
        assert np.asarray(convert_tensor(np.array([1, 256], ">i4"), to)).tolist() == [1, 256]
        assert np.asarray(convert_tensor(np.matrix([[1, 2]]), to)).shape == (1, 2)


def test_jax_keeps_its_own_default_of_32_bits():
    wide = convert_tensor(np.arange(3), "jax")
    assert wide.dtype == np.int64
    assert jnp.arange(3).dtype == np.int32
    assert np.asarray(wide).dtype == np.int64
    table = jnp.arange(12.0).reshape(4, 3)
    assert table[wide].shape == (3, 3)  # wide ids index as any others


def test_a_jax_array_with_a_column_major_layout():
    strided = jax.dlpack.from_dlpack(torch.arange(64.0).reshape(8, 8).t())
    for to in FORMATS:
        assert np.array_equal(np.asarray(convert_tensor(strided, to)), np.asarray(strided))


# The words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", FORMATS)
def test_a_word_is_its_format(word):
    assert TensorFormat.parse(word) == word
    assert TensorFormat.parse(TensorFormat(word)) is TensorFormat(word)
    assert f"{TensorFormat(word)}" == word


@pytest.mark.parametrize(
    ("word", "nearest"),
    [("torch", "pt"), ("pytorch", "pt"), ("numpy", "np"), ("tensorflow", "tf"), ("jaxx", "jax"), ("PT", "pt")],
)
def test_a_wrong_word_names_the_nearest_and_all_legal_ones(word, nearest):
    for attempt in (TensorFormat, TensorFormat.parse, lambda word: convert_tensor([1], word)):
        with pytest.raises(UnknownNameError) as caught:
            attempt(word)
        assert str(caught.value) == (
            f"unknown tensor format {word!r}; did you mean {nearest!r}? legal words: pt, tf, jax, np"
        )


@pytest.mark.parametrize("word", ["", "xyzzy", None, 3, True, b"pt", "p\nt"])
def test_anything_else_lists_the_legal_words(word):
    with pytest.raises(UnknownNameError) as caught:
        TensorFormat.parse(word)
    assert "legal words: pt, tf, jax, np" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_tensor_has_no_format():
    assert [format_of(x) for x in ([1], 3, "pt", None, object())] == [None] * 5
    assert format_of(np.float32(1)) is TensorFormat.NP
    assert format_of(tf.Variable(1)) is TensorFormat.TF
