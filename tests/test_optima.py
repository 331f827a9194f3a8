"""Problems with a known answer on the sets that they are stated on: it is reached, to the digits that it has."""

from __future__ import annotations

import builtins
from typing import get_args

import pytest
import scipy.linalg
import torch
from torch import Tensor

from constraints import LBFGS, minimize
from manifolds import (
    Correlation,
    Euclidean,
    GeodesicManifold,
    Grassmann,
    Hyperboloid,
    LowRank,
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
)
from manifolds.positive_definite import Name
from tests.sets import public

F64, C128 = torch.float64, torch.complex128

# Low-rank completion --------------------------------------------------------------------------------------


def test_a_matrix_of_rank_5_is_completed_from_8_percent_of_its_entries() -> None:
    """500 x 500 from four times as many entries as it has degrees of freedom: the relative error is at most 1e-8."""
    n, rank, share = 500, 5, 0.08
    whole = torch.randn(n, rank, dtype=F64) @ torch.randn(rank, n, dtype=F64) / n
    seen = torch.randperm(n * n)[: round(share * n * n)]
    rows, columns = seen // n, seen % n
    values = whole[rows, columns]
    low = LowRank(rank)
    sparse = torch.zeros(n, n, dtype=F64).index_put((rows, columns), values / share)

    def error(p: dict[str, Tensor]) -> Tensor:
        return ((p["u"] * p["s"])[rows] * p["v"][columns]).sum(-1).sub(values).square().sum() / share

    kinds = {name: manifold for name, (manifold, _) in low.parts((n, n)).items()}
    found = minimize(error, low.decompose(sparse), kinds, tol=1e-10)
    assert found.converged, found.reason
    assert float((low.compose(**found.x) - whole).norm() / whole.norm()) <= 1e-8


# Means ----------------------------------------------------------------------------------------------------


def spectral(f: object, a: object) -> object:
    """f of a symmetric matrix, by scipy."""
    values, vectors = scipy.linalg.eigh(a)
    return (vectors * f(values)) @ vectors.T  # type: ignore[operator]


def fixed_point(x: object, steps: int) -> object:
    """The affine-invariant mean by scipy: Y <- Y^1/2 exp(mean of log(Y^-1/2 X Y^-1/2)) Y^1/2."""
    import numpy as np

    y = np.mean(x, axis=0)  # type: ignore[call-overload]
    for _ in range(steps):
        half, inverse = spectral(np.sqrt, y), spectral(lambda w: w**-0.5, y)
        step = np.mean([spectral(np.log, inverse @ each @ inverse) for each in x], axis=0)  # type: ignore
        y = half @ spectral(np.exp, step) @ half  # type: ignore[operator]
    return y


def test_the_mean_of_100_covariances_is_the_fixed_point_of_scipy() -> None:
    a = torch.randn(100, 20, 30, dtype=F64)
    x = a @ a.mT / 30
    y = PositiveDefinite().mean(x)
    gradient = PositiveDefinite().log(y, x).mean(0)
    assert float(PositiveDefinite().norm(y, gradient)) <= 1e-10
    torch.testing.assert_close(y, torch.from_numpy(fixed_point(x.numpy(), 25)), rtol=0, atol=1e-10)


MEANS: list[tuple[GeodesicManifold, tuple[int, ...], torch.dtype]] = [
    (Correlation(), (4, 4), F64),
    (Euclidean(2), (3, 2), F64),
    (Grassmann(), (6, 2), F64),
    (Grassmann(), (5, 2), C128),
    (Hyperboloid(), (4,), F64),
    (Hyperboloid(curvature=-0.3), (3,), F64),
    (Oblique(), (4, 3), F64),
    (Orthogonal(), (5, 5), F64),
    (PoincareBall(), (3,), F64),
    (PoincareBall(curvature=-4.0), (2,), F64),
    (Positive(), (), F64),
    *((PositiveDefinite(metric), (4, 4), F64) for metric in get_args(Name)),
    (PositiveDefinite(), (3, 3), C128),
    (Simplex(), (5,), F64),
    (Skew(), (3, 3), F64),
    (SpecialOrthogonal(), (3, 3), F64),
    (SpecialOrthogonal(), (6, 6), F64),
    (SpecialOrthogonal(), (3, 3), C128),
    (Sphere(), (6,), F64),
    (Sphere(2.0, 2), (3, 3), F64),
    (Stiefel(), (5, 2), F64),
    (Stiefel("canonical"), (4, 3), F64),
    (Symmetric(), (3, 3), C128),
]


def test_no_set_with_a_mean_is_forgotten() -> None:
    assert public(GeodesicManifold) == {type(manifold) for manifold, _, _ in MEANS}


