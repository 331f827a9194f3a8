"""RiemannianLBFGS: the solver, called as torch.optim.LBFGS is."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, constrain
from constraints.optim import RiemannianLBFGS
from constraints.solve import LBFGS, minimize
from manifolds import SpecialOrthogonal, Sphere, Stiefel

F64 = torch.float64


def job() -> tuple[nn.Module, Tensor, Tensor]:
    a = torch.randn(40, 6, dtype=F64)
    model = nn.Sequential(nn.Linear(6, 6, dtype=F64), nn.Tanh(), nn.Linear(6, 2, dtype=F64))
    return constrain(model, "0.weight", SpecialOrthogonal, Riemannian(), init="haar"), a, a[:, :2].sin()


def closure_of(optimizer: Any, model: nn.Module, a: Tensor, b: Tensor) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(a) - b).square().mean()
        loss.backward()
        return loss

    return closure


def test_one_long_step_is_minimize() -> None:
    model, a, b = job()
    other = copy.deepcopy(model)
    optimizer = RiemannianLBFGS(model, max_iter=30)
    before = optimizer.step(closure_of(optimizer, model, a, b)).item()
    found = minimize(lambda: (other(a) - b).square().mean(), other, solver=LBFGS(), max_steps=30, tol=1e-7)
    assert found.history.value[0] == before
    assert found.value < 0.1 * before
    # both call the same steps; the gradients are summed in another order
    torch.testing.assert_close((model(a) - b).square().mean().item(), found.value, rtol=1e-5, atol=0)
    assert bool(SpecialOrthogonal().contains(model[0].weight.detach()))


def test_short_steps_go_on_where_the_last_one_ended() -> None:
    """Pairs last: 30 steps of one iteration are one step of 30."""
    model, a, b = job()
    other = copy.deepcopy(model)
    long, short = RiemannianLBFGS(model, max_iter=30), RiemannianLBFGS(other, max_iter=1)
    long.step(closure_of(long, model, a, b))
    for _ in range(30):
        short.step(closure_of(short, other, a, b))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_run_goes_on_from_a_saved_state() -> None:
    model, a, b = job()
    optimizer = RiemannianLBFGS(model, max_iter=5)
    optimizer.step(closure_of(optimizer, model, a, b))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    optimizer.step(closure_of(optimizer, model, a, b))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, _, _ = job()
    other.load_state_dict(saved["model"])
    resumed = RiemannianLBFGS(other, max_iter=5)
    resumed.load_state_dict(saved["optimizer"])
    resumed.step(closure_of(resumed, other, a, b))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    plain = RiemannianLBFGS(
        [{"params": [nn.Parameter(torch.ones(6, 6)) for _ in group["params"]]} for group in resumed.param_groups]
    )
    with pytest.raises(ValueError, match="Constrain the model"):
        plain.load_state_dict(saved["optimizer"])


def test_pairs_are_forgotten_where_something_else_moved_the_parameters() -> None:
    x = Sphere().random(5, dtype=F64).requires_grad_()
    c = torch.diag(torch.arange(1.0, 6.0, dtype=F64))
    optimizer = RiemannianLBFGS([{"params": [x], "manifold": Sphere}], max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = x @ c @ x
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        x.copy_(Sphere().random(5, dtype=F64))
    for _ in range(10):
        optimizer.step(closure)
    assert abs((x @ c @ x).item() - 1) < 1e-9


def test_refusals() -> None:
    layer = constrain(nn.Linear(3, 3), "weight", Stiefel, Riemannian())
    with pytest.raises(ValueError, match="without a manifold"):
        RiemannianLBFGS(layer.parameters())
    with pytest.raises(ValueError, match="max_iter"):
        RiemannianLBFGS(layer, max_iter=0)
    with pytest.raises(TypeError, match="bfloat16"):
        RiemannianLBFGS(nn.Linear(2, 2).bfloat16())
    optimizer = RiemannianLBFGS(layer)
    before = layer.weight.detach().clone()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = layer(torch.ones(3)).sum() * torch.nan
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="Nothing was changed"):
        optimizer.step(closure)
    assert torch.equal(layer.weight, before)
