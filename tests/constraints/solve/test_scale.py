"""How long steps are: as the point is, and a direction of conjugate gradients is tangent where the point has moved."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from constraints import minimize
from constraints.solve import (
    LBFGS,
    ConjugateGradient,
    GradientDescent,
    Result,
    Solver,
    TrustRegion,
    check_gradient,
    check_hessian,
    hessians,
)
from constraints.solve.piece import Piece
from constraints.solve.points import points_of
from constraints.solve.problem import Evaluation
from constraints.solve.solver import start
from constraints.solve.space import Space
from constraints.solve.starts import Starts
from manifolds import Euclidean, FixedRank, Manifold, Orthogonal, PositiveDefinite, Simplex, Sphere, Stiefel, Symmetric

F64 = torch.float64

CURVED: list[tuple[Manifold, tuple[int, ...], float]] = [
    (Stiefel(), (7, 3), math.sqrt(3)),
    (Stiefel(), (3, 7), math.sqrt(3)),
    (Orthogonal(), (5, 5), math.sqrt(5)),
    (Stiefel**2, (8, 4), math.sqrt(8)),
    (Sphere(radius=0.01), (5,), 0.01),
]
OTHERS: list[tuple[Manifold, tuple[int, ...]]] = [
    (Euclidean(), (4,)),
    (Symmetric(), (3, 3)),
    (PositiveDefinite(), (3, 3)),
    (Simplex(), (4,)),
    (Stiefel("canonical"), (7, 3)),
    (Euclidean() * Sphere(), (2, 4)),
    (Euclidean() ** 2, (2, 4)),
]  # fmt: skip


def space_of(*parts: tuple[Manifold, tuple[int, ...]], batched: bool = False) -> tuple[Space, Tensor]:
    lead = (2,) if batched else ()
    space = Space([Piece(str(i), m, shape, F64) for i, (m, shape) in enumerate(parts)], batched)
    return space, space.join([m.random((*lead, *shape), dtype=F64) for m, shape in parts])


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(("manifold", "shape", "size"), CURVED, ids=str)
def test_a_first_step_is_as_long_as_a_point_that_turns(
    manifold: Manifold, shape: tuple[int, ...], size: float, batched: bool
) -> None:
    space, x = space_of((manifold, shape), batched=batched)
    found = torch.as_tensor(space.stride(x), dtype=F64)
    torch.testing.assert_close(found, torch.full([2, 1] if batched else [], size, dtype=F64))
    with_free, x = space_of((manifold, shape), (Euclidean(), (4,)), batched=batched)
    assert bool((torch.as_tensor(with_free.stride(x)) == 1).all())


@pytest.mark.parametrize(("manifold", "shape"), OTHERS, ids=str)
def test_elsewhere_it_has_length_1(manifold: Manifold, shape: tuple[int, ...]) -> None:
    space, x = space_of((manifold, shape))
    assert space.stride(x) == 1


SOLVERS: list[Solver] = [
    LBFGS(),
    ConjugateGradient(),
    GradientDescent(),
]
REGIONS = [TrustRegion(), TrustRegion(hessian=hessians.finite_difference)]


@pytest.mark.parametrize("solver", SOLVERS + REGIONS, ids=repr)
@pytest.mark.parametrize("power", [-30, 10])
def test_no_solver_depends_on_the_unit_of_length(solver: Solver, power: int) -> None:
    """A power of 2 rounds nothing: all numbers are those of the unit sphere, and as they are for matrices of a rank.

    Trust regions stop inside at |grad|^(1 + theta), which has a unit: they may need a few steps more.
    """
    a, b, x0 = torch.randn(8, 8, dtype=F64), torch.randn(8, dtype=F64), Sphere().random(8, dtype=F64)
    a, r = (a + a.T) / 2, 2.0**power

    def found(f: Callable[[Tensor], Tensor], r: float, x0: Tensor, manifold: Manifold) -> Result:
        return minimize(lambda x: f(x / r), r * x0, manifold, solver=solver, tol=1e-5 / r, max_steps=60)

    one, other = (found(lambda x: x @ a @ x + b @ x, s, x0, Sphere(radius=s)) for s in (1.0, r))
    if solver in REGIONS:
        assert one.converged
        assert other.converged
        assert other.steps <= one.steps + 4
        return
    assert other.steps == one.steps
    torch.testing.assert_close(other.history.value, one.history.value, rtol=1e-12, atol=0)
    target, x0 = torch.randn(6, 5, dtype=F64), FixedRank(2).random(6, 5, dtype=F64)
    one, other = (found(lambda x: (x - target).square().sum(), s, x0, FixedRank(2)) for s in (1.0, r))
    assert other.steps == one.steps
    torch.testing.assert_close(other.value, one.value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("power", [-20, 0, 20])
def test_saddles_are_left_and_derivatives_checked_in_any_unit(power: int) -> None:
    tol, a, r = 1e-4, torch.diag(torch.arange(6.0, dtype=F64)), 2.0**power
    for dtype, unit in [(F64, 1.0), (F64, 2.0**-30), (torch.float32, 1.0)]:  # of f, too
        saddle, b, far = r * torch.eye(6, dtype=dtype)[3], a.to(dtype), tol * unit / r
        found = minimize(lambda x: unit * ((x / r) @ b @ (x / r)), saddle, Sphere(radius=r), tol=far)  # noqa: B023
        assert found.converged
        assert abs(found.value) < 1e-5 * unit
    x = Sphere(radius=r).random(6, dtype=F64)
    assert abs(check_gradient(lambda x: (x / r).exp().sum(), x, Sphere(radius=r)).slope - 2) < 0.2
    assert abs(check_hessian(lambda x: (x / r).exp().sum(), x, Sphere(radius=r)).slope - 3) < 0.2
    # autograd does not see the last term
    assert not check_gradient(lambda x: (x / r).exp().sum() + (x.detach() / r).sum(), x, Sphere(radius=r)).ok


@pytest.mark.parametrize(("manifold", "shape"), [(Stiefel(), (12, 3)), (Sphere(radius=0.01), (12,))], ids=str)
def test_a_direction_is_tangent_where_the_point_has_moved(manifold: Manifold, shape: tuple[int, ...]) -> None:
    """Its normal part is about as small a part of it as the way since it was fastened is of |x|."""
    a = torch.randn(12, 12, dtype=F64)
    a, size = a + a.T, manifold.random(*shape, dtype=F64).norm().item()
    begin = Starts(points_of(manifold.random(*shape, dtype=F64), manifold), False, 1, False, None)
    problem, kept = begin.problem(lambda x: (x * (a @ x)).sum() / size**2), 0
    with torch.no_grad():
        state = start(problem, begin.rows)
        for _ in range(25):
            state = ConjugateGradient().advance(problem, state, True)
            d, away = state.memory["d"], state.memory["away"]
            normal = d - problem.space.fasten(state.x, d)
            kept += away > 0
            assert away < 0.05
            # of what d is made of each was tangent at a point of the way, whose curvature is 1 / |x| or, on Stiefel, 1
            longest = d.norm() + state.norm
            assert normal.norm() <= (10 * away + 1e-12) * longest
    assert kept


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_wrong_derivatives_are_seen_near_0(scale: float) -> None:
    target, x = torch.randn(6, 5, dtype=F64), scale * FixedRank(2).random(6, 5, dtype=F64)

    def f(x: Tensor) -> Tensor:
        return (x - target).square().sum()

    def twice(at: Evaluation) -> Callable[[Tensor], Tensor]:
        times = hessians.exact(at)
        return lambda v: 2 * times(v)

    assert check_gradient(f, x, FixedRank(2)).ok
    assert check_hessian(f, x, FixedRank(2)).ok
    assert not check_gradient(lambda x: f(x) + (target * x.detach()).sum(), x, FixedRank(2)).ok
    assert not check_hessian(f, x, FixedRank(2), hessian=twice).ok


def test_a_check_that_sees_rounding_alone_is_not_passed() -> None:
    a, x = torch.randn(5, dtype=F64), Sphere().random(5, dtype=F64)
    for check in (check_gradient, check_hessian):
        assert not check(lambda x: 1 + 1e-18 * (a * x).sum(), x, Sphere).ok
    assert check_gradient(lambda x: (a * x).sum(), a, Euclidean(ndim=1)).ok


def test_directions_of_several_points_are_fastened_at_every_step() -> None:
    """|x| of all of them says nothing of the small one."""
    space, _ = space_of((Sphere(radius=1e4), (5,)), (Sphere(), (5,)))
    assert space.is_curved
    assert not space.turns_as_one
