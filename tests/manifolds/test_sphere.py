"""The sphere in closed form: arcs of great circles, angles, and what happens near 0 and near pi."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from manifolds import Sphere
from manifolds.testing import tangent_vectors

DTYPES = (torch.float64, torch.complex128)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def frame(dtype: torch.dtype, n: int = 4) -> tuple[Tensor, Tensor]:
    """Two orthonormal vectors."""
    x = Sphere().random(n, dtype=dtype)
    v = Sphere().project(x, torch.randn(n, dtype=dtype))
    return x, v / v.norm()


def close(a: Tensor, b: Tensor, atol: float = 1e-14) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@dtypes
@pytest.mark.parametrize("t", [0.0, 1e-12, 1e-5, 5e-3, 9.9e-3, 1.01e-2, 0.1, 0.3, 2.0, 3.0, math.pi, 7.0])
def test_exp_is_an_arc_of_a_great_circle(dtype: torch.dtype, t: float) -> None:
    x, v = frame(dtype)
    close(Sphere().exp(x, t * v), math.cos(t) * x + math.sin(t) * v, atol=1e-14)


@dtypes
@pytest.mark.parametrize("t", [0.0, 1e-300, 1e-20, 1e-12, 1e-8, 1e-5, 1e-2, 0.5, 1.5, 3.0, 3.14159])
def test_distance_and_log_are_exact_at_every_angle(dtype: torch.dtype, t: float) -> None:
    """acos of a dot product is off by 1e-8 here, near 0 and near pi."""
    x, v = frame(dtype)
    y = Sphere().exp(x, t * v)
    allowed = 4e-15
    assert abs(float(Sphere().distance(x, y)) - t) < allowed
    # the direction of log is that of a vector of length sin t
    near_pi = allowed / math.sin(t) if t > 1.6 else allowed
    close(Sphere().log(x, y), t * v, atol=near_pi)
    assert abs(float(Sphere().norm(x, Sphere().log(x, y))) - t) < allowed


@pytest.mark.parametrize("t", [1e-300, 1e-160, 1e-30, 1e-17, 1e-15, 1e-12, 1e-8, 1e-5, 1e-2, 1.0])
def test_log_has_all_its_digits_at_small_angles(t: float) -> None:
    """Relative to its length, from a point with exact entries: y - x is exact, so only log rounds."""
    x = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    y = torch.tensor([math.cos(t), 0.6 * math.sin(t), 0.8 * math.sin(t)], dtype=torch.float64)
    v = t * torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64)
    torch.testing.assert_close(Sphere().log(x, y), v, rtol=8 * torch.finfo(torch.float64).eps, atol=0)


@dtypes
def test_opposite_points_are_pi_apart_and_log_is_finite(dtype: torch.dtype) -> None:
    x, _ = frame(dtype)
    assert abs(float(Sphere().distance(x, -x)) - math.pi) < 1e-15
    assert Sphere().log(x, -x).isfinite().all()


@dtypes
def test_distance_is_in_the_triangle_inequality(dtype: torch.dtype) -> None:
    x, y, z = Sphere().random(3, 50, 4, dtype=dtype)
    d = Sphere().distance
    assert (d(x, z) <= d(x, y) + d(y, z) + 1e-14).all()


@dtypes
@pytest.mark.parametrize("t", [0.0, 9.9e-3, 1.01e-2, 1.0])
def test_exp_is_differentiable_twice_at_zero_and_across_the_seam_of_its_series(dtype: torch.dtype, t: float) -> None:
    x, v = frame(dtype)
    place = (t * v).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: Sphere().exp(x, a), place)
    assert torch.autograd.gradgradcheck(lambda a: Sphere().exp(x, a), place)


@given(pair=tangent_vectors(Sphere, dtype=DTYPES))
def test_retract_is_exp_up_to_third_order(pair: tuple[Tensor, Tensor]) -> None:
    """(x + v) / |x + v| reaches the angle atan |v| in the direction of v."""
    x, v = pair
    size = v.norm(dim=-1, keepdim=True)
    direction = v / size.clamp_min(1e-300)
    close(Sphere().retract(x, v), Sphere().exp(x, size.atan() * direction), atol=1e-13)


@given(scale=st.sampled_from([1e-300, 1e-160, 1e-5, 1.0, 1e5, 1e160, 1e300]), seed=st.integers(0, 1000))
def test_nearest_neither_under_nor_overflows(scale: float, seed: int) -> None:
    x = Sphere().random(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    close(Sphere().nearest(scale * x), x)


def test_a_zero_vector_has_no_nearest_point() -> None:
    x = torch.ones(2, 3)
    x[1] = 0
    with pytest.raises(ValueError, match=r"a zero vector has no nearest point on Sphere; got shape \(2, 3\)"):
        Sphere().nearest(x)


def test_the_residual_is_how_far_the_length_is_from_one() -> None:
    close(
        Sphere().residual(torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]])), torch.tensor([4.0, 0.0, 1.0]), atol=1e-7
    )


def test_gradient_of_a_linear_function_vanishes_only_at_its_maximum() -> None:
    """f(x) = <g, x> has its maximum at g / |g|."""
    g = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    close(Sphere().gradient(g / 3, g), torch.zeros(3, dtype=torch.float64))
    close(
        Sphere().gradient(torch.tensor([1.0, 0, 0], dtype=torch.float64), g),
        torch.tensor([0, -2.0, 2.0], dtype=torch.float64),
    )


def test_degrees_of_freedom_and_errors() -> None:
    assert Sphere().dim((3,)) == 2
    assert Sphere().dim((2, 5, 4)) == 30
    for shape in ((), (0,), (2, 0)):
        with pytest.raises(ValueError, match="a point of Sphere has 1 axes of size 1 or more"):
            Sphere().dim(shape)
