"""Every manifold in every form of a problem: alone, in a batch, in a dict, from several starts. One theorem: f has its
least value where it is known to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from constraints import minimize
from constraints.solve import LBFGS, ConjugateGradient, Solver, TrustRegion
from constraints.solve.piece import Piece
from constraints.solve.space import Space
from manifolds import (
    Correlation,
    DoublyStochastic,
    Euclidean,
    FixedRank,
    Grassmann,
    Hyperboloid,
    Manifold,
    NearestPointManifold,
    Oblique,
    Orthogonal,
    PoincareBall,
    Positive,
    PositiveDefinite,
    Simplex,
    Skew,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    Symmetric,
    retractions,
)

F64 = torch.float64
# descent along the gradient is slow on sets where the metric has another scale in each direction
SOLVERS: list[Solver] = [TrustRegion(), LBFGS(), ConjugateGradient()]
MANIFOLDS: list[tuple[Manifold, tuple[int, ...]]] = [
    (Sphere(), (5,)),
    (Stiefel(), (5, 2)),
    (Stiefel("canonical"), (2, 5)),
    (SpecialOrthogonal(), (3, 3)),
    (Orthogonal(), (3, 3)),
    (Stiefel("canonical") * Sphere(ndim=2), (8, 3)),
    (Grassmann(), (5, 2)),
    (Oblique(), (3, 4)),
    (Symmetric(), (3, 3)),
    (Skew(), (3, 3)),
    (Correlation(), (3, 3)),
    (Correlation(rank=2), (4, 2)),
    (Positive(), (4,)),
    (PositiveDefinite(), (3, 3)),
    (PositiveDefinite("log-cholesky"), (3, 3)),
    (PositiveDefinite("bures-wasserstein"), (3, 3)),
    (FixedRank(2), (4, 3)),
    (Simplex(), (4,)),
    (DoublyStochastic(), (3, 3)),
    (Hyperboloid(), (4,)),
    (PoincareBall(), (3,)),
]
B = 3


def problem(manifold: Manifold, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Targets on the manifold, and starts near them: on the component of the target, in its basin."""
    target = manifold.random(B, *shape, dtype=F64)
    v = manifold.random_tangent(target)
    return target, manifold.retract(target, 0.2 * v / v.flatten(1).norm(dim=1).reshape(B, *[1] * len(shape)))


