"""Grids and GPTQ against the package that defines the blocks, and against the method written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from tests.engines.conftest import Build

from tsumugu.core.errors import InputError
from tsumugu.models.decoder import Decoder
from tsumugu.quantization.calibrate import calibrated, matrices
from tsumugu.quantization.gptq import DAMPING, gptq
from tsumugu.quantization.grids import BLOCK, GRIDS, nearest

KINDS = sorted(GRIDS)


def uneven(rows: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with long tails, and second moments of inputs that go together."""
    generator = np.random.default_rng(seed)
    matrix = torch.from_numpy(generator.standard_t(5, (rows, width)).astype(np.float32))
    mixed = generator.normal(size=(width, width)) * generator.lognormal(size=width)
    inputs = torch.from_numpy((generator.normal(size=(4 * width, width)) @ mixed).astype(np.float32))
    return matrix, inputs.T @ inputs


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_those_of_gguf(kind: str) -> None:
    matrix, _ = uneven(24, 96)
    matrix[3, 32:64] = 0
    matrix[5, :32] = 2.5
    rounded = nearest(matrix, GRIDS[kind])
    decoded = dequantize(rounded.blocks().numpy(), GGMLQuantizationType[kind])
    assert np.abs(decoded - rounded.values().numpy()).max() <= 1e-6
    assert torch.equal(rounded.values()[3, 32:64], torch.zeros(32))


@pytest.mark.parametrize(("kind", "share"), [("Q8_0", 1.001), ("Q4_0", 0.95), ("Q4_1", 0.9)])
def test_the_search_for_a_grid_loses_less_than_the_plain_rule(kind: str, share: float) -> None:
    matrix, _ = uneven(64, 256)
    plain = dequantize(quantize(matrix.numpy(), GGMLQuantizationType[kind]), GGMLQuantizationType[kind])
    lost = float((nearest(matrix, GRIDS[kind]).values() - matrix).square().sum())
    assert lost <= share * float(np.square(plain - matrix.numpy()).sum())


def test_the_search_finds_nearly_the_best_scale() -> None:
    matrix, _ = uneven(16, 256)
    blocks = matrix.reshape(-1, BLOCK)
    best = torch.full((len(blocks),), torch.inf)
    for share in torch.linspace(-0.2, 0.2, 1000):  # of the largest number, and what regression makes of it
        scale = blocks.abs().amax(-1, keepdim=True) * share
        numbers = (blocks / scale).round().clamp(-8, 7)
        scale = ((numbers * blocks).sum(-1) / numbers.square().sum(-1)).half().float()[:, None]
        best = torch.minimum(best, (numbers * scale - blocks).square().sum(-1))
    lost = (nearest(matrix, GRIDS["Q4_0"]).values() - matrix).square().sum()
    assert float(lost) <= 1.01 * float(best.sum())


def plain_gptq(matrix: torch.Tensor, moments: torch.Tensor, kind: str) -> np.ndarray:
    """One column after the other, and after each the inverse of what is left: the paper's equations 2 and 3."""
    grid, width = GRIDS[kind], matrix.shape[1]
    full = moments.double().numpy().copy()
    importance = np.diag(full).copy()
    full += DAMPING * importance.mean() * np.eye(width)
    order = np.argsort(-importance, kind="stable")
    start = nearest(matrix, grid, torch.from_numpy(np.diag(full).copy()))
    scales, mins = start.scales.double().numpy(), start.mins.double().numpy()
    rest, numbers = matrix.double().numpy().copy(), np.zeros(matrix.shape)
    for at, column in enumerate(order):
        left = order[at:]
        inverse = np.linalg.inv(full[np.ix_(left, left)])
        scale, least = scales[:, column // BLOCK], mins[:, column // BLOCK]
        number = np.clip(np.rint((rest[:, column] - least) / scale), grid.low, grid.high)
        numbers[:, column] = number
        lost = (rest[:, column] - (number * scale + least)) / inverse[0, 0]
        rest[:, left] -= lost[:, None] * inverse[0]
    return numbers


@pytest.mark.parametrize("kind", KINDS)
def test_gptq_is_the_papers(kind: str) -> None:
    matrix, moments = uneven(8, 160, seed=1)
    assert np.array_equal(gptq(matrix, moments, GRIDS[kind]).numbers.numpy(), plain_gptq(matrix, moments, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_outputs_change_less_than_by_the_nearest(kind: str, seed: int) -> None:
    matrix, moments = uneven(48, 192, seed)

    def lost(values: torch.Tensor) -> float:
        return float(torch.trace((values - matrix) @ moments @ (values - matrix).T))

    assert lost(gptq(matrix, moments, GRIDS[kind]).values()) < 0.6 * lost(nearest(matrix, GRIDS[kind]).values())


def test_inputs_that_never_come_are_rounded_to_the_nearest() -> None:
    matrix, moments = uneven(8, 64)
    moments[40] = moments[:, 40] = 0
    rounded = gptq(matrix, moments, GRIDS["Q4_0"])
    scale = rounded.scales[:, 1].float()
    assert torch.equal(rounded.numbers[:, 40].float(), (matrix[:, 40] / scale).round().clamp(-8, 7))


def test_what_no_grid_holds() -> None:
    with pytest.raises(InputError, match="rows of 40 do not fill blocks of 32"):
        nearest(torch.zeros(2, 40), GRIDS["Q4_0"])
    for value in (1e9, float("nan"), float("inf")):
        with pytest.raises(InputError, match="values that Q4_0 cannot hold"):
            nearest(torch.full((2, 32), value), GRIDS["Q4_0"])
    with pytest.raises(InputError, match="not finite"):
        gptq(torch.zeros(2, 32), torch.full((32, 32), torch.nan), GRIDS["Q4_0"])


def seen(model: Decoder, name: str, windows: torch.Tensor) -> torch.Tensor:
    """What enters a module while the whole model reads, as second moments."""
    inputs: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    with torch.no_grad():
        model(windows)
    hook.remove()
    flat = inputs[0].flatten(0, -2)
    return flat.T @ flat


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_each_layer_is_rounded_by_what_rounded_layers_hand_it(family: str, build: Build) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    more = {"gemma3": {"head_dim": 16, "query_scale": 16.0, "window": 8, "num_layers": 2}}
    windows = torch.randint(0, 260, (20, 32), generator=torch.Generator().manual_seed(0))
    before = build(family, **sizes, **more.get(family, {})).double()
    model = build(family, **sizes, **more.get(family, {})).double()
    found = calibrated(model, windows, GRIDS["Q4_1"])
    assert list(found) == [
        f"decoder.layers.{index}.{name}" for index in (0, 1) for name, _ in matrices(model.decoder.layers[index])
    ]
    for index, layer in enumerate(before.decoder.layers):
        expected = {}
        for name, module in matrices(layer):
            sums = seen(before, f"decoder.layers.{index}.{name}", windows)
            expected[name] = gptq(module.weight.detach(), sums, GRIDS["Q4_1"])
        for name, module in matrices(layer):
            ours = found[f"decoder.layers.{index}.{name}"]
            assert torch.equal(ours.numbers, expected[name].numbers)
            weight = model.decoder.layers[index].get_submodule(name).weight
            assert torch.equal(weight, ours.values().double())
            with torch.no_grad():
                module.weight.copy_(ours.values())
