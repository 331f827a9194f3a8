"""The logarithm of rotations and unitary matrices: every angle up to pi, planes that coincide, and scipy's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.func import vmap

from manifolds import GeodesicManifold, Orthogonal, SpecialOrthogonal
from manifolds.kernels.logarithm import logarithm

REAL, COMPLEX = torch.float64, torch.complex128
EPS = torch.finfo(REAL).eps
PI = math.pi
GROUPS: list[GeodesicManifold] = [Orthogonal(), SpecialOrthogonal()]


def turned(n: int, angles: Sequence[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A rotation of R^n by these angles in random planes, and its skew logarithm."""
    x = SpecialOrthogonal().random(n, n, dtype=REAL, generator=torch.Generator().manual_seed(seed))
    q, omega = torch.eye(n, dtype=REAL), torch.zeros(n, n, dtype=REAL)
    for k, t in enumerate(angles):
        i = 2 * k
        omega[i + 1, i], omega[i, i + 1] = t, -t
        q[i, i] = q[i + 1, i + 1] = math.cos(t)
        q[i + 1, i], q[i, i + 1] = math.sin(t), -math.sin(t)
    return x @ q @ x.mT, x @ omega @ x.mT


CASES = [
    (2, [1e-12]),
    (2, [PI - 1e-9]),
    (2, [PI]),
    (3, [0.0]),
    (3, [1.5]),
    (3, [PI]),
    (4, [1.0, 1.0]),
    (4, [PI, PI]),
    (4, [PI, 1e-9]),
    (4, [PI / 2, PI / 2]),
    (5, [PI - 1e-8, PI - 1e-8]),
    (6, [PI, PI - 1e-12, PI - 1e-14]),
    (7, [PI - 1e-10, 1.0, 1e-10]),
    (8, [PI, PI, PI, PI]),
    (8, [PI - 1e-7, PI - 1e-9, PI - 1e-11, PI - 1e-13]),
    (8, [PI - 3e-16, PI - 1e-15, PI - 3e-15, 1.0]),
    (9, [1.0, 1.0, 1.0, 2.0]),
    (40, list(np.linspace(0, PI, 20))),
]


@pytest.mark.parametrize(("n", "angles"), CASES, ids=str)
def test_it_is_a_shortest_logarithm_to_rounding(n: int, angles: list[float]) -> None:
    """Where planes coincide it need not be the one that made Q, but it is as long, and its exponential is Q."""
    q, omega = turned(n, angles)
    found = logarithm(q)
    assert torch.equal(found, -found.mT)
    # eigenvalues of two n x n problems and a change of basis: a few roundings of each
    assert np.abs(scipy.linalg.expm(found.numpy()) - q.numpy()).max() <= 32 * EPS * max(2, n / 4)
    assert abs(float(found.norm() - omega.norm())) <= 16 * EPS * math.sqrt(n)


@pytest.mark.parametrize("t", [1e-12, 1e-9, 1e-5, 1e-3, 0.5, 2.0, 3.0, PI - 1e-3, PI - 1e-6, PI - 1e-9])
@pytest.mark.parametrize("n", [2, 3])
def test_plane_and_space_have_every_angle_to_rounding(n: int, t: float) -> None:
    for seed in range(5):
        q, omega = turned(n, [t], seed)
        assert float((logarithm(q) - omega).abs().max()) <= 8 * EPS
        assert abs(float(SpecialOrthogonal().distance(torch.eye(n, dtype=REAL), q)) - math.sqrt(2) * t) <= 8 * EPS


@pytest.mark.parametrize("t", [1e-300, 1e-30, 1e-12, 1e-6, 1e-4])
def test_small_angles_have_all_their_digits(t: float) -> None:
    q = torch.eye(3, dtype=REAL)
    q[0, 1], q[1, 0] = -t, t  # cos(t) = 1 - t^2 / 2
    q[0, 0] = q[1, 1] = math.cos(t)
    due = torch.zeros(3, 3, dtype=REAL)
    due[0, 1], due[1, 0] = -math.asin(t), math.asin(t)
    torch.testing.assert_close(logarithm(q), due, rtol=t**2 + 4 * EPS, atol=0)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 20])
def test_random_rotations_have_the_logarithm_of_scipy(n: int) -> None:
    q = SpecialOrthogonal().random(4, n, n, dtype=REAL)
    for one in q:
        due = scipy.linalg.logm(one.numpy())
        np.testing.assert_allclose(logarithm(one).numpy(), due.real, atol=1e-11)  # scipy's, near pi


@pytest.mark.parametrize(
    "angles", [[3.0], [PI, PI], [PI - 1e-12, -PI + 1e-12], [0, 0, 0, 0], [3, 3, 3, 1.0], [1e-9, PI - 1e-9, 0.3, 1]]
)
def test_unitary_matrices(angles: list[float]) -> None:
    n = len(angles)
    t = torch.tensor(angles, dtype=REAL)
    x = Orthogonal().random(n, n, dtype=COMPLEX)
    q = x @ torch.diag(torch.polar(torch.ones_like(t), t)) @ x.mH
    found = logarithm(q)
    assert float((torch.linalg.matrix_exp(found.expand(2, n, n))[0] - q).abs().max()) <= 64 * EPS
    assert abs(float(found.norm() - t.norm())) <= 16 * EPS * n