@pytest.mark.parametrize(("manifold", "shape", "dtype"), MEANS, ids=str)
def test_the_gradient_vanishes_at_a_mean(
    manifold: GeodesicManifold, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """The gradient of sum_i w_i d(x_i, y)^2 / 2 is -sum_i w_i log(y, x_i), here of 50 points in a small ball."""
    center = manifold.random(*shape, dtype=dtype).expand(50, *shape)
    v = manifold.random_tangent(center)
    length = manifold.norm(center, v)[(..., *[None] * manifold.ndim)]
    x = manifold.exp(center, 0.4 * torch.rand_like(length) * v / length)
    w = torch.rand(50, dtype=F64)
    y = manifold.mean(x, w)
    weights = (w / w.sum())[(..., *[None] * manifold.ndim)]
    pull = (weights * manifold.log(y.expand_as(x), x)).sum(0)
    assert float(manifold.norm(y, pull)) <= 1e-10
    assert float(manifold.distance(y, center[0])) <= 0.4


# Rotations ------------------------------------------------------------------------------------------------


def test_300_cameras_are_found_from_relative_rotations_of_which_a_fifth_is_wrong() -> None:
    """R_i' R_j of 10 % of the pairs, exact but for random rotations in a fifth: errors of 1e-4 degrees in the median.

    The leading eigenvectors of the block matrix of the pairs for a start, and Cauchy's loss of falling width.
    """
    n, so = 300, SpecialOrthogonal()
    true = so.random(n, 3, 3, dtype=F64)
    i, j = torch.triu(torch.rand(n, n) < 0.1, 1).nonzero().T
    measured = true[i].mT @ true[j]
    wrong = torch.rand(len(i)) < 0.2
    measured[wrong] = so.random(int(wrong.sum()), 3, 3, dtype=F64)

    blocks = torch.zeros(n, n, 3, 3, dtype=F64)
    blocks[i, j], blocks[j, i] = measured, measured.mT
    leading = torch.linalg.eigh(blocks.transpose(1, 2).reshape(3 * n, 3 * n))[1][:, -3:].view(n, 3, 3)
    x = so.nearest(leading.mT * torch.linalg.det(leading).sum().sign())

    for width in (1e-1, 1e-2, 1e-3):

        def loss(x: Tensor, width: float = width) -> Tensor:
            squares = (x[i] @ measured - x[j]).square().sum((1, 2))
            return width**2 * (squares / width**2).log1p().mean()

        found = minimize(loss, x, so, solver=LBFGS(), tol=1e-9, max_steps=1000)
        assert found.converged, found.reason
        x = found.x
    seen = so.nearest((true @ x.mT).sum(0)) @ x  # all cameras may be turned together
    degrees = so.distance(seen, true).rad2deg() / 2**0.5  # |A|_F = sqrt(2) angle for skew A
    assert float(degrees.median()) <= 1e-4


# Subspaces ------------------------------------------------------------------------------------------------


def test_the_leading_subspace_is_found_where_its_eigenvalues_are_equal() -> None:
    """On Grassmann the minimum is one point, not degenerate, whatever the eigenvalues inside: the last step is
    quadratic. Its basis is arbitrary, so projectors are compared."""
    basis = Orthogonal().random(40, 40, dtype=F64)
    eigenvalues = torch.cat([torch.full((4,), 5.0, dtype=F64), torch.linspace(0, 2, 36, dtype=F64)])
    covariance = (basis * eigenvalues) @ basis.T
    found = minimize(lambda x: -(x * (covariance @ x)).sum(), (40, 4), Grassmann, dtype=F64, tol=1e-10)
    assert found.converged, found.reason
    assert abs(found.value + 20) <= 1e-12
    torch.testing.assert_close(found.x @ found.x.T, basis[:, :4] @ basis[:, :4].T, rtol=0, atol=1e-9)
    assert found.curvature >= 2 * (5 - 2) - 1e-9  # 2 (l_p - l_p+1), the gap


# Hierarchies ----------------------------------------------------------------------------------------------


def hierarchy() -> Tensor:
    """Which of the exceptions of Python are ancestor and descendant of each other, as a matrix of truth values."""
    found = (each for each in vars(builtins).values() if isinstance(each, type) and issubclass(each, BaseException))
    kinds = sorted(set(found), key=lambda each: each.__name__)
    return torch.tensor([[a is not b and (issubclass(a, b) or issubclass(b, a)) for b in kinds] for a in kinds])


def mean_rank(manifold: GeodesicManifold, dim: int) -> float:
    """How many strangers, plus one, are nearer to a node than a relative of it is, in an embedding by the softmax over
    distances (Nickel & Kiela 2017), the strangers all of them."""
    related = hierarchy()
    n = len(related)
    stranger = ~related & ~torch.eye(n, dtype=torch.bool)
    i, j = torch.triu_indices(n, n, 1)

    def distances(x: Tensor) -> Tensor:
        upper = torch.zeros(n, n, dtype=F64).index_put((i, j), manifold.distance(x[i], x[j]))
        return upper + upper.T

    def loss(x: Tensor) -> Tensor:
        d = distances(x)
        strangers = (-d).masked_fill(~stranger, -torch.inf).logsumexp(1, keepdim=True)
        return (d + torch.logaddexp(-d, strangers))[related].mean()

    start = 1e-2 * torch.randn(n, dim, dtype=F64)
    d = distances(minimize(loss, start, manifold, solver=LBFGS(), tol=1e-4, max_steps=400).x)
    nearer = (d[:, None, :] < d[:, :, None]) & stranger[:, None, :]
    return float((1 + nearer.sum(-1))[related].to(F64).mean())


def test_a_tree_has_more_room_in_the_ball_than_in_the_plane() -> None:
    """The exceptions of Python in two dimensions: the mean rank of relatives is less than half in the ball."""
    assert mean_rank(PoincareBall(), 2) < mean_rank(Euclidean(1), 2) / 2
