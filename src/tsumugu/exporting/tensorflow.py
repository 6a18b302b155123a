"""A model as a TensorFlow module and SavedModel, of TensorFlow's own operations: it needs neither JAX nor XLA.

The weights are its variables, so that it can be tuned further there. Rows and tokens may be any.
"""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

from tsumugu.core.frameworks import load
from tsumugu.core.tensors import convert_tensor
from tsumugu.exporting.program import Operators, Program, check, run, too_long


def to_tensorflow(program: Program) -> Any:
    """A `tf.Module`.

    `module.params` are its weights by name, and `module.serving` is the function: called with the inputs in order, it
    gives the outputs by name.

    Raises:
        ConfigError: the model has an operator that is not written for TensorFlow.
    """
    tf = load("tensorflow")
    table = operators()
    check(program, table, "TensorFlow")
    module = tf.Module(name="model")
    module.params = {
        name: tf.Variable(convert_tensor(each, "tf"), name=name.replace(".", "_"))
        for name, each in program.parameters.items()
    }
    signature = [
        tf.TensorSpec([None if isinstance(each, str) else each for each in shape], program.input_dtypes[name], name)
        for name, shape in program.dimensions.items()
    ]
    module.serving = tf.function(_function(program, table, module.params), input_signature=signature, autograph=False)
    return module


def write_tensorflow(program: Program, folder: Path) -> None:
    """A SavedModel with the signature `serving_default`."""
    tf = load("tensorflow")
    module = to_tensorflow(program)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serving})


def _function(program: Program, table: Operators, params: Any) -> Any:
    tf = load("tensorflow")

    def cast(value: Any, dtype: str) -> Any:
        return tf.cast(value, dtype) if value.dtype.is_floating and value.dtype != dtype else value

    def serving(*inputs: Any) -> dict[str, Any]:
        for name, each in zip(program.inputs, inputs, strict=True):
            message = f"{name}: {too_long('these', program.longest)}"
            tf.debugging.assert_less_equal(tf.shape(each)[-1], program.longest, message)
        values: dict[str, Any] = {name: convert_tensor(each, "tf") for name, each in program.constants.items()}
        values |= {value: tf.convert_to_tensor(params[name]) for value, name in program.bound.items()}
        values |= dict(zip(program.placeholders, inputs, strict=True))
        found = run(program.steps, program.results, values, table, cast)
        return dict(zip(program.outputs, found, strict=True))

    return serving


