"""First weights: their spread for every family, what they depend on, and what an untrained model knows (nothing)."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.training.models import SIZES

from tsumugu.core.registry import FAMILIES
from tsumugu.models.base import Model
from tsumugu.training.initialization import initialize, normal

WIDE = {
    "bert": {"intermediate_size": 160},
    "roberta": {"intermediate_size": 160, "num_heads": 4, "num_layers": 3},
    "gpt2": {},
    "gpt3": {"num_heads": 4, "num_layers": 3},
    "megatron": {"num_heads": 4, "num_layers": 3},
    "llama": {"intermediate_size": 160, "tie_embeddings": False},
    "t5": {"intermediate_size": 160, "head_dim": 24},
    "t5 untied": {"intermediate_size": 160, "head_dim": 24, "tie_embeddings": False, "scale_outputs": False},
}
GOLDEN = [[-0.06521280854940414, 2.207807779312134], [0.601606011390686, 0.06703191250562668]]
HEADS = {"bert": "masked-lm", "roberta": "masked-lm", "t5": "seq2seq-lm"}


def wide(case: str) -> Model:
    """A model whose smallest matrices are large enough to measure."""
    family = case.split()[0]
    sizes = {"vocab_size": 300, "hidden_size": 96, **SIZES.get(family, {}), **WIDE[case]}
    if family != "t5":
        sizes["max_positions"] = 66
    known = FAMILIES[family]
    model: Model = known.build(known.config_class(**sizes), HEADS.get(family, "causal-lm"))
    return model.eval()


def wanted(model: Model, name: str) -> float:
    """What the papers and released codes say, written out again."""
    config, leaf = model.config, name.split(".")[-2]
    match model.family.name:
        case "gpt2" | "gpt3" | "megatron":
            return 0.02 / math.sqrt(2 * config.num_layers) if leaf in ("output", "down") else 0.02
        case "t5":
            inner = config.num_heads * config.head_dim
            reads = {"output": inner, "down": config.intermediate_size, "query": 96 * config.head_dim, "token": 1}
            return reads.get(leaf, 96) ** -0.5
    return 0.02


@pytest.mark.parametrize("case", WIDE)
def test_every_weight_is_drawn_as_the_family_says(case: str) -> None:
    model = wide(case)
    initialize(model, seed=3)
    for name, each in model.named_parameters():
        if each.dim() == 1:
            assert (each == (1 if name.endswith("norm.weight") else 0)).all(), name
            continue
        each, spread = each.detach().double(), wanted(model, name)
        error = 5 / math.sqrt(each.numel())
        assert float(each.std() / spread) == pytest.approx(1, abs=error), name
        assert abs(float(each.mean())) < error * spread, name
        assert float(((each / spread) ** 4).mean()) == pytest.approx(3, abs=20 * error), name
    for name, source in model.tied.items():
        assert model.get_parameter(name) is model.get_parameter(source)


@pytest.mark.parametrize("case", WIDE)
@torch.no_grad()
def test_an_untrained_model_gives_every_token_the_same_chance(case: str) -> None:
    model = wide(case)
    initialize(model, seed=0)
    ids = torch.randint(300, (4, 32), generator=torch.Generator().manual_seed(0))
    loss = float(model(input_ids=ids, labels=ids.flip(0)).loss)
    # Logits of unit variance cost T5 half a nat; a table shared with the input costs as much, by expecting that again.
    excess = {"t5": 1.05, "t5 untied": 0.5}.get(case, 0.0)
    assert loss == pytest.approx(math.log(300) + excess, abs=0.15)


def test_the_same_seed_gives_the_same_weights_whatever_else_there_is() -> None:
    """Not the layers before, nor the head, the type of numbers, threads, or what torch drew before."""
    known = FAMILIES["llama"]
    sizes = {"vocab_size": 24, "hidden_size": 8} | SIZES["llama"]
    first = known.build(known.config_class(**sizes), "causal-lm")
    initialize(first, seed=7)
    torch.manual_seed(99)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    deeper = known.build(known.config_class(**(sizes | {"num_layers": 3})), "sequence-classification")
    initialize(deeper, seed=7)
    torch.set_num_threads(threads)
    again = dict(deeper.named_parameters())
    for name, each in first.named_parameters():
        assert torch.equal(each, again[name]), name
    narrow = known.build(known.config_class(**sizes), "causal-lm").to(torch.bfloat16)
    initialize(narrow, seed=7)
    assert all(torch.equal(each, again[name].bfloat16()) for name, each in narrow.named_parameters())
    initialize(deeper, seed=8)
    assert not any(torch.equal(each, again[name]) for name, each in first.named_parameters() if each.dim() > 1)


def test_no_two_matrices_begin_alike() -> None:
    model = wide("gpt2")
    initialize(model, seed=0)
    starts = [tuple(each.flatten()[:4].tolist()) for each in model.parameters() if each.dim() > 1]
    assert len(set(starts)) == len(starts)


def test_the_numbers_are_these_on_every_machine() -> None:
    """Also with the plainest instructions that torch knows; a change here changes what every seed stands for."""
    code = "from tsumugu.training.initialization import normal; print(normal(0, 'head.weight', (2, 2)).tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"ATEN_CPU_CAPABILITY": "default", "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    here = normal(0, "head.weight", (2, 2)).tolist()
    assert done.stdout.strip() == str(here)
    assert here == GOLDEN
