"""State dicts, copies and pickles of the optimizers."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, constrain
from constraints.optim import RiemannianAdam, RiemannianSGD
from constraints.optim.step.bucket import DRIFT
from constraints.optim.step.optimizer import RiemannianOptimizer
from manifolds import Euclidean, Manifold, Stiefel, retractions

KINDS: dict[str, Any] = {
    "adam": lambda groups: RiemannianAdam(groups, lr=0.05),
    "amsgrad": lambda groups: RiemannianAdam(groups, lr=0.05, amsgrad=True),
    "sgd": lambda groups: RiemannianSGD(groups, lr=0.05, momentum=0.9),
}
MIXED = Stiefel * Euclidean**2


def setup(dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    """Groups of two buckets and a free tensor: packed, mixed, batched, plain."""
    generator = torch.Generator().manual_seed(3)

    def point(manifold: Manifold, *shape: int) -> nn.Parameter:
        return nn.Parameter(manifold.random(*shape, generator=generator, dtype=torch.float64).to(dtype))

    return [
        {"params": [point(Stiefel() ** 3, 12, 4), point(Stiefel() ** 3, 12, 4)], "manifold": Stiefel**3},
        {"params": [point(MIXED, 12, 4)], "manifold": MIXED},
        {"params": [point(Stiefel(), 2, 4, 4), point(Stiefel(), 7, 3)], "manifold": Stiefel},
        {"params": [nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64).to(dtype))]},
    ]


def tensors(groups: list[dict[str, Any]]) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]


def train(optimizer: torch.optim.Optimizer, seed: int, steps: int = 6) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in tensors(optimizer.param_groups):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()


def values(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.detach() for p in tensors(optimizer.param_groups)]


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, tensor by tensor."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def saved_and_read(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_training_goes_on_from_a_file_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    """save, load with weights_only, train: the weights of training without a break; and the dict says so as well."""
    groups = setup(dtype)
    optimizer: RiemannianOptimizer = KINDS[kind](groups)
    train(optimizer, seed=0)
    again = setup(dtype)
    with torch.no_grad():
        for p, q in zip(tensors(again), tensors(groups), strict=True):
            p.copy_(q)
    state = saved_and_read(optimizer.state_dict())
    other: RiemannianOptimizer = KINDS[kind](again)
    other.load_state_dict(state)
    assert same(other.state_dict(), optimizer.state_dict())
    train(optimizer, seed=1)
    assert not same(other.state_dict(), optimizer.state_dict()), "loaded state must not be shared"
    train(other, seed=1)
    assert same(values(other), values(optimizer))
    assert same(other.state_dict(), optimizer.state_dict())


RETRACTIONS = [retractions.polar, retractions.cayley, retractions.exp]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("cut", [2, 3, 4, 7, 10])
def test_a_long_training_may_be_cut_anywhere(kind: str, retraction: Any, cut: int) -> None:
    """20 steps are n steps, save, load, 20 - n steps, bit for bit in float32: whenever the points are polished, with
    parameters that share a bucket and others, some of which get their first gradient late or miss one."""
    manifold = Stiefel(retraction=retraction)
    shapes = [(3, 24, 24), (24, 24), (30, 6), (30, 6), (6, 30)]
    starts = [manifold.random(*shape) for shape in shapes]
    # of sizes for which steps take series of different lengths, so that it matters who shares a bucket
    gradients = [[10.0 ** (2 - i) * torch.randn(shape) for i, shape in enumerate(shapes)] for _ in range(20)]
    # the third parameter starts at step 1, the fourth at step 2, the second misses step 5
    absent = {(0, 2), (0, 3), (1, 3), (5, 1)}

    def begin(at: list[Tensor]) -> RiemannianOptimizer:
        optimizer: RiemannianOptimizer = KINDS[kind](
            [{"params": [nn.Parameter(x.clone()) for x in at], "manifold": manifold}]
        )
        return optimizer

    def run(optimizer: RiemannianOptimizer, first: int, last: int) -> RiemannianOptimizer:
        for step in range(first, last):
            for i, p in enumerate(tensors(optimizer.param_groups)):
                p.grad = None if (step, i) in absent else gradients[step][i].clone()
            optimizer.step()
        return optimizer

    straight = run(begin(starts), 0, 20)
    first = run(begin(starts), 0, cut)
    second = begin(values(first))
    second.load_state_dict(saved_and_read(first.state_dict()))
    run(second, cut, 20)
    assert same(values(second), values(straight))
    assert same(second.state_dict(), straight.state_dict())


def test_a_gru_goes_on_from_a_file_bit_for_bit() -> None:
    """The same for the packed weights of an RNN in float32."""

    def build() -> tuple[nn.GRU, RiemannianOptimizer]:
        torch.manual_seed(0)
        gru = nn.GRU(5, 16, num_layers=2)
        for name in ("weight_hh_l0", "weight_hh_l1"):
            constrain(gru, name, Stiefel**3, Riemannian())
        return gru, RiemannianAdam(gru, lr=0.01)

    def run(gru: nn.GRU, optimizer: RiemannianOptimizer, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            x = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(step))
            gru(x)[0].square().mean().backward()
            optimizer.step()

    straight, optimizer = build()
    run(straight, optimizer, 0, 20)
    gru, other = build()
    run(gru, other, 0, 10)
    again, third = build()
    again.load_state_dict(saved_and_read(gru.state_dict()))
    third.load_state_dict(saved_and_read(other.state_dict()))
    run(again, third, 10, 20)
    assert same(again.state_dict(), straight.state_dict())
    assert same(third.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("nonsense", [torch.nan, -torch.inf, -1.0, 1e30])
def test_a_drift_that_is_nonsense_only_polishes(nonsense: float) -> None:
    """Read from a damaged file it must not stop the points from being polished."""
    manifold = Stiefel(retraction=retractions.cayley)
    optimizer = RiemannianAdam([{"params": [nn.Parameter(manifold.random(3, 8, 8))], "manifold": manifold}], lr=0.01)
    train(optimizer, seed=0)
    state = optimizer.state_dict()
    state["state"][0]["drift"] = torch.tensor(nonsense)
    optimizer.load_state_dict(state)
    train(optimizer, seed=1, steps=1)
    (entry,) = optimizer.state.values()
    assert 0 <= float(entry["drift"]) <= DRIFT


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_trains_as_the_original_and_alone(kind: str) -> None:
    """deepcopy and pickle carry everything, and share nothing."""
    optimizer: RiemannianOptimizer = KINDS[kind](setup())
    train(optimizer, seed=0)
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    train(optimizer, seed=1)
    for other in copies:
        assert not same(values(other), values(optimizer))
        train(other, seed=1)
        assert same(values(other), values(optimizer))


def test_a_model_and_its_optimizer_are_copied_together() -> None:
    """deepcopy((parameters, optimizer)): the copied optimizer moves the copied parameters."""
    groups = setup()
    optimizer = RiemannianAdam(groups)
    train(optimizer, seed=0)
    copied, other = copy.deepcopy((tensors(groups), optimizer))
    train(other, seed=1)
    train(optimizer, seed=1)
    assert all(p is q for p, q in zip(copied, tensors(other.param_groups), strict=True))
    assert same(values(optimizer), values(other))


def test_state_speaks_per_parameter() -> None:
    """Tensors of the shape of the parameter and one number per factor; one of each for factors of several kinds."""
    groups = setup()
    optimizer = RiemannianAdam(groups)
    train(optimizer, seed=0)
    state = optimizer.state_dict()["state"]
    assert sorted(state) == list(range(6))
    shapes = {"step": (), "drift": (), "exp_avg": (12, 4), "exp_avg_sq": (3,)}
    assert {k: tuple(v.shape) for k, v in state[0].items()} == shapes
    first = {"step": (), "drift:0": (), "exp_avg:0": (1, 4, 4), "exp_avg_sq:0": (1,)}
    shapes = {**first, "exp_avg:1": (2, 4, 4), "exp_avg_sq:1": (2, 4, 4)}
    assert {k: tuple(v.shape) for k, v in state[2].items()} == shapes
    assert tuple(state[3]["exp_avg"].shape) == (2, 4, 4)
    assert tuple(state[4]["exp_avg_sq"].shape) == ()
    assert tuple(state[5]["exp_avg_sq"].shape) == (5,)
    assert all(entry["step"] == 6 for entry in state.values())
    # the live state is the one that moves the weights, not a copy
    p = tensors(groups)[0]
    before = p.detach().clone()
    optimizer.state[p]["exp_avg"].zero_()
    for q in tensors(groups):
        q.grad = torch.zeros_like(q)
    optimizer.step()
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=1e-14)


def test_a_state_dict_holds_the_repr_of_the_manifold() -> None:
    """Loading keeps the manifolds and takes the other options; hooks of the user see what is loaded."""
    optimizer = RiemannianAdam(setup(), lr=0.05)
    train(optimizer, seed=0)
    state = optimizer.state_dict()
    assert [g["manifold"] for g in state["param_groups"]] == ["Stiefel**3", "Stiefel * Euclidean**2", "Stiefel", None]
    other = RiemannianAdam(setup(), lr=0.5)
    seen: list[Any] = []
    other.register_load_state_dict_pre_hook(lambda _, loaded: seen.append(loaded))
    other.register_load_state_dict_post_hook(lambda o: seen.append([g["manifold"] for g in o.param_groups]))
    other.load_state_dict(state)
    assert [g["lr"] for g in other.param_groups] == [0.05] * 4
    assert seen[1] == [Stiefel() ** 3, MIXED, Stiefel(), None]


def refused(state: dict[str, Any], message: str) -> None:
    """Loading says the message, and leaves the optimizer as it was."""
    optimizer = RiemannianAdam(setup(), lr=0.5)
    train(optimizer, seed=5)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert same(optimizer.state_dict(), before)
    train(optimizer, seed=6)
    other = RiemannianAdam(setup(), lr=0.5)
    train(other, seed=5)
    train(other, seed=6)
    assert same(values(optimizer), values(other))


def test_state_of_another_manifold_is_refused() -> None:
    """A ValueError that names both; nothing changes."""
    groups = setup()
    groups[2]["manifold"] = Stiefel("canonical")
    optimizer = RiemannianAdam(groups)
    train(optimizer, seed=0)
    refused(optimizer.state_dict(), r"group 2 holds its parameters on Stiefel, .* on Stiefel\(metric='canonical'\)")
    plain = torch.optim.Adam([{"params": group["params"]} for group in setup()])
    refused(plain.state_dict(), "group 0 .* is of a group on None")


def test_state_of_another_shape_is_refused() -> None:
    """A ValueError that names the parameter and the shapes; nothing changes."""
    optimizer = RiemannianAdam(setup())
    train(optimizer, seed=0)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["exp_avg_sq"] = torch.zeros(12, 4)
    refused(state, r"of parameter 0 of group 0 does not fit .* 'exp_avg_sq' has shapes \[\(12, 4\)\]")
    refused({**state, "param_groups": state["param_groups"][:2]}, "different number of parameter groups")
    for key, other in (("exp_avg", None), ("exp_avg:2", None), ("exp_avg:0", "exp_avg:1")):
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][2][key] = state["state"][2].pop("exp_avg:0")
        if other is not None:
            del state["state"][2][other]
        refused(
            state, r"of parameter 0 of group 1 does not fit .* 'exp_avg.* has shapes \[.* tensors of \[16, 32\] numbers"
        )


def test_tuples_of_older_files_are_read() -> None:
    """Where the state of a mixed product was a tuple under one key."""
    optimizer = RiemannianAdam(setup(), lr=0.05)
    train(optimizer, seed=0)
    state = copy.deepcopy(optimizer.state_dict())
    mixed = state["state"][2]
    for key in ("exp_avg", "exp_avg_sq"):
        mixed[key] = (mixed.pop(f"{key}:0"), mixed.pop(f"{key}:1"))
    mixed["drift"] = (mixed.pop("drift:0"), torch.zeros((), dtype=torch.float64))
    before, inside = copy.deepcopy(state), state["state"][2]
    other = copy.deepcopy(optimizer)
    other.load_state_dict(state)
    assert same(state, before), "what is loaded is not changed"
    assert state["state"][2] is inside
    train(optimizer, seed=1)
    train(other, seed=1)
    assert same(values(other), values(optimizer))
    assert same(other.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_state_is_a_copy(kind: str) -> None:
    """An optimizer that trains on does not touch the state that another one loaded from it."""
    optimizer: RiemannianOptimizer = KINDS[kind](setup())
    train(optimizer, seed=0)
    copied = copy.deepcopy(optimizer)
    other: RiemannianOptimizer = KINDS[kind](copied.param_groups)
    other.load_state_dict(optimizer.state_dict())
    train(optimizer, seed=1)
    train(other, seed=1)
    # the free tensor's state is torch's own, which torch does share
    assert same(values(other)[:-1], values(optimizer)[:-1])


def test_options_may_ask_for_more_state_on_the_way() -> None:
    """amsgrad or momentum that is switched on later has its state from then on, in the state dict too."""
    for optimizer, option, key in (
        (RiemannianAdam(setup(), lr=0.05), {"amsgrad": True}, "max_exp_avg_sq"),
        (RiemannianSGD(setup(), lr=0.05), {"momentum": 0.9}, "momentum_buffer"),
    ):
        train(optimizer, seed=0)
        for group in optimizer.param_groups:
            group.update(option)
        train(optimizer, seed=1)
        for entry in optimizer.state_dict()["state"].values():
            assert {key, f"{key}:0"} & entry.keys()
        other = copy.deepcopy(optimizer)
        train(optimizer, seed=2)
        train(other, seed=2)
        assert same(values(other), values(optimizer))
