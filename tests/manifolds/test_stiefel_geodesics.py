"""Geodesics of orthonormal columns in both metrics: the differential equation, scipy, and the way back."""

from __future__ import annotations

import importlib
import math
from typing import Any, get_args

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import torch
from torch import Tensor
from torch.func import jvp, vmap

from manifolds import Orthogonal, SpecialOrthogonal, Sphere, Stiefel
from manifolds.kernels import stiefel_log
from manifolds.retractions import Metric

# geoopt, and torch's own forward derivatives, are compiled by torch.jit.script when they are first used
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

REAL, COMPLEX = torch.float64, torch.complex128
EPS = torch.finfo(REAL).eps
metrics = pytest.mark.parametrize("metric", get_args(Metric))
dtypes = pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=str)
shapes = pytest.mark.parametrize("shape", [(4, 2), (7, 3), (5, 3), (3, 5), (4, 3), (5, 1)], ids=str)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pair(metric: Metric, shape: tuple[int, ...], dtype: torch.dtype, length: float) -> tuple[Tensor, Tensor]:
    """Points, and vectors of this length."""
    m, g = Stiefel(metric), generator()
    x = m.random(*shape, dtype=dtype, generator=g).resolve_conj()  # of whose views torch takes no forward derivatives
    v = m.random_tangent(x, g)
    return x, v * (length / m.norm(x, v))[..., None, None]


