"""Each rule against plain loops; which parameters it treats how; states that go on as if never stopped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.models import give_gradients, tiny
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

from tsumugu.core.errors import ConfigError
from tsumugu.training import sparse_gradients
from tsumugu.training.distributed import World
from tsumugu.training.optimizers import DEFAULTS, OptimizerConfig, build_optimizer, groups
from tsumugu.training.parallel import clip_gradients
from tsumugu.training.sparse_gradients import RowAdamW, sparse_tables
from tsumugu.training.updates import orthogonal

NAMES = tuple(DEFAULTS)
RATES = (0.01, 0.004, 0.02, 0.0, 0.003)
Array = np.ndarray
Rule = Callable[[Array, list[Array], float, float], Array]


def adamw(p: Array, grads: list[Array], scale: float, decay: float) -> Array:
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (g, rate) in enumerate(zip(grads, RATES, strict=True), 1):
        lr = rate * scale
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        p = p - lr * decay * p - lr * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
    return p


def muon(p: Array, grads: list[Array], scale: float, decay: float) -> Array:
    m = np.zeros_like(p)
    for g, rate in zip(grads, RATES, strict=True):
        m = 0.9 * m + 0.1 * g
        x = 0.9 * m + 0.1 * g
        x = x / np.sqrt((x * x).sum())
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
        lr = rate * scale
        p = p - lr * decay * p - lr * 0.2 * np.sqrt(max(p.shape)) * x
    return p


def lion(p: Array, grads: list[Array], scale: float, decay: float) -> Array:
    m = np.zeros_like(p)
    for g, rate in zip(grads, RATES, strict=True):
        p = p - rate * scale * (np.sign(0.8 * m + 0.2 * g) + decay * p)
        m = 0.9 * m + 0.1 * g
    return p


def adafactor(p: Array, grads: list[Array], scale: float, decay: float) -> Array:
    rows = columns = v = 0.0
    tiny_number = np.finfo(p.dtype).eps
    for t, (g, rate) in enumerate(zip(grads, RATES, strict=True), 1):
        lr, new = rate * scale, t**-0.8
        size = max(1e-3, np.sqrt(np.mean(p * p))) * min(lr, t**-0.5)
        p = p - lr * decay * p
        if p.ndim > 1:
            rows = (1 - new) * rows + new * (g * g).mean(1, keepdims=True)
            columns = (1 - new) * columns + new * (g * g).mean(0, keepdims=True)
            moment = rows * columns / rows.mean()
        else:
            v = (1 - new) * v + new * g * g
            moment = v
        step = g / np.sqrt(np.maximum(moment, tiny_number**2))
        p = p - size * step / max(1.0, np.sqrt(np.mean(step * step)))
    return p


def sgd(p: Array, grads: list[Array], scale: float, decay: float) -> Array:
    m = None
    for g, rate in zip(grads, RATES, strict=True):
        g = g + decay * p
        m = g if m is None else 0.9 * m + g
        p = p - rate * scale * (g + 0.9 * m)
    return p


RULES: dict[str, Rule] = {"adamw": adamw, "muon": muon, "lion": lion, "adafactor": adafactor, "sgd": sgd}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_plain_loops(name: str) -> None:
    """Five steps with changing rates, decay and rates by layer, in float64."""
    model = tiny("gpt2", "causal-lm", torch.float64)
    given: dict[str, Any] = {"betas": (0.8, 0.9), "eps": 1e-6, "momentum": 0.9, "weight_decay": 0.1}
    options = {key: value for key, value in given.items() if key in DEFAULTS[name]}
    optimizer = build_optimizer(model, OptimizerConfig(name=name, layer_decay=0.5, **options))
    names = {id(each): name for name, each in model.named_parameters()}
    before = {name: each.detach().numpy().copy() for name, each in model.named_parameters()}
    grads: dict[str, list[Array]] = {name: [] for name in before}
    for seed, rate in enumerate(RATES):
        give_gradients(model, seed)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        for each, param in model.named_parameters():
            assert param.grad is not None
            grads[each].append(param.grad.numpy().copy())
        optimizer.step()
    for group in optimizer.param_groups:
        rule = adamw if name == "muon" and not group["name"].startswith("hidden") else RULES[name]
        decay = 0.1 if group["name"].startswith(("hidden", "matrices")) else 0.0
        for param in group["params"]:
            key = names[id(param)]
            wanted = rule(before[key], grads[key], group["scale"], decay)
            assert np.abs(param.detach().numpy() - wanted).max() <= 1e-10, key
            assert np.abs(wanted - before[key]).max() > 1e-6, key


def test_gradients_of_one_parameter_alone_move_it_alone() -> None:
    for name in NAMES:
        model = tiny("llama", "causal-lm")
        before = copy.deepcopy(model.state_dict())
        model.decoder.layers[0].attention.query.weight.grad = torch.ones(8, 8)
        build_optimizer(model, OptimizerConfig(name=name)).step()
        moved = {key for key, each in model.state_dict().items() if not torch.equal(each, before[key])}
        assert moved == {"decoder.layers.0.attention.query.weight"}


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_orthogonal_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        given = torch.randn(shape, generator=generator).to(dtype)
        made = orthogonal(given)
        assert made.dtype == dtype
        left, _, right = torch.linalg.svd(given.float(), full_matrices=False)
        values = torch.linalg.svdvals(made.float())
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.25
        assert float(torch.linalg.matrix_norm(made.float() - left @ right, 2)) < 0.4
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def test_muon_is_torchs_own_where_that_computes_in_bfloat16() -> None:
    model = tiny("llama", "causal-lm", hidden_size=64, intermediate_size=96)
    twin = copy.deepcopy(model)
    ours = build_optimizer(model, OptimizerConfig(name="muon", lr=0.01))
    hidden = next(group for group in ours.param_groups if group["name"] == "hidden")
    names = {name for name, each in model.named_parameters() if any(each is one for one in hidden["params"])}
    theirs = torch.optim.Muon(
        [each for name, each in twin.named_parameters() if name in names],
        lr=0.01,
        weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
    )
    give_gradients(model, 1)
    give_gradients(twin, 1)
    before = {name: each.clone() for name, each in twin.named_parameters()}
    ours.step()
    theirs.step()
    for name in names:
        moved = float((twin.get_parameter(name) - before[name]).detach().norm())
        assert float((model.get_parameter(name) - twin.get_parameter(name)).detach().norm()) < 0.02 * moved


def kinds(family: str, head: str, name: str = "adamw", **options: Any) -> dict[str, set[str]]:
    model = tiny(family, head, **options)
    names = {id(each): name for name, each in model.named_parameters()}
    made = groups(model, OptimizerConfig(name=name))
    assert all(group["params"] for group in made)
    return {group["name"]: {names[id(each)] for each in group["params"]} for group in made}


@pytest.mark.parametrize(
    ("family", "head"),
    [("bert", "pretraining"), ("gpt2", "causal-lm"), ("llama", "causal-lm"), ("t5", "seq2seq-lm")],
)
def test_every_parameter_is_in_one_group_by_what_it_is(family: str, head: str) -> None:
    model = tiny(family, head)
    found = kinds(family, head, "muon")
    assert sorted(each for group in found.values() for each in group) == sorted(
        name for name, _ in model.named_parameters()
    )
    for name in found["vectors"]:
        assert name.endswith(".bias") or "norm" in name, name
    for name in found["embeddings"]:
        assert name.startswith(("embeddings.", "encoder_positions.", "decoder_positions.")), name
    for name in found["hidden"]:
        assert ".layers." in name, name
        assert model.get_parameter(name).dim() == 2
    if family == "bert":
        assert found["matrices"] == {"head.dense.weight", "next_sentence.weight", "pooler.dense.weight"}
    else:
        assert "matrices" not in found
    plain = kinds(family, head)
    assert plain["matrices"] == found["hidden"] | found.get("matrices", set())


def test_an_output_table_of_its_own_is_a_matrix_that_muon_leaves_alone() -> None:
    assert kinds("llama", "causal-lm", "muon", tie_embeddings=False)["matrices"] == {"head.weight"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("embeddings", [False, True])
def test_only_matrices_decay(name: str, embeddings: bool) -> None:
    model = tiny("bert", "masked-lm")
    config = OptimizerConfig(name=name, weight_decay=0.3, decay_embeddings=embeddings)
    wanted = {"hidden": 0.3, "matrices": 0.3, "embeddings": 0.3 if embeddings else 0.0, "vectors": 0.0}
    for group in build_optimizer(model, config).param_groups:
        assert group["weight_decay"] == wanted[group["name"]]
        assert group["scale"] == 1.0
        assert group["lr"] == DEFAULTS[name]["lr"]


def test_lower_layers_learn_slower() -> None:
    """The embeddings lie under all layers, heads over them; a decoder lies on its encoder."""

    def scales(family: str, head: str) -> dict[str, float]:
        model = tiny(family, head)
        names = {id(each): name for name, each in model.named_parameters()}
        optimizer = build_optimizer(model, OptimizerConfig(layer_decay=0.5, lr=1.0))
        assert len({group["name"] for group in optimizer.param_groups}) == len(optimizer.param_groups)
        assert all(group["lr"] == group["scale"] for group in optimizer.param_groups)
        return {names[id(each)]: group["scale"] for group in optimizer.param_groups for each in group["params"]}

    bert = scales("bert", "sequence-classification")
    assert bert["embeddings.token.weight"] == bert["embeddings.norm.weight"] == 0.125
    assert bert["encoder.layers.0.attention.query.bias"] == 0.25
    assert bert["encoder.layers.1.feed_forward.up.weight"] == 0.5
    assert bert["head.classifier.weight"] == 1.0
    t5 = scales("t5", "seq2seq-lm")
    assert t5["embeddings.token.weight"] == t5["decoder_positions.0.embedding.weight"] == 0.5**5
    assert [t5[f"{name}.norm.weight"] for name in ("encoder", "decoder")] == [0.125, 0.5]
    assert t5["decoder.layers.0.cross_attention.key.weight"] == 0.25


def test_frozen_parameters_are_left_out() -> None:
    model = tiny("bert", "sequence-classification")
    config = OptimizerConfig(name="muon", frozen=("embeddings.*", "encoder.layers.0.*"))
    optimizer = build_optimizer(model, config)
    trained = {id(each) for group in optimizer.param_groups for each in group["params"]}
    for name, each in model.named_parameters():
        free = not name.startswith(("embeddings.", "encoder.layers.0."))
        assert each.requires_grad is free
        assert (id(each) in trained) is free
    with pytest.raises(ConfigError, match=r"no parameter fits 'embedings\.\*'"):
        build_optimizer(model, OptimizerConfig(frozen=("embedings.*",)))
    with pytest.raises(ConfigError, match="left to train"):
        build_optimizer(model, OptimizerConfig(frozen=("*",)))
    tied = tiny("gpt2", "causal-lm")
    build_optimizer(tied, OptimizerConfig(frozen=("head.weight",)))
    assert not tied.embeddings.token.weight.requires_grad


def test_settings_that_an_optimizer_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match="lion has no eps"):
        OptimizerConfig(name="lion", eps=1e-8)
    with pytest.raises(ConfigError, match="adamw has no momentum"):
        OptimizerConfig(momentum=0.9)
    config = OptimizerConfig(name="lion", lr=3e-4)
    assert config.filled().to_dict() == config.to_dict() | {"lr": 3e-4, "weight_decay": 1.0, "betas": [0.95, 0.98]}
    assert OptimizerConfig.from_dict(config.to_dict()) == config
    assert config.replace(name="sgd", lr=None).filled().lr == 0.1


def run(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for seed in range(first, last):
        give_gradients(model, seed)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + seed) * group["scale"]
        optimizer.step()
        optimizer.zero_grad()


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_goes_on_bit_by_bit(name: str) -> None:
    config = OptimizerConfig(name=name, layer_decay=0.9)
    model = tiny("t5", "seq2seq-lm")
    optimizer = build_optimizer(model, config)
    run(model, optimizer, 0, 3)
    twin = copy.deepcopy(model)
    state = copy.deepcopy(optimizer.state_dict())
    run(model, optimizer, 3, 6)
    again = build_optimizer(twin, config)
    again.load_state_dict(state)
    assert [group["name"] for group in again.param_groups] == [group["name"] for group in optimizer.param_groups]
    run(twin, again, 3, 6)
    assert same(model, twin)
    unstopped, loaded = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert all(torch.equal(each, loaded[i][key]) for i, state in unstopped.items() for key, each in state.items())


@pytest.mark.parametrize(("read", "decay"), [(30, 0.0), (400, 0.0), (30, 0.1)])
def test_a_table_read_by_rows_moves_as_a_whole_one(read: int, decay: float) -> None:
    """Sixty steps; few rows, so many that all are moved, and with decay; a state is handed over in between."""
    whole, rows = nn.Embedding(1000, 16), nn.Embedding(1000, 16, sparse=True)
    rows.load_state_dict(whole.state_dict())
    before = whole.weight.detach().clone()
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": decay}
    wanted, ours = torch.optim.AdamW(whole.parameters(), fused=True, **options), RowAdamW(rows.parameters(), **options)
    chance = torch.Generator().manual_seed(0)
    for step in range(60):
        ids = torch.randint(read, (8,), generator=chance)
        given = torch.randn(8, 16, generator=chance)
        for table, optimizer in ((whole, wanted), (rows, ours)):
            (table(ids) * given).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert torch.equal(whole.weight, rows.weight)
        if step == 30:
            state = copy.deepcopy(ours.state_dict())
            ours = RowAdamW(rows.parameters(), **options)
            ours.load_state_dict(state)
        if step == 45:  # somebody else's rows come in
            for optimizer in (wanted, ours):
                for each in optimizer.state.values():
                    each["exp_avg"][990] = 1.0
    assert ours.state_dict()["state"][0].keys() == wanted.state_dict()["state"][0].keys()
    assert not torch.equal(whole.weight[990], before[990])


def test_only_tables_that_are_read_and_nothing_else_have_gradients_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_gradients, "LARGE", 1)
    apart, tied = tiny("bert", "sequence-classification"), tiny("gpt2", "causal-lm")
    for model, name, found in ((apart, "adamw", True), (apart, "lion", False), (tied, "adamw", False)):
        token = next(each for each in model.modules() if isinstance(each, nn.Embedding))
        optimizer = build_optimizer(model, OptimizerConfig(name=name))
        with sparse_tables(model, optimizer):
            assert token.sparse == found
        assert not token.sparse
    with sparse_tables(apart, build_optimizer(apart, OptimizerConfig(decay_embeddings=True))):
        assert not any(each.sparse for each in apart.modules() if isinstance(each, nn.Embedding))


def test_gradients_of_rows_are_measured_and_scaled_as_whole_ones() -> None:
    whole, rows = nn.Embedding(50, 4), nn.Embedding(50, 4, sparse=True)
    for table in (whole, rows):
        (table(torch.tensor([3, 7, 3])) * torch.arange(12.0).view(3, 4)).sum().backward()
    alone = World.open()
    norms = [clip_gradients(each.parameters(), 1.0, alone) for each in (whole, rows)]
    assert norms[0] == norms[1] > 1
    assert rows.weight.grad is not None
    assert rows.weight.grad.is_sparse
    assert torch.equal(rows.weight.grad.to_dense(), whole.weight.grad)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("ranks") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    for layer in model.decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def gradients_like_those_of(model: nn.Module, seed: int) -> None:
    plain = tiny("gpt2", "causal-lm")
    give_gradients(plain, seed)
    for param, one in zip(model.parameters(), plain.parameters(), strict=True):
        if hasattr(param, "device_mesh"):
            from torch.distributed.tensor import distribute_tensor

            assert one.grad is not None
            param.grad = distribute_tensor(one.grad, param.device_mesh, param.placements)
        else:
            param.grad = one.grad


@pytest.mark.parametrize(
    ("name", "wrap"),
    [(name, DistributedDataParallel) for name in NAMES] + [(name, sharded) for name in NAMES if name != "adafactor"],
)
@pytest.mark.parametrize("flat", [False, True])
def test_states_by_name_under_data_parallelism(name: str, wrap: Any, flat: bool, one_rank: None) -> None:
    """torch.distributed.checkpoint names every state by its parameter; a fresh model and optimiser go on from it."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    config = OptimizerConfig(name=name)

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = wrap(tiny("gpt2", "causal-lm"))
        return model, build_optimizer(model, config)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        gradients_like_those_of(model, seed)
        optimizer.step()

    model, optimizer = fresh()
    step(model, optimizer, 0)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    if flat:
        assert any(key.startswith("state.decoder.layers.1.attention.query.weight.") for key in state)
        assert state["param_groups.decoder.norm.weight.name"] == "vectors"
    else:
        assert "decoder.layers.1.attention.query.weight" in state["state"]
    twin, again = fresh()
    with torch.no_grad():
        for each, one in zip(twin.parameters(), model.parameters(), strict=True):
            each.copy_(one)
    set_optimizer_state_dict(twin, again, state, options=options)
    step(model, optimizer, 1)
    step(twin, again, 1)
    assert same(model, twin)
    alone = tiny("gpt2", "causal-lm")
    single = build_optimizer(alone, config)
    step(alone, single, 0)
    step(alone, single, 1)
    for param, one in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(param.full_tensor() if hasattr(param, "full_tensor") else param, one)


def test_adafactor_refuses_shards(one_rank: None) -> None:
    with pytest.raises(ConfigError, match="no sharded parameters"):
        build_optimizer(sharded(tiny("gpt2", "causal-lm")), OptimizerConfig(name="adafactor"))