def distance(manifold: Manifold, x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 of each of a batch, of subspaces |x x^T - y y^T|^2."""
    if isinstance(manifold, Grassmann) or manifold == Correlation(rank=2):
        x, y = x @ x.mT, y @ y.mT
    return (x - y).square().reshape(len(x), -1).sum(1)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize(("manifold", "shape"), MANIFOLDS, ids=str)
def test_every_form_finds_the_target(manifold: Manifold, shape: tuple[int, ...], solver: Solver) -> None:
    target, x0 = problem(manifold, shape)
    free = torch.zeros(B, 2, dtype=F64)
    alone = minimize(lambda x: distance(manifold, x[None], target[:1]).sum(), x0[0], manifold, solver=solver)
    assert alone.converged, alone.reason
    assert isinstance(alone.value, float)
    assert alone.value < 1e-9

    batch = minimize(lambda x: distance(manifold, x, target), x0, manifold, solver=solver, batched=True)
    assert batch.converged.all(), batch.reason
    assert batch.value.max() < 1e-9
    # a step in float rounding may decide otherwise than one of tensors
    assert abs(batch.steps[0] - alone.steps) <= 2

    both = minimize(
        lambda p: distance(manifold, p["x"], target) + (p["free"] - 1).square().sum(1),
        {"x": x0, "free": free},
        {"x": manifold, "free": Euclidean},
        solver=solver,
        batched=True,
    )
    assert both.converged.all(), both.reason
    torch.testing.assert_close(both.x["free"], free + 1, rtol=0, atol=1e-6)
    assert both.value.max() < 1e-9

    several = minimize(
        lambda x: distance(manifold, x[None], target[:1]).sum(),
        x0[0],
        manifold,
        solver=solver,
        starts=2,
        generator=torch.Generator().manual_seed(0),
    )
    assert several.value < 1e-9
    assert several.values_of_starts is not None
    assert several.values_of_starts[0] < 1e-9
    assert several.history.value[0] > 0
    assert math.isfinite(several.gradient_norm)


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (Sphere(), (5,)),
        (Stiefel(), (5, 2)),
        (Stiefel(), (2, 5)),
        (Stiefel(), (3, 3)),
        (Orthogonal(), (3, 3)),
        (SpecialOrthogonal(), (4, 4)),
        (Grassmann(), (5, 2)),
        (Oblique(), (3, 4)),
        (Euclidean(), (3,)),
    ],
    ids=str,
)
def test_what_lies_still_is_transported_by_fastening(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """fasten(y, v) = transport(x, y, v), which is that of the manifold, and <g, T v> of a tangent g at y needs no
    fastening."""
    space = Space([Piece(None, manifold, shape, dtype)], batched=True)
    x, y = (manifold.random(B, *shape, dtype=dtype) for _ in range(2))
    there = manifold.transport(x, y, ambient := manifold.random_tangent(x))
    g = manifold.random_tangent(y)
    x, y, ambient, there, g = (space.join([each]) for each in (x, y, ambient, there, g))
    v, g = space.gradient(x, ambient), space.gradient(y, g)
    torch.testing.assert_close(space.vector(x, v), ambient, rtol=0, atol=1e-13)
    assert space.lies_still
    carried = space.transport(x, y, v)
    torch.testing.assert_close(space.fasten(y, v), carried, rtol=0, atol=1e-13)
    torch.testing.assert_close(space.vector(y, carried), there, rtol=0, atol=1e-13)
    torch.testing.assert_close(space.dot(g, v), space.inner(y, g, carried), rtol=0, atol=1e-12)


@pytest.mark.parametrize("manifold", [Stiefel("canonical"), PositiveDefinite(), Stiefel * Sphere(ndim=2)], ids=str)
def test_what_is_carried_otherwise_does_not_lie_still(manifold: Manifold) -> None:
    assert not Space([Piece(None, manifold, (4, 4), F64)], batched=False).lies_still


@dataclass(frozen=True)
class Ball(NearestPointManifold):
    """A set whose retraction is the one that all have: the sphere of radius 2."""

    ndim = 1

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a - (x * a).sum(-1, keepdim=True) / 4 * x

    def nearest(self, x: Tensor) -> Tensor:
        return 2 * torch.nn.functional.normalize(x, dim=-1)

    def dim(self, shape: Sequence[int]) -> int:
        return math.prod(shape) - 1


@pytest.mark.parametrize("size", [1e-3, 0.3, 3.0])
@pytest.mark.parametrize(
    ("manifold", "shape", "dtype"),
    [
        (Sphere(), (5,), F64),
        (Stiefel(), (5, 2), F64),
        (Stiefel(), (2, 5), torch.complex128),
        (Oblique(), (3, 4), F64),
        (Euclidean(ndim=1), (3,), F64),
        (Ball(), (4,), F64),
    ],
    ids=str,
)
def test_any_vector_is_a_direction_where_steps_end_at_the_nearest_point(
    manifold: NearestPointManifold, shape: tuple[int, ...], dtype: torch.dtype, size: float
) -> None:
    """R_x(c) = nearest(x + c) for c that is not tangent, so that L-BFGS leaves its direction as it is."""
    space = Space([Piece(None, manifold, shape, dtype)], batched=False)
    x, c = manifold.random(*shape, dtype=dtype), size * torch.randn(shape, dtype=dtype)
    nearest = x + c if isinstance(manifold, Euclidean) else manifold.nearest(x + c)
    x, c, nearest = (space.join([each]) for each in (x, c, nearest))
    assert space.aimed(x, c) is c
    # as sensitive as the direction of the shortest column, or singular vector, of x + c
    torch.testing.assert_close(space.retract(x, c), nearest, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(Stiefel(retraction=retractions.qr), (5, 2)), (Grassmann(), (5, 2)), (Symmetric(), (3, 3)), (Skew(), (3, 3))],
    ids=str,
)
def test_elsewhere_directions_are_tangent(manifold: Manifold, shape: tuple[int, ...]) -> None:
    space = Space([Piece(None, manifold, shape, F64)], batched=False)
    x, c = manifold.random(*shape, dtype=F64), torch.randn(shape, dtype=F64)
    tangent = manifold.project(x, c)
    x, c, tangent = (space.join([each]) for each in (x, c, tangent))
    torch.testing.assert_close(space.aimed(x, c), tangent, rtol=0, atol=1e-13)
