"""The simplex against the sphere under the root, closed forms and scipy."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from manifolds import BlockSpec, Euclidean, Manifold, ProductManifold, Simplex, Sphere
from manifolds.engine import Engine, engine
from manifolds.testing import check_manifold

F64 = torch.float64
REAL = (torch.float32, F64)
EPS = torch.finfo(F64).eps


def points(count: int, n: int = 5) -> Tensor:
    return Simplex().random(count, n, generator=torch.Generator().manual_seed(0), dtype=F64)


def tangent(x: Tensor, seed: int = 1) -> Tensor:
    return Simplex().random_tangent(x, torch.Generator().manual_seed(seed)) * x.amin(-1, keepdim=True)


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (Simplex(), (4,)),
        (Simplex(), (2, 3)),
        (Simplex(), (1,)),
        (Simplex**3, (12,)),
        (ProductManifold((Simplex(), Euclidean(1)), BlockSpec(rows=2, axis=-1)), (2, 6)),
    ],
    ids=str,
)
def test_the_contract(manifold: Manifold, shape: tuple[int, ...]) -> None:
    check_manifold(manifold, shape, dtype=REAL)


def test_it_is_the_sphere_of_radius_2_under_the_root() -> None:
    m, sphere = Simplex(), Sphere(2.0)
    x, y = points(2)
    s, t = 2 * x.sqrt(), 2 * y.sqrt()
    u, v = tangent(x, 1), tangent(x, 2)
    w = v / x.sqrt()
    assert torch.allclose(m.inner(x, u, v), sphere.inner(s, u / x.sqrt(), w), rtol=1e-13)
    assert torch.allclose(m.distance(x, y), sphere.distance(s, t), rtol=1e-13)
    assert torch.allclose(m.distance(x, y), 2 * (x * y).sqrt().sum().acos(), rtol=1e-13)
    assert torch.allclose(m.exp(x, v), sphere.exp(s, w).square() / 4, atol=4 * EPS)
    assert torch.allclose(m.log(x, y) / x.sqrt(), sphere.log(s, t), atol=16 * EPS)
    assert torch.allclose(m.retract(x, v), (x + v + v**2 / (4 * x)) / (1 + (v**2 / (4 * x)).sum()), atol=4 * EPS)
    assert torch.allclose(m.mean(torch.stack([x, y])), m.geodesic(x, y, 0.5), atol=1e-13)


def test_transport_is_an_isometry_that_carries_the_velocity_along() -> None:
    m = Simplex()
    x, y = points(2)
    v = tangent(x)
    assert float(m.norm(y, m.transport(x, y, v))) == pytest.approx(float(m.norm(x, v)), rel=1e-12)
    assert torch.allclose(m.transport(x, y, m.log(x, y)), -m.log(y, x), atol=16 * EPS)


@pytest.mark.parametrize("dtype", REAL)
def test_distances_are_right_near_the_boundary_and_near_each_other(dtype: torch.dtype) -> None:
    """2 arccos sum sqrt(x y) in float64 has no digits left at 1e-9; the half angle is |s - t| there."""
    eps = torch.finfo(dtype).eps
    x = torch.tensor([0.5, 0.5 - 1e-12, 1e-12], dtype=dtype)
    y = torch.tensor([0.5, 0.5, 1e-30], dtype=dtype)
    assert float(Simplex().distance(x, y)) == pytest.approx(2e-6, rel=1e-6)
    assert float(Simplex().distance(x, x)) == 0
    far = torch.tensor([1.0, 1e-30], dtype=dtype), torch.tensor([1e-30, 1.0], dtype=dtype)
    assert float(Simplex().distance(*far)) == pytest.approx(math.pi, rel=4 * eps)


@pytest.mark.parametrize("dtype", REAL)
def test_no_step_ends_on_the_boundary(dtype: torch.dtype) -> None:
    """Nor is what comes of one that would be infinite: -2 x is the step that the reflection takes to 0."""
    m = Simplex()
    for x in (torch.tensor([0.5, 0.25, 0.25], dtype=dtype), torch.tensor([1.0, 1e-30, 1e-37], dtype=dtype)):
        hit = torch.stack([-2 * x[0] - 2 * x[1], 2 * x[0] + 2 * x[1] + 2 * x[2], -2 * x[2]])
        for v in (hit, hit.roll(1), 1e3 * m.project(x, x)):
            for y in (m.retract(x, v), m.exp(x, v / m.norm(x, v))):
                assert bool(m.contains(y))
                assert bool(m.gradient(y, x).isfinite().all())
                assert float(m.norm(y, m.transport(x, y, m.gradient(x, v)))) < 1e9


def test_one_chart_reaches_all_of_it() -> None:
    """Of each y, c = 2 (sqrt(y) / <s, sqrt y> - s) with s = sqrt x are the coordinates."""
    x, y = points(2)
    y = torch.stack([y, torch.tensor([1e-12, 1e-9, 0.3, 0.7 - 1e-9 - 2e-12, 1e-12], dtype=F64)])
    s, t = x.sqrt(), y.sqrt()
    c = 2 * (t / (s * t).sum(-1, keepdim=True) - s)
    e = engine(Simplex())
    assert torch.allclose(e.coordinates(x.expand_as(c), c), c, atol=64 * EPS)
    assert torch.allclose(e.move(x, c), y, rtol=64 * EPS, atol=1e-3 * EPS)


def test_the_change_of_chart_is_that_of_the_definition() -> None:
    """Within the set, and past a reflection."""
    m, e = Simplex(), engine(Simplex())
    x = points(3)
    m0 = e.coordinates(x, torch.randn(x.shape, dtype=F64))
    for size in (0.3, 3.0):
        c = e.coordinates(x, size * torch.randn(x.shape, dtype=F64))
        y = e.move(x, c)
        assert torch.allclose(e.recenter(x, y, c, m0), Engine.recenter(e, x, y, c, m0), atol=1e-10)
    assert bool((x.sqrt() + c / 2 < 0).any())
    assert bool(m.contains(y).all())


@pytest.mark.filterwarnings("ignore:Values in x were outside bounds")  # of scipy, which goes on
def test_the_mode_of_a_likelihood_is_that_of_scipy() -> None:
    """max sum k log x has x = k / sum k: by descent with the Fisher metric, and by scipy on the simplex."""
    k = torch.tensor([3.0, 1.0, 4.0, 2.0], dtype=F64)
    m, x = Simplex(), torch.full((4,), 0.25, dtype=F64)
    for _ in range(60):
        x = m.retract(x, -0.05 * m.gradient(x, -k / x))
    found = minimize(
        lambda z: -(k.numpy() * torch.from_numpy(z).log().numpy()).sum(),
        [0.25] * 4,
        bounds=[(1e-9, 1)] * 4,
        constraints={"type": "eq", "fun": lambda z: z.sum() - 1},
    )
    assert torch.allclose(x, k / 10, atol=1e-6)
    assert torch.allclose(torch.from_numpy(found.x), x, atol=1e-3)


def test_what_is_no_point_is_told() -> None:
    m = Simplex()
    assert m.residual(torch.tensor([0.5, 0.5])) == 0
    assert m.residual(torch.tensor([1.0, 0.0])) == torch.inf
    assert m.residual(torch.tensor([1.5, -0.5])) == torch.inf
    assert m.residual(torch.tensor([0.5, 0.75])) == 0.25
    with pytest.raises(ValueError, match=r"points of Simplex are real; got dtype torch.complex64"):
        m.random(3, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"points of Simplex are real"):
        m.residual(torch.ones(3, dtype=torch.complex64))


@pytest.mark.parametrize("seed", [9, 10, 126])
def test_conformance_asks_within_the_boundary(seed: int) -> None:
    """Seeds whose points are so near to it that a step of length 0.1 is reflected there."""
    check_manifold(Simplex(), (5,), dtype=torch.float32, seed=seed)