def operators() -> Operators:
    """What computes each operator."""
    tf = load("tensorflow")
    math, nn = tf.math, tf.nn

    def both(compute: Any) -> Any:
        """An operator on two tensors, or a tensor and a number, of one type: the real one where they differ."""

        def computed(x: Any, y: Any, alpha: Any = 1) -> Any:
            kinds = [each.dtype for each in (x, y) if tf.is_tensor(each)]
            kind = next((each for each in kinds if each.is_floating), kinds[0])
            if not kind.is_floating and any(isinstance(each, float) for each in (x, y)):
                kind = tf.dtypes.float32
            if kind.is_bool and compute not in (tf.equal, tf.not_equal):
                kind = tf.dtypes.int64
            x, y = (tf.cast(each, kind) for each in (x, y))
            return compute(x, y if alpha == 1 else alpha * y)

        return computed

    def at(x: Any, dim: int, index: Any) -> Any:
        return x[(*(slice(None),) * (dim % x.shape.rank), index)]

    def arange(start: Any, end: Any, step: Any = 1, dtype: str = "int64") -> Any:
        return tf.range(*(tf.cast(each, "int64") for each in (start, end, step)), dtype=dtype)

    def expand(x: Any, shape: list[Any]) -> Any:
        sizes, shape = tf.shape(x, "int64"), list(shape)
        for axis in range(1, x.shape.rank + 1):
            if isinstance(shape[-axis], int) and shape[-axis] == -1:
                shape[-axis] = sizes[-axis]
        return tf.broadcast_to(x, shape)

    def index(x: Any, at: list[Any]) -> Any:
        if len(at) == 1:
            return tf.gather(x, at[0])
        shape = tf.shape(at[0])
        for each in at[1:]:
            shape = tf.broadcast_dynamic_shape(shape, tf.shape(each))
        return tf.gather_nd(x, tf.stack([tf.broadcast_to(each, shape) for each in at], axis=-1))

    def layer_norm(x: Any, shape: list[int], weight: Any, bias: Any, eps: float) -> tuple[Any, ...]:
        axes = list(range(-len(shape), 0))
        wide = tf.cast(x, "float32") if x.dtype.size < 4 else x
        centred = wide - tf.reduce_mean(wide, axes, keepdims=True)
        y = centred * math.rsqrt(tf.reduce_mean(centred**2, axes, keepdims=True) + eps)
        y = y if weight is None else y * tf.cast(weight, y.dtype)
        return (tf.cast(y if bias is None else y + tf.cast(bias, y.dtype), x.dtype),)

    def softmax(x: Any, dim: int, half_to_float: bool) -> Any:
        """Of a row that is all -inf zeros, with a derivative that is zero too, not NaN."""
        top = tf.stop_gradient(tf.reduce_max(x, dim, keepdims=True))
        parts = tf.exp(x - tf.where(math.is_finite(top), top, tf.zeros_like(top)))
        return math.divide_no_nan(parts, tf.reduce_sum(parts, dim, keepdims=True))

    def pad(x: Any, widths: list[Any], value: float = 0.0) -> Any:
        pairs = [[0, 0]] * (x.shape.rank - len(widths) // 2)
        pairs += [list(each) for each in zip(widths[-2::-2], widths[::-2], strict=True)]
        return tf.pad(x, pairs, constant_values=tf.cast(value, x.dtype))

    def clamp(x: Any, low: Any = None, high: Any = None) -> Any:
        x = x if low is None else tf.maximum(x, tf.cast(low, x.dtype))
        return x if high is None else tf.minimum(x, tf.cast(high, x.dtype))

    def part(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
        end = None if isinstance(end, int) and end > 1 << 40 else end
        return at(x, dim, slice(start, end, step))

    return {
        "aten._softmax": softmax,
        "aten._to_copy": lambda x, dtype=None: x if dtype is None else tf.cast(x, dtype),
        "aten.abs": tf.abs,
        "aten.add": both(tf.add),
        "aten.addmm": lambda bias, x, y: bias + tf.matmul(x, y),
        "aten.alias": tf.identity,
        "aten.any": lambda x, dim, keepdim=False: tf.reduce_any(x, dim, keepdims=keepdim),
        "aten.arange": arange,
        "aten.argmax": lambda x, dim, keepdim=False: tf.argmax(tf.expand_dims(x, -1) if keepdim else x, dim),
        "aten.bitwise_and": lambda x, y: x & y,
        "aten.bitwise_not": lambda x: ~x,
        "aten.bmm": tf.matmul,
        "aten.cat": lambda parts, dim=0: tf.concat(parts, dim),
        "aten.clamp": clamp,
        "aten.clone": tf.identity,
        "aten.constant_pad_nd": pad,
        "aten.cos": tf.cos,
        "aten.cumsum": tf.cumsum,
        "aten.div": both(tf.divide),
        "aten.embedding": lambda weight, ids, *_: tf.gather(weight, ids),
        "aten.eq": both(tf.equal),
        "aten.expand": expand,
        "aten.full_like": lambda x, value, dtype=None: tf.fill(tf.shape(x), tf.cast(value, dtype or x.dtype)),
        "aten.gelu": lambda x, approximate="none": nn.gelu(x, approximate=approximate == "tanh"),
        "aten.gt": both(tf.greater),
        "aten.index": index,
        "aten.le": both(tf.less_equal),
        "aten.log": math.log,
        "aten.logical_not": lambda x: ~tf.cast(x, "bool"),
        "aten.lt": both(tf.less),
        "aten.mean": lambda x, dim, keepdim=False: tf.reduce_mean(x, dim, keepdims=keepdim),
        "aten.mm": tf.matmul,
        "aten.mul": both(tf.multiply),
        "aten.native_layer_norm": layer_norm,
        "aten.ne": both(tf.not_equal),
        "aten.neg": tf.negative,
        "aten.permute": tf.transpose,
        "aten.pow": both(tf.pow),
        "aten.reciprocal": math.reciprocal,
        "aten.relu": nn.relu,
        "aten.rsqrt": math.rsqrt,
        "aten.scalar_tensor": lambda value, dtype="float32": tf.cast(value, dtype),
        "aten.select": at,
        "aten.sigmoid": tf.sigmoid,
        "aten.sin": tf.sin,
        "aten.slice": part,
        "aten.split_with_sizes": lambda x, sizes, dim=0: tf.split(x, sizes, dim),
        "aten.squeeze": tf.squeeze,
        "aten.sub": both(tf.subtract),
        "aten.sym_size": lambda x, dim: x.shape[dim] if x.shape[dim] is not None else tf.shape(x, "int64")[dim],
        "aten.tanh": tf.tanh,
        "aten.unsqueeze": tf.expand_dims,
        "aten.view": tf.reshape,
        "aten.where": lambda condition, x, y: tf.where(condition, x, y),
        "python.add": operator.add,
        "python.getitem": operator.getitem,
        "python.mul": operator.mul,
        "python.sub": operator.sub,
    }