def test_on_su_it_is_the_shortest_of_trace_zero() -> None:
    """A brute force over turns of 2 pi that cancel: none is shorter."""
    q = SpecialOrthogonal().random(200, 3, 3, dtype=COMPLEX, generator=torch.Generator().manual_seed(0))
    found = logarithm(q, special=True)
    assert float(found.diagonal(dim1=-2, dim2=-1).sum(-1).abs().max()) <= 32 * EPS
    assert float((torch.linalg.matrix_exp(found) - q).abs().max()) <= 64 * EPS
    angles = torch.linalg.eigvals(q).angle()
    turns = torch.cartesian_prod(*[torch.arange(-2, 3)] * 3).to(REAL)
    every = angles[:, None] + 2 * PI * turns
    shortest = torch.where(every.sum(-1).abs() < 1e-9, every.norm(dim=-1), torch.inf).amin(-1)
    torch.testing.assert_close(found.flatten(-2).norm(dim=-1), shortest)
    assert bool((angles.sum(-1).abs() > 1).any())  # some need turns


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_no_path_joins_the_parts_of_the_orthogonal_group(n: int) -> None:
    x = SpecialOrthogonal().random(3, n, n, dtype=REAL)
    flip = torch.ones(n, dtype=REAL)
    flip[0] = -1
    y = x * flip
    assert (Orthogonal().distance(x, y) == math.inf).all()
    assert Orthogonal().distance(x, torch.stack([x[0], y[1], y[2]])).isfinite().tolist() == [True, False, False]
    with pytest.raises(ValueError, match="no path on Orthogonal"):
        Orthogonal().log(x, y)
    with pytest.raises(ValueError, match="no path on Orthogonal"):
        vmap(Orthogonal().log)(x, y)
    bad = torch.full_like(x, torch.nan)
    assert Orthogonal().log(x, bad).isnan().all()
    assert Orthogonal().distance(x, bad).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, REAL, COMPLEX], ids=str)
@pytest.mark.parametrize("manifold", GROUPS, ids=str)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_logs_and_distances_belong_to_the_group(manifold: GeodesicManifold, n: int, dtype: torch.dtype) -> None:
    x = manifold.random(6, n, n, dtype=dtype)
    y = x @ SpecialOrthogonal().random(6, n, n, dtype=dtype)
    few = 128 * torch.finfo(dtype).eps
    v = manifold.log(x, y)
    assert float((manifold.exp(x, v) - y).abs().max()) <= few
    torch.testing.assert_close(manifold.distance(x, y), manifold.norm(x, v), rtol=few, atol=few)
    torch.testing.assert_close(manifold.distance(y @ x, x @ x), manifold.distance(y, x), rtol=few, atol=few)
    # invariant under the inverse: the metric is the same on both sides
    torch.testing.assert_close(manifold.distance(x.mH, y.mH), manifold.distance(x, y), rtol=few, atol=few)
    assert float(manifold.distance(x, x).max()) <= few


@pytest.mark.parametrize("manifold", GROUPS, ids=str)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_squared_distance_has_the_log_for_its_gradient(manifold: GeodesicManifold, n: int) -> None:
    """-2 log, and 0 at the point itself."""
    x = manifold.random(n, n, dtype=REAL)
    for y in (x, x @ turned(n, [0.7] * (n // 2))[0]):
        z = y.clone().requires_grad_()
        (g,) = torch.autograd.grad(manifold.distance(x, z) ** 2, z)
        torch.testing.assert_close(manifold.project(y, g), -2 * manifold.log(y, x), rtol=0, atol=1e-13)


def test_the_mean_of_rotations_is_where_the_logs_balance() -> None:
    s = SpecialOrthogonal()
    generator = torch.Generator().manual_seed(0)
    for shape, dtype in (
        ((1000, 3, 3), REAL),
        ((2, 50, 5, 5), REAL),
        ((40, 3, 3), COMPLEX),
        ((60, 3, 3), torch.float32),
    ):
        base = s.random(*shape[:-3], 1, *shape[-2:], dtype=dtype, generator=generator).expand(shape)
        x = s.exp(base, 0.3 * s.random_tangent(base, generator))
        w = torch.rand(shape[:-2], generator=generator, dtype=dtype.to_real())
        y = s.mean(x, w)
        assert s.contains(y).all()
        pull = (w[..., None, None] * s.log(y.unsqueeze(-3).expand(x.shape), x)).sum(-3) / w.sum(-1)[..., None, None]
        assert float(pull.abs().max()) <= 16 * torch.finfo(dtype).eps
