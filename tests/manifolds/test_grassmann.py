"""Subspaces: principal angles, and that nothing depends on the basis, by scipy and by pymanopt."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import Grassmann, Orthogonal

REAL, COMPLEX = torch.float64, torch.complex128
EPS = torch.finfo(REAL).eps
M = Grassmann()
dtypes = pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=str)
shapes = pytest.mark.parametrize("shape", [(7, 3), (5, 3), (3, 7), (4, 4), (6, 1)], ids=str)


def turned(x: Tensor) -> Tensor:
    """Another basis of the same subspace."""
    n, p = x.shape[-2:]
    q = Orthogonal().random(min(n, p), min(n, p), dtype=x.dtype, generator=torch.Generator().manual_seed(9))
    return x @ q if n >= p else q @ x


def angles(x: Tensor, y: Tensor) -> np.ndarray:
    """By sines and by cosines; those of scipy are off by 1e-13 where one is just short of a right angle."""
    tall = (lambda a: a) if x.shape[-2] >= x.shape[-1] else (lambda a: a.mH)
    x, y = (scipy.linalg.orth(tall(a).resolve_conj().numpy()) for a in (x, y))  # type: ignore[no-untyped-call]
    along = x.conj().T @ y
    cosines, sines = (np.linalg.svd(a, compute_uv=False) for a in (along, y - x @ along))
    return np.arctan2(sines, cosines[::-1])


@dtypes
@shapes
def test_the_distance_is_that_of_the_principal_angles_of_scipy(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, y = M.random(2, *shape, dtype=dtype)
    assert abs(float(M.distance(x, y)) - np.linalg.norm(angles(x, y))) <= 32 * EPS
    torch.testing.assert_close(
        M.distance(turned(x), turned(y.flip(0))), M.distance(x, y.flip(0)), rtol=0, atol=32 * EPS
    )
    assert float(M.distance(x, turned(x))) <= 32 * EPS
    v = M.log(x, y)
    assert float((v if shape[0] < shape[1] else x.mH @ v).abs().max()) <= (16 * EPS if shape[0] >= shape[1] else 2)
    z = M.exp(x, v)
    assert np.linalg.norm(angles(z, y)) <= 64 * EPS


@dtypes
@pytest.mark.parametrize(
    "due",
    [[1e-12, 1e-9, 1e-5], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [math.pi / 2 - 1e-9, math.pi / 2, math.pi / 2]],
    ids=str,
)
def test_angles_are_exact_near_0_and_near_a_right_angle(due: list[float], dtype: torch.dtype) -> None:
    """acos of a singular value is off by 1e-8 near 0, asin near pi / 2."""
    t = torch.tensor(due, dtype=REAL)
    q = Orthogonal().random(8, 8, dtype=dtype)
    x = q[:, :3]
    y = turned(x * t.cos() + q[:, 3:6] * t.sin())
    found = torch.linalg.svdvals(M.log(turned(x), y)).sort().values
    assert float((found - t.sort().values).abs().max()) <= 32 * EPS
    assert np.linalg.norm(angles(M.exp(x, M.log(x, y)), y)) <= 64 * EPS


def test_exp_log_and_distance_are_those_of_pymanopt() -> None:
    peer = importlib.import_module("pymanopt").manifolds.Grassmann(9, 4)
    x, y = M.random(2, 9, 4, dtype=REAL)
    v = M.random_tangent(x)
    assert abs(peer.dist(x.numpy(), y.numpy()) - float(M.distance(x, y))) <= 1e-12
    np.testing.assert_allclose(peer.log(x.numpy(), y.numpy()), M.log(x, y).numpy(), atol=1e-12)
    theirs = peer.exp(x.numpy(), v.numpy())
    np.testing.assert_allclose(theirs @ theirs.T, (lambda z: z @ z.mT)(M.exp(x, v)).numpy(), atol=1e-12)
    assert peer.dim == M.dim((9, 4))


@dtypes
@shapes
def test_another_basis_gives_the_same_times_q(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, y = M.random(2, *shape, dtype=dtype)
    a = torch.randn(shape, dtype=dtype)
    v = M.project(x, a)
    for one, other in (
        (M.project(turned(x), turned(a)), turned(v)),
        (M.exp(turned(x), turned(v)), turned(M.exp(x, v))),
        (M.retract(turned(x), turned(v)), turned(M.retract(x, v))),
        (M.transport(turned(x), turned(y), turned(v)), turned(M.transport(x, y, v))),
        (M.log(turned(x), turned(y)), turned(M.log(x, y))),
        (M.log(x, turned(y)), M.log(x, y)),
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=256 * EPS)


@pytest.mark.parametrize("shape", [(8, 3), (3, 8)], ids=str)
@pytest.mark.parametrize("kind", ["trivialization", "sgd", "adam"])
def test_training_does_not_depend_on_the_basis(kind: str, shape: tuple[int, int]) -> None:
    """Losses from X and from X Q agree step by step, and end at the sum of the largest eigenvalues."""
    matrix = torch.diag(torch.tensor([8.0, 7, 6, 2, 1, 0.5, 0.2, 0.1], dtype=REAL))
    x = M.random(*shape, dtype=REAL, generator=torch.Generator().manual_seed(3))
    losses: list[list[float]] = []
    for start in (x, turned(x)):
        net: Any = nn.Module()
        net.weight = nn.Parameter(torch.zeros(shape, dtype=REAL))
        constrain(net, "weight", M, Trivialization() if kind == "trivialization" else Riemannian(), init=start)
        step: torch.optim.Optimizer
        if kind == "trivialization":
            step = torch.optim.SGD(net.parameters(), lr=0.04, momentum=0.5)
        else:
            step = RiemannianSGD(net, lr=0.04, momentum=0.5) if kind == "sgd" else RiemannianAdam(net, lr=0.1)
        rates = torch.optim.lr_scheduler.ExponentialLR(step, 0.97 if kind == "adam" else 1.0)
        found = []
        for _ in range(150):
            step.zero_grad()
            w = net.weight if shape[0] >= shape[1] else net.weight.mT
            loss = -torch.trace(w.mT @ matrix @ w)
            loss.backward()
            step.step()
            rates.step()
            found.append(float(loss.detach()))
        losses.append(found)
        assert abs(found[-1] + 21) < 1e-3
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-9)  # rounding, magnified while it falls


def test_the_mean_of_subspaces_is_where_the_logs_balance_and_any_basis_gives_it() -> None:
    base = M.random(6, 2, dtype=REAL).expand(40, 6, 2)
    x = M.exp(base, 0.2 * M.random_tangent(base))
    y = M.mean(x)
    assert float(M.log(y.expand(x.shape), x).mean(0).abs().max()) <= 16 * EPS
    other = M.mean(torch.stack([turned(one) if i % 2 else one for i, one in enumerate(x)]))
    assert float(M.distance(y, other)) <= 64 * EPS


@dtypes
def test_a_squared_distance_has_the_log_for_its_gradient(dtype: torch.dtype) -> None:
    """-2 log(y, x), also where angles coincide, and where they are 0."""
    q = Orthogonal().random(7, 7, dtype=dtype)
    x = q[:, :3]
    for t in ([0.0, 0.0, 0.0], [0.4, 0.4, 0.0], [0.3, 0.7, 1.2]):
        a = torch.tensor(t, dtype=REAL)
        y = turned(x * a.cos() + q[:, 3:6] * a.sin())
        z = y.clone().requires_grad_()
        (g,) = torch.autograd.grad(M.distance(x, z) ** 2, z)
        torch.testing.assert_close(g, -2 * M.log(y, x), rtol=0, atol=1e-13)


def test_degrees_of_freedom() -> None:
    assert M.dim((7, 3)) == M.dim((3, 7)) == 12
    assert M.dim((5, 7, 3)) == 60
    assert M.dim_of_complex((7, 3)) == 24
    assert M.dim((4, 4)) == 0
