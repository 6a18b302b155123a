"""Tiny random models of every family with every head, and what an exported one gives, beside what PyTorch gives.

`python -m tests.exporting.sweep [FAMILY …]` goes through them all, in a quarter of an hour, and prints the table that
docs/en/export.md has. It leaves with code 1 where a difference is above the tolerance.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime
import torch

from tsumugu.core.registry import FAMILIES
from tsumugu.exporting.jax import to_jax
from tsumugu.exporting.program import Program, take_apart
from tsumugu.exporting.tensorflow import to_tensorflow
from tsumugu.exporting.trace import Traced
from tsumugu.exporting.write import TARGETS, traced_quietly
from tsumugu.models.base import Model
from tsumugu.models.decoder import Decoder

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "max_positions": 64}
SIZES |= {"num_kv_heads": 2, "head_dim": 8, "num_layers": 1, "num_decoder_layers": 1}
TOLERANCE = 1e-4
WAYS = ("ONNX", "torch.export", "JAX", "TensorFlow")
Feed = dict[str, torch.Tensor]
Run = Callable[[Feed], list[Any]]


def small(name: str, head: str) -> Model:
    """A model of one layer, or of two where layers differ, with random weights."""
    family = FAMILIES[name]
    known = {each.name for each in dataclasses.fields(family.config_class)}
    sizes = SIZES | ({"num_layers": 2} if name in ("gpt3", "gemma3") else {})
    config = family.config_class.from_dict({key: value for key, value in sizes.items() if key in known})
    model = family.build(config, head).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(0.2 * torch.randn(each.shape, generator=generator))
    return model


def feeds(model: Model) -> Iterator[Feed]:
    """Inputs of one token, and of four rows: whole, filled up at the right, at the left, and nothing but padding."""
    generator = torch.Generator().manual_seed(1)
    for rows, time in ((1, 1), (4, 11)):
        ids = torch.randint(5, 90, (rows, time), generator=generator)
        real = torch.ones_like(ids)
        real[1:2, 6:] = real[2:3, :3] = real[3:] = 0
        given = {"input_ids": ids, "attention_mask": real}
        if getattr(model.config, "num_segments", 1) > 1:
            given["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=generator)
        if model.head_name == "seq2seq-lm" or (model.family.name == "t5" and model.head_name == "base"):
            given["decoder_input_ids"] = torch.randint(5, 90, (rows, 1 + time // 3), generator=generator)
        yield given


def difference(model: Model, run: Run) -> float:
    """The largest one of all outputs at all positions, also at padding, where they mean nothing."""
    largest = []
    for given in feeds(model):
        with torch.no_grad():
            wanted = model(**given).to_tuple()
        found = run(given)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            array = np.asarray(one)
            assert array.shape == other.shape
            largest.append(np.abs(array - other.numpy()).max())
    return float(np.max(largest))


def in_onnx(traced: Traced, path: Path) -> Run:
    """Through a file, in ONNX Runtime."""
    TARGETS["onnx"].write(traced, path)
    session = onnxruntime.InferenceSession(path)
    return lambda given: session.run(None, {key: value.numpy() for key, value in given.items()})


def in_torch(traced: Traced, path: Path) -> Run:
    """Through a file, by torch.export."""
    TARGETS["torch-export"].write(traced, path)
    graph = torch.export.load(path).module()
    return torch.no_grad()(lambda given: list(graph(*given.values())))


def in_jax(program: Program) -> Run:
    """As a compiled function of JAX."""
    function, params = to_jax(program)
    jitted = jax.jit(function)

    def run(given: Feed) -> list[Any]:
        found = jitted(params, **{key: value.numpy() for key, value in given.items()})
        return [found[key] for key in function.outputs]

    return run


def in_tensorflow(program: Program) -> Run:
    """As a function of TensorFlow."""
    serving = to_tensorflow(program).serving

    def run(given: Feed) -> list[Any]:
        found = serving(*(value.numpy() for value in given.values()))
        return [found[key] for key in program.outputs]

    return run


def written_difference(model: Decoder, run: Run) -> float:
    """The largest one of the logits of two rows that are read five tokens at once and then token by token."""
    config = model.config
    ids = torch.randint(5, 90, (2, 8), generator=torch.Generator().manual_seed(2))
    past = {
        f"past_key_values.{layer}.{part}": torch.zeros(2, config.num_kv_heads, 0, config.head_dim)
        for layer in range(config.num_layers)
        for part in ("key", "value")
    }
    logits = []
    for new in ids.split([5, 1, 1, 1], dim=1):
        found, *present = run({"input_ids": new, **past})
        past = {name: torch.as_tensor(value) for name, value in zip(past, present, strict=True)}
        logits.append(torch.as_tensor(found))
    with torch.no_grad():
        return float((torch.cat(logits, dim=1) - model(ids).logits).abs().max())


def compared(name: str, head: str, folder: Path, *, cache: bool) -> Iterator[tuple[str, float]]:
    """For each target its name and the largest difference; NaN where it fails, and the reason is printed."""
    model = small(name, head)
    traced = traced_quietly(model, cache)
    program = None if cache else take_apart(traced)
    ways: dict[str, Callable[[], Run]] = {
        "ONNX": lambda: in_onnx(traced, folder / "model.onnx"),
        "torch.export": lambda: in_torch(traced, folder / "model.pt2"),
    }
    if program is not None:
        ways |= {"JAX": lambda: in_jax(program), "TensorFlow": lambda: in_tensorflow(program)}
    for way, opened in ways.items():
        try:
            run = opened()
            yield (
                way,
                written_difference(model, run) if cache and isinstance(model, Decoder) else difference(model, run),
            )
        except Exception as error:  # noqa: BLE001  (the others go on)
            print(f"{name} {head} {way}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            yield way, math.nan


def main(names: list[str]) -> int:
    """Print a row for each family."""
    torch.set_num_threads(1)
    failed = False
    print(f"| Family | Heads | {' | '.join(WAYS)} |\n|---|---|{'--:|' * len(WAYS)}", flush=True)
    for name in names or FAMILIES:
        heads = FAMILIES[name].heads
        for words, some in (("", heads), (", with a cache", [each for each in heads if each == "causal-lm"])):
            found: dict[str, list[float]] = {}
            for head in some:
                with tempfile.TemporaryDirectory() as folder:
                    for way, far in compared(name, head, Path(folder), cache=bool(words)):
                        found.setdefault(way, []).append(far)
            if found:
                failed |= not all(far <= TOLERANCE for each in found.values() for far in each)
                figures = [f"{np.max(found[way]):.0e}" if way in found else "" for way in WAYS]
                listed = ", ".join(f"`{head}`" for head in some)
                print(f"| {name} | {listed}{words} | {' | '.join(figures)} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
