"""Where a manifold, a gradient or a Hessian has no number: it is said, and keeps no other problem."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, constrain, minimize
from constraints.optim import RiemannianLBFGS
from constraints.solve import (
    LBFGS,
    ConjugateGradient,
    GradientDescent,
    Solver,
    TrustRegion,
)
from manifolds import Correlation, Euclidean, Manifold, Orthogonal, Sphere, Stiefel

F64 = torch.float64
SOLVERS: list[Solver] = [TrustRegion(), LBFGS(), ConjugateGradient(), GradientDescent()]


def test_a_start_that_is_a_minimum_is_not_called_a_saddle() -> None:
    found = minimize(lambda x: (x - 1).square().sum(), torch.ones(3, dtype=F64), Euclidean)
    assert found.converged
    assert found.curvature > 0
    assert "saddle" not in found.reason


def test_a_point_of_no_freedom_is_its_own_answer() -> None:
    found = minimize(lambda x: x.sum(), torch.ones(1, 1, dtype=F64), Orthogonal)
    assert (found.converged, found.steps, found.value) == (True, 0, 1)


def test_curvature_that_is_not_finite_is_nan() -> None:
    """In a batch those of the others are known: with |x|^1.5 beside them, whose second derivative at 0 is infinite."""
    x0 = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]], dtype=F64)

    def f(x: Tensor) -> Tensor:
        return torch.stack([x[0].square().sum() / 2, x[1].abs().pow(1.5).sum(), x[2].square().sum() / 2])

    found = minimize(f, x0, Euclidean, batched=True)
    assert found.converged.all()
    assert found.curvature.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found.curvature[[0, 2]], torch.ones(2, dtype=F64))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_random_f_is_told(solver: Solver) -> None:
    generator = torch.Generator().manual_seed(0)

    def f(x: Tensor) -> Tensor:
        return (x * (1 + 0.3 * torch.randn(4, dtype=F64, generator=generator))).square().sum() + x.sum()

    found = minimize(f, torch.ones(4, dtype=F64), Euclidean, solver=solver)
    assert not found.converged
    assert "another value each time" in found.reason


def test_a_callback_may_say_true_as_a_tensor() -> None:
    x0 = Sphere().random(3, 4, dtype=F64)
    for said in (torch.tensor(True), torch.tensor([True]).numpy()[0]):
        found = minimize(lambda x: x[:, 0], x0, Sphere, batched=True, callback=lambda point, said=said: said)
        assert "stopped by the callback" in found.reason
    assert minimize(lambda x: x[0], x0[0], Sphere, callback=lambda point: torch.ones(2)).converged


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_gradient_that_is_not_finite_shortens_the_step(solver: Solver) -> None:
    """At x <= 0.2 the value of x^2 is right, and its gradient NaN: no solver goes there."""

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square().sum()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            (x,) = ctx.saved_tensors
            return 2 * g * x / (x > 0.2)

    found = minimize(Half.apply, torch.tensor([1.0], dtype=F64), Euclidean, solver=solver)
    assert not found.converged
    assert math.isfinite(found.gradient_norm)
    assert 0.2 < found.x < 0.7


@dataclass(frozen=True)
class Edge(Manifold):
    """R^n, whose retraction and transport raise beyond |x| = 10, as Cholesky does on sets with an edge."""

    ndim = 1

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        y = x + v
        if bool((y.norm(dim=-1) > 10).any()):
            raise torch.linalg.LinAlgError("over the edge")  # type: ignore[attr-defined]
        return y

    def residual(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[:-1], dtype=x.dtype)

    def random(self, *shape: Any, **options: Any) -> Tensor:
        return torch.zeros(*shape, dtype=F64)

    def dim(self, shape: Any) -> int:
        return math.prod(shape)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_problem_over_the_edge_does_not_keep_the_others(solver: Solver) -> None:
    """Steps of the first problem leave the set at first; the others go as they do alone."""
    scale = torch.tensor([1e3, 1.0, 1.0], dtype=F64)
    target = torch.tensor([[9.9, 0.0], [1.0, 2.0], [3.0, 1.0]], dtype=F64)
    stiff = torch.tensor([1.0, 0.2], dtype=F64)

    def f(x: Tensor) -> Tensor:
        return scale * (stiff * (x - target).square()).sum(1)

    x0 = torch.tensor([[0.0, 9.0], [0.0, 0.0], [0.0, 0.0]], dtype=F64)
    together = minimize(f, x0, Edge(), solver=solver, batched=True, max_steps=2000)
    for i in (1, 2):
        alone = minimize(lambda x, i=i: (stiff * (x - target[i]).square()).sum(), x0[i], Edge(), solver=solver)
        assert together.converged[i]
        assert together.steps[i] == alone.steps
        torch.testing.assert_close(together.x[i], alone.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_an_infimum_at_the_edge_is_no_exception(solver: Solver) -> None:
    """The nearest matrix of unit diagonal is no point of the open set of correlations."""
    a = torch.tensor([[1.0, 2.0, -2.0], [2.0, 1.0, 2.0], [-2.0, 2.0, 1.0]], dtype=F64)
    found = minimize(lambda x: (x - a).square().sum(), (3, 3), Correlation, solver=solver, dtype=F64, max_steps=200)
    assert math.isfinite(found.value)
    assert bool(Correlation().contains(found.x))


def test_lbfgs_keeps_the_weights_where_the_closure_raises() -> None:
    model = constrain(nn.Linear(3, 3, dtype=F64), "weight", Stiefel, Riemannian())
    before, calls = [p.detach().clone() for p in model.parameters()], 0
    optimizer = RiemannianLBFGS(model)

    def closure() -> Tensor:
        nonlocal calls
        optimizer.zero_grad()
        calls += 1
        if calls == 3:
            raise KeyError("data")
        loss = (model(torch.eye(3, dtype=F64)) - 2).square().sum()
        loss.backward()
        return loss

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
