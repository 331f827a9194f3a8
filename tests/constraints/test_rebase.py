"""rebase: the base moves to the weight, the weight stays, and momentum is carried."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain, rebase
from constraints.optim import RiemannianAdam, RiemannianSGD
from constraints.rebase import Rebased
from manifolds import Euclidean, Manifold, Orthogonal, Sphere, Stiefel

X = torch.arange(30.0).reshape(3, 2, 5).sin()

OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9),
    "RiemannianAdam": lambda p: RiemannianAdam(p, lr=1e-2),
    "RiemannianSGD": lambda p: RiemannianSGD(p, lr=1e-2, momentum=0.9),
}


def network(manifold: Any = Stiefel**3, **options: Any) -> Any:
    torch.manual_seed(2)
    return constrain(nn.GRU(5, 4), "weight_hh_l0", manifold, Trivialization(**options))


def train(gru: Any, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        gru(X)[0].square().sum().backward()
        optimizer.step()


def residual(gru: Any, w: Tensor) -> float:
    return float(gru.parametrizations.weight_hh_l0[0].manifold.residual(w.detach()).max())


@pytest.mark.parametrize("manifold", [Stiefel**3, Orthogonal**3, Sphere(), Stiefel * Euclidean**2])
def test_the_base_moves_and_the_weight_stays(manifold: Manifold) -> None:
    gru = network(manifold)
    train(gru, torch.optim.Adam(gru.parameters(), lr=0.01), 5)
    held = gru.parametrizations.weight_hh_l0
    weight, base, original = gru.weight_hh_l0.detach().clone(), held[0].base_point.clone(), held.original
    assert (weight - base).abs().max() > 0.01
    assert rebase(gru) == [Rebased("weight_hh_l0", "no optimizer")]
    torch.testing.assert_close(gru.weight_hh_l0.detach(), weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(held[0].base_point, weight, rtol=0, atol=1e-6)
    assert held.original is original
    assert original.count_nonzero() == 0
    assert residual(gru, held[0].base_point) < 1e-5
    gru(X)[0].sum().backward()


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not name.startswith("Riemannian")])
def test_the_next_step_of_momentum_is_the_same_to_first_order(name: str) -> None:
    """With zero gradients the carried momentum moves the weight on, within a right angle of where it would have gone
    and at most half as far again: coordinates were short. A momentum that is dropped would move nothing."""
    gru = network()
    optimizer = OPTIMIZERS[name](gru.parameters())
    train(gru, optimizer, 3)
    other = copy.deepcopy(gru)
    follower = OPTIMIZERS[name](other.parameters())
    follower.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert rebase(gru, optimizer) == [Rebased("weight_hh_l0", "carried")]
    moves = []
    for module, trainer in ((gru, optimizer), (other, follower)):
        weight = module.weight_hh_l0.detach().clone()
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        trainer.step()
        moves.append(module.weight_hh_l0.detach() - weight)
    assert (moves[0] - moves[1]).norm() <= 0.5 * moves[1].norm()
    assert moves[1].norm() > 1e-5


def test_the_momentum_of_other_tensors_stays() -> None:
    gru = network()
    optimizer = torch.optim.Adam(gru.parameters(), lr=1e-2)
    train(gru, optimizer, 3)
    kept = optimizer.state[gru.weight_ih_l0]["exp_avg"].clone()
    rebase(gru, optimizer)
    assert torch.equal(optimizer.state[gru.weight_ih_l0]["exp_avg"], kept)


def test_where_nothing_moved_momentum_is_carried() -> None:
    gru = network()
    optimizer = torch.optim.SGD(gru.parameters(), lr=0.0, momentum=0.9)
    train(gru, optimizer, 2)
    original = gru.parametrizations.weight_hh_l0.original
    kept = optimizer.state[original]["momentum_buffer"].clone()
    assert rebase(gru, optimizer) == [Rebased("weight_hh_l0", "carried")]
    assert torch.equal(optimizer.state[original]["momentum_buffer"], kept)


@pytest.mark.parametrize("manifold", [Stiefel**3, Orthogonal**3, Sphere(), Stiefel * Euclidean**2])
@pytest.mark.parametrize("kind", [*OPTIMIZERS, "LBFGS"])
def test_after_nan_what_the_message_says_goes_on(manifold: Manifold, kind: str) -> None:
    """One NaN gradient: assign a point, rebase, and the weight moves on, on the manifold; the biases never saw it."""
    gru = network(manifold)
    held = gru.parametrizations.weight_hh_l0
    good = gru.weight_hh_l0.detach().clone()
    optimizer: Any = torch.optim.LBFGS([held.original], max_iter=2) if kind == "LBFGS" else None
    optimizer = optimizer or OPTIMIZERS[kind]([held.original])

    def step(factor: float) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = gru(X)[0].square().sum()
            loss.backward()
            held.original.grad.mul_(factor)
            return loss

        optimizer.step(closure)

    step(1.0)
    with pytest.raises(ValueError, match=r"module\.weight_hh_l0 = value, then rebase\(model, optimizer\)"):
        [step(math.nan) for _ in range(2)]  # the second reads what the first left
    gru.weight_hh_l0 = good
    assert rebase(gru, optimizer) == [Rebased("weight_hh_l0", "reset")]
    for _ in range(3):
        step(1.0)
    assert residual(gru, gru.weight_hh_l0) < 1e-5
    assert not torch.equal(gru.weight_hh_l0, good)


def test_an_optimizer_of_other_tensors_has_no_momentum_to_reset() -> None:
    gru = network()
    train(gru, torch.optim.Adam(gru.parameters()), 1)
    assert rebase(gru, torch.optim.Adam(nn.Linear(2, 2).parameters())) == [Rebased("weight_hh_l0", "no optimizer")]


def test_only_trivializations_have_a_base() -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3), "d": nn.Linear(3, 3)})
    net["d"].weight = net["c"].weight
    constrain(net, "a.weight", Stiefel, Riemannian())
    constrain(net, "b.weight", Stiefel)
    constrain(net, "[cd].weight", Stiefel)
    before = net["a"].weight.detach().clone()
    assert [done.name for done in rebase(net)] == ["b.weight", "c.weight"]
    assert torch.equal(net["a"].weight, before)


def test_nan_stops_it_before_anything_moves() -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    constrain(net, "*.weight", Stiefel)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.fill_(0.1) if p.dim() < 2 else p.copy_(torch.randn(3, 3))
        net["b"].parametrizations.weight.original[0, 0] = float("nan")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"weight of Linear.*NaN"):
        rebase(net)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_all_history_of_lbfgs_is_dropped() -> None:
    """It is of all parameters at once: a part of it would point from the old base."""
    gru = network()
    optimizer = torch.optim.LBFGS(gru.parameters(), lr=0.1, max_iter=3)
    assert optimizer.param_groups[0]["params"][0] is not gru.parametrizations.weight_hh_l0.original

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = gru(X)[0].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = closure().item()
    assert rebase(gru, optimizer) == [Rebased("weight_hh_l0", "reset")]
    assert not optimizer.state
    fresh = copy.deepcopy(gru)
    assert optimizer.step(closure).item() == pytest.approx(before, rel=1e-5)
    mine, optimizer, gru = gru, torch.optim.LBFGS(fresh.parameters(), lr=0.1, max_iter=3), fresh
    optimizer.step(closure)
    assert torch.equal(mine.weight_hh_l0, fresh.weight_hh_l0)


# By itself --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rebase_every_counts_steps(name: str) -> None:
    gru = network(rebase_every=3)
    optimizer = OPTIMIZERS[name](gru.parameters())
    held = gru.parametrizations.weight_hh_l0
    moved_at, base = [], held[0].base_point.clone()
    for step in range(1, 8):
        train(gru, optimizer, 1)
        if not torch.equal(held[0].base_point, base):
            moved_at.append(step)
            base = held[0].base_point.clone()
            assert held.original.count_nonzero() == 0
    assert moved_at == [3, 6]


def test_copies_count_for_themselves() -> None:
    gru = network(rebase_every=2)
    other = copy.deepcopy(gru)
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-2)
    mine, theirs = (m.parametrizations.weight_hh_l0[0].base_point.clone() for m in (gru, other))
    train(other, optimizer, 2)
    assert torch.equal(gru.parametrizations.weight_hh_l0[0].base_point, mine)
    assert not torch.equal(other.parametrizations.weight_hh_l0[0].base_point, theirs)


@pytest.mark.parametrize("saved", [2, 3, 4])
def test_a_resumed_run_rebases_at_the_same_steps(saved: int) -> None:
    """Bit for bit as if it had not been stopped: the count of steps is saved."""
    gru = network(rebase_every=3)
    optimizer = torch.optim.Adam(gru.parameters(), lr=1e-2)
    train(gru, optimizer, saved)
    file = io.BytesIO()
    torch.save((gru.state_dict(), optimizer.state_dict()), file)
    train(gru, optimizer, 4)
    file.seek(0)
    state, of_optimizer = torch.load(file, weights_only=True)
    other = network(rebase_every=3)
    other.load_state_dict(state)
    follower = torch.optim.Adam(other.parameters(), lr=1e-2)
    follower.load_state_dict(of_optimizer)
    train(other, follower, 4)
    for name, value in gru.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_state_dict_without_the_count_loads() -> None:
    """As one that went through another format: the count stays what it was."""
    gru = network(rebase_every=3)
    gru.load_state_dict(dict(gru.state_dict()))
    nn.Sequential(gru).load_state_dict({f"0.{name}": value for name, value in gru.state_dict().items()})
    assert gru.parametrizations.weight_hh_l0.steps == 0


def test_an_optimizer_of_other_tensors_does_not_count() -> None:
    gru = network(rebase_every=1)
    base = gru.parametrizations.weight_hh_l0[0].base_point
    linear = nn.Linear(2, 2)
    linear(torch.ones(2)).sum().backward()
    with torch.no_grad():
        gru.parametrizations.weight_hh_l0.original.normal_()
    torch.optim.SGD(linear.parameters(), lr=0.1).step()
    assert gru.parametrizations.weight_hh_l0[0].base_point is base


def test_a_run_with_rebasing_stays_on_the_manifold_and_learns() -> None:
    gru = network(rebase_every=10)
    optimizer = torch.optim.Adam(gru.parameters(), lr=1e-2)
    target = torch.randn(3, 2, 4)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (gru(X)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert residual(gru, gru.weight_hh_l0) < 1e-5
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_steps_are_counted() -> None:
    torch._dynamo.reset()
    linear: Any = constrain(nn.Linear(4, 4), "weight", Stiefel, Trivialization(rebase_every=2))
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for moved in (True, False, True, False):
        optimizer.zero_grad()
        linear(torch.ones(2, 4)).square().sum().backward()
        step()
        assert bool(linear.parametrizations.weight.original.any()) == moved


@pytest.mark.parametrize("manifold", [Stiefel**3, Orthogonal**3, Sphere(), Stiefel * Euclidean**2])
def test_a_plain_dict_resumes_at_the_same_steps(manifold: Manifold) -> None:
    """Bit for bit, also without the metadata of torch's state dict; a model that does not count has no key for it."""
    one, other = network(manifold, rebase_every=4), network(manifold, rebase_every=4)
    first, second = (torch.optim.Adam(each.parameters(), lr=1e-2) for each in (one, other))
    train(one, first, 6)
    plain = {key: value.clone() for key, value in one.state_dict().items()}
    other.load_state_dict(plain)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for gru, optimizer in ((one, first), (other, second)):
        train(gru, optimizer, 5)
    assert torch.equal(one.weight_hh_l0, other.weight_hh_l0)
    still = network(manifold)
    assert not [key for key in still.state_dict() if "extra" in key]
    still.load_state_dict(plain)
    other.load_state_dict(still.state_dict())
    other.load_state_dict(network(manifold).state_dict())
    held: Any = constrain(nn.GRU(5, 4), "weight_hh_l0", manifold, Riemannian())
    held.load_state_dict(plain)