def acceleration(metric: Metric, x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """X'' of a geodesic; Edelman, Arias & Smith (1998), equations 2.7 and 2.41."""
    s = v.conj().T @ v
    if metric == "euclidean":
        return -x @ s  # type: ignore[no-any-return]
    a = x.conj().T @ v
    return -v @ a.conj().T - x @ (a @ a + s)  # type: ignore[no-any-return]


@metrics
@dtypes
def test_exp_is_the_geodesic_that_scipy_integrates(metric: Metric, dtype: torch.dtype) -> None:
    x, v = pair(metric, (4, 2), dtype, 2.0)

    def slope(_: float, state: np.ndarray) -> np.ndarray:
        y, u = state.reshape(2, 4, 2)
        return np.stack([u, acceleration(metric, y, u)]).ravel()

    start = np.stack([x.numpy(), v.numpy()]).ravel()
    end = scipy.integrate.solve_ivp(slope, (0, 1), start, method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(Stiefel(metric).exp(x, v).numpy(), end.reshape(2, 4, 2)[0], atol=1e-10)


@metrics
def test_the_velocity_of_scipy_comes_back(metric: Metric) -> None:
    """The end by scipy's expm of n x n matrices: exp(W) X of the canonical metric, and Euclid's with 2A."""
    x, v = pair(metric, (6, 2), REAL, 2.0)
    a, k = x.mT @ v, v - x @ (x.mT @ v)
    m = 1 if metric == "canonical" else 2
    w = (m * x @ a + k) @ x.mT - x @ k.mT
    y = scipy.linalg.expm(w.numpy()) @ x.numpy() @ scipy.linalg.expm(-(m - 1) * a.numpy())
    torch.testing.assert_close(Stiefel(metric).log(x, torch.from_numpy(y)), v, rtol=0, atol=64 * EPS)


@metrics
@dtypes
@shapes
def test_the_log_finds_every_shortest_geodesic(metric: Metric, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Up to 2.8 = 0.89 pi, and 2 < pi / sqrt(2) on complex matrices in the canonical metric."""
    m = Stiefel(metric)
    for length in (1e-8, 0.5, 2.0) if metric == "canonical" and dtype.is_complex else (1e-8, 0.5, 2.0, 2.8):
        x, v = pair(metric, (8, *shape), dtype, length)
        y = m.exp(x, v)
        found = m.log(x, y)
        # 16 eps of the end, over the smallest singular value of the derivative of exp: sin(2.8) / 2.8 on a sphere
        torch.testing.assert_close(found, v, rtol=0, atol=256 * EPS)
        torch.testing.assert_close(m.exp(x, found), y, rtol=0, atol=64 * EPS)
        torch.testing.assert_close(m.distance(x, y), m.norm(x, v), rtol=0, atol=256 * EPS)


@metrics
@pytest.mark.parametrize("angle", [0.1, 1.5, 2.1])
def test_a_plane_turned_in_itself_and_a_column_turned_out(metric: Metric, angle: float) -> None:
    """One angle t in A has length t in the canonical and sqrt(2) t in the Euclidean metric; in B, t in both."""
    m, x = Stiefel(metric), torch.eye(5, 2, dtype=REAL)
    c, s = math.cos(angle), math.sin(angle)
    inside, out = x.clone(), x.clone()
    inside[:2] = torch.tensor([[c, -s], [s, c]], dtype=REAL)
    out[0, 0], out[2, 0] = c, s
    due = angle if metric == "canonical" else math.sqrt(2) * angle
    assert abs(float(m.distance(x, inside)) - due) <= 64 * EPS
    assert abs(float(m.distance(x, out)) - angle) <= 64 * EPS


@metrics
@dtypes
def test_square_matrices_are_the_group(metric: Metric, dtype: torch.dtype) -> None:
    m, by = Stiefel(metric), math.sqrt(2) if metric == "canonical" else 1
    x = m.random(3, 4, 4, dtype=dtype)
    y = x @ SpecialOrthogonal().random(3, 4, 4, dtype=dtype)
    torch.testing.assert_close(m.log(x, y), Orthogonal().log(x, y), rtol=0, atol=0)
    torch.testing.assert_close(m.distance(x, y), Orthogonal().distance(x, y) / by, rtol=0, atol=8 * EPS)
    torch.testing.assert_close(m.distance(x, y), m.norm(x, m.log(x, y)), rtol=0, atol=64 * EPS)
    if not dtype.is_complex:
        with pytest.raises(ValueError, match="no path on Stiefel"):
            m.log(x, y * torch.tensor([1.0, 1, 1, -1], dtype=REAL))


@dtypes
def test_one_column_is_the_sphere(dtype: torch.dtype) -> None:
    x, y = Sphere().random(2, 5, dtype=dtype)
    for z in (y, -x):
        torch.testing.assert_close(
            Stiefel().distance(x[:, None], z[:, None]), Sphere().distance(x, z), rtol=0, atol=8 * EPS
        )


def test_exp_and_distances_are_those_of_peers() -> None:
    x, v = pair("euclidean", (6, 3), REAL, 1.5)
    geoopt: Any = importlib.import_module("geoopt")
    pymanopt: Any = importlib.import_module("pymanopt")
    y = Stiefel().exp(x, v)
    torch.testing.assert_close(geoopt.EuclideanStiefel().expmap(x, v), y, rtol=0, atol=1e-13)
    np.testing.assert_allclose(pymanopt.manifolds.Stiefel(6, 3).exp(x.numpy(), v.numpy()), y.numpy(), atol=1e-13)


@metrics
@dtypes
@pytest.mark.parametrize("shape", [(5, 2), (4, 3)], ids=str)
def test_a_squared_distance_has_the_log_for_its_gradient(
    metric: Metric, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    """-2 log(y, x), 0 at the point itself, and where n > 2p from outside of their span too."""
    m = Stiefel(metric)
    x, v = pair(metric, shape, dtype, 1.2)
    for y in (x, m.exp(x, v)):
        z = y.clone().requires_grad_()
        (g,) = torch.autograd.grad(m.distance(x, z) ** 2, z)
        torch.testing.assert_close(m.gradient(y, g), -2 * m.log(y, x), rtol=0, atol=256 * EPS)


@metrics
@dtypes
@pytest.mark.parametrize("shape", [(7, 2), (2, 5), (5, 3)], ids=str)
@pytest.mark.parametrize("length", [0.0, 1.5])
def test_the_derivative_of_log_undoes_that_of_exp(
    metric: Metric, dtype: torch.dtype, shape: tuple[int, int], length: float
) -> None:
    """log(x, exp(x, v + t u)) = v + t u; and both ends may move with an isometry, which moves v along."""
    m = Stiefel(metric)
    x, v = pair(metric, shape, dtype, length)
    u = m.random_tangent(x, torch.Generator().manual_seed(1))
    found = jvp(lambda v: m.log(x, m.exp(x, v)), (v,), (u,))[1]
    torch.testing.assert_close(found, u, rtol=0, atol=256 * EPS)
    side = shape[0] if shape[0] > shape[1] else shape[1]
    omega = Orthogonal().project(torch.eye(side, dtype=dtype), torch.randn(side, side, dtype=dtype))
    y = m.exp(x, v).resolve_conj()
    turned = [omega @ a if shape[0] > shape[1] else a @ omega for a in (x, y, v)]
    found = jvp(m.log, (x, y), (turned[0], turned[1]))[1]
    torch.testing.assert_close(found, turned[2], rtol=0, atol=1024 * EPS)


@metrics
def test_second_derivatives_at_coincident_points_are_the_metric(metric: Metric) -> None:
    m = Stiefel(metric)
    x, u = pair(metric, (4, 2), REAL, 1.0)
    h = torch.func.hessian(lambda y: m.inner(x, m.log(x, y), m.log(x, y)) / 2)(x)
    torch.testing.assert_close(torch.einsum("ij,ijkl,kl", u, h, u), m.inner(x, u, u), rtol=1e-12, atol=0)


@metrics
def test_what_does_not_settle_is_an_error_that_says_the_way_out(metric: Metric, monkeypatch: Any) -> None:
    """Followed, it leads through points farther apart than any that are promised."""
    m = Stiefel(metric)
    x, y = m.random(2, 20, 6, 3, dtype=REAL, generator=generator())
    with monkeypatch.context() as patch:
        patch.setattr(stiefel_log, "STEPS", 0)
        for log in (m.log, vmap(m.log)):
            with pytest.raises(ValueError, match=r"did not settle.* z = nearest\(x \+ y\)"):
                log(x, y)
    z = m.nearest(x + y)
    torch.testing.assert_close(m.exp(z, m.log(z, y)), y, rtol=0, atol=64 * EPS)
    way = m.distance(x, z) + m.distance(z, y)
    assert float(way.max()) > math.pi


@metrics
@dtypes
def test_a_reflected_column_is_half_a_turn_away(metric: Metric, dtype: torch.dtype) -> None:
    """Through any direction outside: all are as long, some is taken, and derivatives along the others are left out."""
    m, x = Stiefel(metric), torch.eye(5, 2, dtype=dtype)
    y = x.flip(1).requires_grad_()
    v = m.log(x, y)
    torch.testing.assert_close(m.exp(x, v), y, rtol=0, atol=64 * EPS)
    due = math.pi / math.sqrt(2) if metric == "canonical" and dtype.is_complex else math.pi
    assert abs(float(m.norm(x, v).detach()) - due) <= 64 * EPS
    (g,) = torch.autograd.grad(m.distance(x, y), y)
    assert g.isfinite().all()


@metrics
def test_nan_goes_through_alone(metric: Metric) -> None:
    m = Stiefel(metric)
    x, v = pair(metric, (3, 4, 2), REAL, 1.0)
    y = m.exp(x, v)
    y[1, 0, 0] = math.nan
    assert m.log(x, y).isnan().flatten(1).any(1).tolist() == [False, True, False]
    assert m.distance(x, y).isnan().tolist() == [False, True, False]


@metrics
def test_the_mean_is_where_the_logs_balance_and_products_have_it(metric: Metric) -> None:
    m, g = Stiefel(metric), generator()
    base = m.random(5, 2, dtype=REAL, generator=g).expand(12, 5, 2)
    x = m.exp(base, 0.3 * m.random_tangent(base, g))
    y = m.mean(x)
    assert m.contains(y)
    assert float(m.log(y.expand(x.shape), x).mean(0).abs().max()) <= 16 * EPS
    both = (m**2).mean(torch.cat([x, x.flip(0)], -2))
    torch.testing.assert_close(both, torch.cat([y, y]), rtol=0, atol=128 * EPS)
    torch.testing.assert_close(m.mean(x[:2]), m.geodesic(x[0], x[1], 0.5), rtol=0, atol=128 * EPS)
