"""scipy as the oracle: the same problems, minimized over a fixed chart of the manifold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import optimize
from torch import Tensor

from constraints.solve import LBFGS, ConjugateGradient, GradientDescent, Solver, TrustRegion, minimize
from manifolds import Manifold, Orthogonal, PositiveDefinite, SpecialOrthogonal, Sphere, Stiefel

F64 = torch.float64
SETS: list[tuple[Manifold, tuple[int, ...]]] = [
    (Sphere(), (5,)),
    (Stiefel(), (5, 2)),
    (Stiefel("canonical"), (5, 2)),
    (SpecialOrthogonal(), (3, 3)),
    (PositiveDefinite(), (3, 3)),
]


def charted(f: Callable[[Tensor], Tensor], manifold: Manifold, x: Tensor) -> float:
    """The least value of c -> f(R_x(project(x, c))) that BFGS of scipy finds from c = 0."""

    def value_and_slope(flat: object) -> tuple[float, object]:
        c = torch.tensor(flat, dtype=F64).reshape(x.shape).requires_grad_()
        value = f(manifold.retract(x, manifold.project(x, c)))
        return value.item(), torch.autograd.grad(value, c)[0].flatten().numpy()

    found = optimize.minimize(value_and_slope, torch.zeros(x.numel()).numpy(), jac=True, method="BFGS", tol=1e-8)
    return float(found.fun)


@pytest.mark.parametrize("solver", [TrustRegion(), LBFGS(), ConjugateGradient(), GradientDescent()], ids=repr)
@pytest.mark.parametrize(("manifold", "shape"), SETS, ids=str)
def test_scipy_finds_the_same_minimum_from_nearby(manifold: Manifold, shape: tuple[int, ...], solver: Solver) -> None:
    """Both start a short way from a point where f is strictly convex, so that they see one minimum."""
    center = manifold.random(shape, dtype=F64)
    weight = 1 + torch.rand(shape, dtype=F64)

    def f(x: Tensor) -> Tensor:
        return (weight * (x - center).square()).sum() + 0.1 * (x - center).sum().sin()

    start = manifold.retract(center, 0.1 * manifold.project(center, torch.randn(shape, dtype=F64)))
    ours = minimize(f, start, manifold, solver=solver, tol=1e-8, max_steps=3000)
    assert ours.converged
    assert abs(ours.value - charted(f, manifold, start)) < 1e-9


def test_both_find_the_mean_of_rotations() -> None:
    rotations = SpecialOrthogonal().random(3, 3, dtype=F64) @ torch.linalg.matrix_exp(
        (lambda a: a - a.mT)(0.3 * torch.randn(20, 3, 3, dtype=F64))
    )

    def f(x: Tensor) -> Tensor:
        return (x - rotations).square().sum()

    ours = minimize(f, rotations[0], Orthogonal)
    assert abs(ours.value - charted(f, Orthogonal(), rotations[0])) < 1e-9
