"""Every way in which a solver ends without an answer is said: as an error before it starts, or in the result."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from constraints import minimize
from constraints.solve import (
    LBFGS,
    ConjugateGradient,
    GradientDescent,
    Solver,
    TrustRegion,
)
from manifolds import Euclidean, Orthogonal, Sphere, Stiefel

F64 = torch.float64
SOLVERS: list[Solver] = [TrustRegion(), LBFGS(), ConjugateGradient(), GradientDescent()]
start = Sphere().random(4, dtype=F64)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_the_budget_is_kept_and_said(solver: Solver) -> None:
    c = torch.randn(30, 30, dtype=F64)
    c = c + c.T

    def slow(x: Tensor) -> Tensor:
        time.sleep(0.01)
        return x @ c @ x

    two = minimize(lambda x: x @ c @ x, (30,), Sphere, solver=solver, max_steps=2, dtype=F64)
    assert (two.converged, two.steps) == (False, 2)
    assert two.reason.startswith("Not converged: max_steps=2 reached")
    brief = minimize(slow, (30,), Sphere, solver=solver, max_seconds=0.05, dtype=F64, tol=1e-14)
    assert not brief.converged
    assert brief.reason.startswith("Not converged: max_seconds=0.05 reached")


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_time_that_runs_out_within_a_search_is_said(solver: Solver, batched: bool) -> None:
    """Of a function that is lower nowhere: it is not said of it that no step makes it smaller."""

    def slow(x: Tensor) -> Tensor:
        time.sleep(0.02)
        return x.square().sum(-1) + torch.where(x.detach().sum(-1) == 2, 0.0, 1e3)

    x0 = torch.ones(3, 2, dtype=F64) if batched else torch.ones(2, dtype=F64)
    found = minimize(slow, x0, Euclidean(ndim=1), solver=solver, max_seconds=0.03, batched=batched)
    assert "ot converged: max_seconds=0.03 reached" in found.reason


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_nan_at_the_start(solver: Solver) -> None:
    found = minimize(lambda x: (x.sum() - 10).sqrt(), start, Sphere, solver=solver)
    assert not found.converged
    assert "NaN" in found.reason
    torch.testing.assert_close(found.x, start)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_nan_on_the_way_shortens_the_step(solver: Solver) -> None:
    """log x - x has its domain on one side: a step over the edge is shortened, and the answer found."""
    found = minimize(
        lambda x: (100 * x - x.log()).sum(), torch.full((3,), 5.0, dtype=F64), Euclidean, solver=solver, max_steps=2000
    )
    assert found.converged, found.reason
    torch.testing.assert_close(found.x, torch.full((3,), 0.01, dtype=F64))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_discontinuous_f(solver: Solver) -> None:
    """It falls everywhere, but jumps up by 2 before its minimum: no solver converges, and none runs forever."""
    found = minimize(
        lambda x: (x[0] - 1).square() + 2 * (x[0].detach() > 0.5),
        torch.tensor([0.0], dtype=F64),
        Euclidean,
        solver=solver,
    )
    assert not found.converged
    assert found.reason.startswith("Not converged")
    assert found.value <= 1
    assert found.x[0] <= 0.5


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_gradient_of_the_wrong_sign(solver: Solver) -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square().sum()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            return -2 * g * ctx.saved_tensors[0]

    found = minimize(Wrong.apply, torch.ones(3, dtype=F64), Euclidean, solver=solver)
    assert not found.converged
    assert "check_gradient" in found.reason
    assert found.value == 3


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_hessian_of_deficient_rank(solver: Solver) -> None:
    """x^4 in some directions and nothing in others: slower, but there."""
    found = minimize(lambda x: x[:2].pow(4).sum(), torch.ones(5, dtype=F64), Euclidean, solver=solver, max_steps=3000)
    assert found.converged, found.reason
    assert found.value < 1e-6
    assert found.x[2:].tolist() == [1, 1, 1]


def test_a_saddle_is_left() -> None:
    """The middle eigenvector is a saddle, the last a maximum: the gradient vanishes there exactly."""
    c = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64))
    for i in (1, 2, 3):
        found = minimize(lambda x: x @ c @ x, torch.eye(4, dtype=F64)[i], Sphere)
        assert found.converged
        assert abs(found.value - 1) < 1e-9
        # the second derivative along the second eigenvector
        assert abs(found.curvature - 2) < 1e-6
    stays = minimize(lambda x: x @ c @ x, torch.eye(4, dtype=F64)[1], Sphere, solver=TrustRegion(saddle_products=0))
    assert (stays.converged, stays.steps, stays.curvature) == (True, 0, None)


@pytest.mark.parametrize("solver", SOLVERS[1:], ids=repr)
def test_a_start_without_a_gradient_is_said(solver: Solver) -> None:
    c = torch.diag(torch.tensor([1.0, 2.0], dtype=F64))
    found = minimize(lambda x: x @ c @ x, torch.eye(2, dtype=F64)[1], Sphere, solver=solver)
    assert found.converged
    assert "at the start" in found.reason


SEEDS = {"seed": st.integers(0, 2**31), "which": st.integers(0, 2), "place": st.integers(0, 3)}


@settings(max_examples=50)
@given(**SEEDS)
def test_random_smooth_functions_end_at_a_first_order_point_or_say_why(seed: int, which: int, place: int) -> None:
    check_one_function(seed, which, place)


@pytest.mark.slow
@settings(max_examples=200)
@given(**SEEDS)
def test_two_hundred_random_smooth_functions(seed: int, which: int, place: int) -> None:
    check_one_function(seed, which, place)


def check_one_function(seed: int, which: int, place: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    manifold, shape = [(Sphere(), (4,)), (Stiefel(), (4, 2)), (Orthogonal(), (3, 3)), (Stiefel("canonical"), (4, 2))][
        place
    ]
    a, b = (torch.randn(5, math.prod(shape), dtype=F64, generator=generator) for _ in range(2))

    def f(x: Tensor) -> Tensor:
        y = a @ x.flatten()
        return [y.sin(), y.tanh() * (b @ x.flatten()), (y * y + 1).log() - y][which].sum()

    solver = SOLVERS[seed % 4]
    found = minimize(f, shape, manifold, solver=solver, generator=generator, dtype=F64)
    assert found.converged == (found.gradient_norm <= 1e-6)
    assert found.reason.startswith("Converged" if found.converged else "Not converged")
    assert found.history.value[-1] <= found.history.value[0]
    assert bool(manifold.contains(found.x))
    leaf = found.x.clone().requires_grad_()
    g = manifold.gradient(found.x, torch.autograd.grad(f(leaf), leaf)[0])
    assert abs(manifold.norm(found.x, g).item() - found.gradient_norm) < 1e-9
