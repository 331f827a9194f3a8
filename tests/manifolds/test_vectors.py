"""Linear spaces, spheres of other radii and of matrices, and unit columns: closed forms and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from manifolds import Euclidean, GeodesicManifold, Oblique, Skew, Sphere, Symmetric

REAL, COMPLEX = torch.float64, torch.complex128
dtypes = pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=str)
FEW = 16 * torch.finfo(REAL).eps


@dtypes
def test_a_matrix_of_a_sphere_is_the_vector_of_its_entries(dtype: torch.dtype) -> None:
    m, flat = Sphere(3.0, 2), Sphere(3.0)
    x, y = (m.random(5, 2, 3, dtype=dtype) for _ in range(2))
    v = m.project(x, torch.randn_like(x))
    for name, arguments in {"exp": (x, v), "log": (x, y), "retract": (x, v), "project": (x, y)}.items():
        due = getattr(flat, name)(*(t.flatten(-2) for t in arguments)).unflatten(-1, (2, 3))
        torch.testing.assert_close(getattr(m, name)(*arguments), due, rtol=0, atol=FEW)
    torch.testing.assert_close(m.distance(x, y), flat.distance(x.flatten(-2), y.flatten(-2)), rtol=0, atol=FEW)
    torch.testing.assert_close(m.log(x, -x).flatten(-2).norm(dim=-1), torch.full((5,), 3 * math.pi, dtype=REAL))


@dtypes
@pytest.mark.parametrize("r", [1e-3, 0.5, 7.0, 1e6])
def test_a_sphere_of_radius_r_is_r_times_the_unit_sphere(dtype: torch.dtype, r: float) -> None:
    one, m = Sphere(), Sphere(r)
    x, y = (one.random(20, 4, dtype=dtype) for _ in range(2))
    v = one.project(x, torch.randn_like(x))
    torch.testing.assert_close(m.exp(r * x, r * v), r * one.exp(x, v), rtol=0, atol=FEW * r)
    torch.testing.assert_close(m.log(r * x, r * y), r * one.log(x, y), rtol=0, atol=FEW * r)
    torch.testing.assert_close(m.distance(r * x, r * y), r * one.distance(x, y), rtol=0, atol=FEW * r)
    torch.testing.assert_close(m.retract(r * x, r * v), r * one.retract(x, v), rtol=0, atol=FEW * r)
    assert m.contains(m.random(50, 4, dtype=dtype)).all()
    assert not m.contains(1.001 * r * x).any()


@dtypes
@pytest.mark.parametrize("axis", [-2, -1])
def test_unit_columns_are_points_of_spheres(dtype: torch.dtype, axis: Any) -> None:
    m, s = Oblique(axis), Sphere()
    x, y = (m.random(2, 3, 4, dtype=dtype) for _ in range(2))
    v = m.project(x, torch.randn_like(x))

    def rows(t: Tensor) -> Tensor:
        return t.mT if axis == -2 else t

    for name, arguments in {"exp": (x, v), "log": (x, y), "retract": (x, v), "transport": (x, y, v)}.items():
        due = rows(getattr(s, name)(*(rows(t) for t in arguments)))
        torch.testing.assert_close(getattr(m, name)(*arguments), due, rtol=0, atol=FEW)
    angles = s.distance(rows(x), rows(y))
    torch.testing.assert_close(m.distance(x, y), angles.square().sum(-1).sqrt())
    torch.testing.assert_close(m.norm(x, m.log(x, y)), m.distance(x, y))


@dtypes
@pytest.mark.parametrize("manifold", [Euclidean(2), Symmetric(), Skew()], ids=str)
def test_a_geodesic_of_a_linear_space_is_a_straight_line(manifold: GeodesicManifold, dtype: torch.dtype) -> None:
    x, y = (manifold.random(6, 3, 3, dtype=dtype) for _ in range(2))
    torch.testing.assert_close(manifold.geodesic(x, y, 0.25), 0.75 * x + 0.25 * y)
    torch.testing.assert_close(manifold.distance(x, y), (x - y).flatten(-2).norm(dim=-1))
    torch.testing.assert_close(manifold.mean(x), x.mean(0))
    assert manifold.contains(manifold.exp(x, y)).all()


@dtypes
def test_hermitian_and_skew_parts_are_orthogonal_and_sum_up(dtype: torch.dtype) -> None:
    a = torch.randn(4, 3, 3, dtype=dtype)
    h, k = Symmetric().nearest(a), Skew().nearest(a)
    torch.testing.assert_close(h + k, a)
    assert float(Euclidean(2).inner(a, h, k).abs().max()) <= FEW
    assert torch.equal(h, h.mH)
    assert torch.equal(k, -k.mH)
    assert Symmetric().dim_of_complex((3, 3)) + Skew().dim_of_complex((3, 3)) == 18


def test_a_matrix_of_euclidean_is_one_point() -> None:
    x = torch.ones(5, 2, 3)
    assert Euclidean(2).inner(x, x, x).tolist() == [6.0] * 5
    assert Euclidean().inner(x, x, x).shape == (5, 2, 3)
    assert repr(Euclidean(ndim=2)) == "Euclidean(ndim=2)"
    assert repr(Euclidean()) == "Euclidean"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sphere(0.0), "positive number"),
        (lambda: Sphere(math.inf), "positive number"),
        (lambda: Sphere(math.nan), "positive number"),
        (lambda: Sphere(torch.tensor(1.0)), "multiply a point of the unit sphere"),  # type: ignore[arg-type]
        (lambda: Sphere(ndim=0), "number of axes"),
        (lambda: Euclidean(-1), "number of axes"),
        (lambda: Euclidean(1.5), "number of axes"),  # type: ignore[arg-type]
        (lambda: Oblique(0), "unit rows"),  # type: ignore[arg-type]
        (lambda: Symmetric().nearest(torch.ones(6, 2)), r"Symmetric\*\*3"),
        (lambda: Skew().random(2, 3), "square matrices"),
        (lambda: Oblique().nearest(torch.zeros(2, 3)), "zero vector along axis -2"),
        (lambda: Sphere(ndim=2).nearest(torch.zeros(2, 3)), "zero vector along axes -2, -1"),
        (lambda: Sphere(ndim=2).dim((3,)), "2 axes"),
        (lambda: Euclidean(2).dim((3,)), "2 axes"),
    ],
)
def test_refusals(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_equal_values_are_equal_sets() -> None:
    assert Sphere(2) == Sphere(2.0)
    assert hash(Sphere(2)) == hash(Sphere(2.0))
    assert Sphere(2) != Sphere()
    assert Oblique() != Oblique(-1)
