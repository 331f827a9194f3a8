"""Doubly stochastic matrices against rounds of Sinkhorn, dense linear algebra and scipy's assignment."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from manifolds import BlockSpec, DoublyStochastic, Manifold, ProductManifold, Stiefel
from manifolds.engine import engine
from manifolds.kernels import sinkhorn
from manifolds.testing import check_manifold

F64 = torch.float64
REAL = (torch.float32, F64)
EPS = torch.finfo(F64).eps


def points(count: int, n: int = 4) -> Tensor:
    return DoublyStochastic().random(count, n, n, generator=torch.Generator().manual_seed(0), dtype=F64)


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def frames(x: Tensor) -> Tensor:
    """An orthonormal basis, in columns, of the W with rows and columns of sqrt(X) o W that sum to zero."""
    n, s = x.shape[-1], x.sqrt()
    rows = torch.zeros(n, n, n, dtype=F64)
    columns = torch.zeros(n, n, n, dtype=F64)
    for i in range(n):
        rows[i, i], columns[i, :, i] = s[i], s[:, i]
    sums = torch.cat([rows, columns]).reshape(2 * n, n * n)
    basis: Tensor = torch.linalg.svd(sums).Vh[2 * n - 1 :].mT
    return basis


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (DoublyStochastic(), (3, 3)),
        (DoublyStochastic(), (2, 2, 2)),
        (DoublyStochastic(), (1, 1)),
        (DoublyStochastic() * Stiefel(), (6, 3)),
        (ProductManifold((DoublyStochastic(),) * 2, BlockSpec(rows=2, axis=1)), (2, 4)),
    ],
    ids=str,
)
def test_the_contract(manifold: Manifold, shape: tuple[int, ...]) -> None:
    check_manifold(manifold, shape, dtype=REAL)


@pytest.mark.parametrize("n", [1, 2, 4, 128])
@pytest.mark.parametrize("dtype", REAL)
def test_rows_and_columns_sum_to_one(dtype: torch.dtype, n: int) -> None:
    """Within 1e-6 in float32, at random and after a step, also where Sinkhorn alone would need thousands of rounds."""
    m = DoublyStochastic()
    x = m.random(2, n, n, dtype=dtype, generator=torch.Generator().manual_seed(0))
    y = m.retract(x, m.gradient(x, noise(2, n, n, dtype=dtype)))
    far = sinkhorn.scaled((4 * noise(2, n, n, dtype=dtype)).exp())
    for z in (x, y, far):
        assert bool((z > 0).all())
        assert float(m.residual(z).max()) <= max(
            1e-6 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps, 8 * EPS
        )


def test_scaling_is_that_of_many_rounds() -> None:
    k = (2 * noise(3, 5, 5)).exp()
    y = k.clone()
    for _ in range(3000):
        y = y / y.sum(-1, keepdim=True)
        y = y / y.sum(-2, keepdim=True)
    assert torch.allclose(sinkhorn.scaled(k), y, rtol=1e-10)
    scale = torch.tensor([1e3, 1.0, 1e-5, 1.0, 7.0], dtype=F64)
    assert torch.allclose(sinkhorn.scaled(scale[:, None] * k * scale), y, rtol=1e-10)


@pytest.mark.filterwarnings("ignore")  # of forward mode, as it compiles its own rules
def test_scaling_has_derivatives_in_every_mode() -> None:
    k = noise(2, 3, 3).exp().requires_grad_()
    torch.autograd.gradcheck(sinkhorn.scaled, k, check_forward_ad=True)
    torch.autograd.gradgradcheck(sinkhorn.scaled, k)
    assert torch.allclose(torch.vmap(sinkhorn.scaled)(k), sinkhorn.scaled(k), atol=1e-14)


def test_gradient_coordinates_and_transport_are_orthogonal_projections() -> None:
    """Of frames W = V / sqrt(X), by an orthonormal basis of them."""
    m, e = DoublyStochastic(), engine(DoublyStochastic())
    x, y = points(2)
    a, (b, c) = noise(4, 4), (frames(x), frames(y))
    assert b.shape[1] == m.dim((4, 4)) == 9

    def onto(basis: Tensor, w: Tensor) -> Tensor:
        return (basis @ (basis.mT @ w.reshape(-1))).reshape(w.shape)

    s, t = x.sqrt(), y.sqrt()
    assert torch.allclose(e.coordinates(x, a), onto(b, a), atol=1e-13)
    assert torch.allclose(m.gradient(x, a), s * onto(b, s * a), atol=1e-13)
    v = m.project(x, a)
    assert torch.allclose(m.transport(x, y, v), t * onto(c, v / s), atol=1e-13)
    assert float(m.norm(y, m.transport(x, y, v))) <= float(m.norm(x, v))


def test_one_chart_reaches_all_of_it() -> None:
    """(sqrt X + W / 2)^2 is A Y B for the A, B that scale sqrt(X o Y) to the sums of X."""
    x, y = points(2)
    near = torch.eye(4, dtype=F64).roll(1, 0) * 0.97 + 0.01 * points(1)[0] + 0.02 / 4
    e = engine(DoublyStochastic())
    for z in (y, sinkhorn.scaled(near)):
        root = sinkhorn.scaled((x * z).sqrt())  # diag(a) sqrt(X o Z) diag(b)
        w = 2 * (root / x.sqrt() - x.sqrt())
        assert torch.allclose(e.coordinates(x, w), w, atol=1e-12)
        assert torch.allclose(e.move(x, w), z, atol=1e-12)


@pytest.mark.parametrize("dtype", REAL)
def test_steps_stay_inside_near_a_permutation(dtype: torch.dtype) -> None:
    """Where the linear system is nearly singular, and after the step that the reflection takes to 0."""
    m = DoublyStochastic()
    for small in (1e-3, 1e-9, 1e-15):
        x = sinkhorn.scaled(torch.eye(3, dtype=dtype) + small)
        v = m.gradient(x, noise(3, 3, dtype=dtype))
        assert bool(v.isfinite().all())
        for step in (v / m.norm(x, v), -v / m.norm(x, v), m.project(x, -2 * x)):
            y = m.retract(x, step)
            assert bool(m.contains(y))
            assert bool(m.transport(x, y, v).isfinite().all())


def test_a_linear_loss_goes_to_the_best_assignment() -> None:
    """min <C, X> is at a permutation, by scipy; every step stays in the set."""
    cost, m = noise(4, 4), DoublyStochastic()
    x = m.random(4, 4, dtype=F64, generator=torch.Generator().manual_seed(2))
    for _ in range(150):
        v = m.gradient(x, cost)
        x = m.retract(x, -0.5 * v)
    assert bool(m.contains(x))
    rows, columns = linear_sum_assignment(cost.numpy())
    assert x.argmax(-1).tolist() == columns.tolist()
    assert float((cost * x).sum()) == pytest.approx(float(cost[rows, columns].sum()), abs=1e-2)


def test_what_is_no_point_is_told() -> None:
    m = DoublyStochastic()
    assert m.residual(torch.full((2, 2), 0.5)) == 0
    assert m.residual(torch.eye(2)) == torch.inf
    assert m.residual(torch.full((2, 2), 0.25)) == 0.5
    with pytest.raises(ValueError, match=r"square matrices; got shape \(2, 3\)"):
        m.random(2, 3)
    with pytest.raises(ValueError, match="are real; got dtype"):
        m.random(2, 2, dtype=torch.complex64)


def test_blocks_that_are_nearly_apart_are_scaled() -> None:
    """What goes from one to the other is a millionth, and has to carry a hundredth: by logarithms, not by sums.

    A weight on its way to an edge, where steps of Newton that were not bounded led nowhere.
    """
    k = torch.tensor(
        [
            [1.097, 5.574e-08, 2.964e-09, 2.586e-07, 4.855e-07, 1.075e-12],
            [7.082e-08, 2.601e-09, 5.971e-08, 1.523e-08, 1.908e-08, 1.007],
            [1.428e-15, 1.705e-08, 4.156e-01, 4.972e-01, 1.099e-01, 2.147e-12],
            [3.724e-07, 1.199e-09, 1.799e-01, 1.125e-09, 9.140e-01, 1.147e-08],
            [7.017e-08, 7.470e-07, 4.255e-01, 5.953e-01, 4.508e-10, 3.700e-09],
            [2.415e-07, 1.008, 4.925e-07, 1.980e-03, 1.883e-06, 2.595e-08],
        ],
        dtype=F64,
    )
    assert DoublyStochastic().residual(sinkhorn.scaled(k)) <= 8 * EPS


def test_what_is_differentiated_has_the_value() -> None:
    """Near a permutation the system of the derivative has no digits; the value does not go by it, but is NaN where
    entries have underflowed, and with them that system."""
    k = (60 * noise(50, 3, 3)).exp().float().clamp(1e-30, 1e30)
    plain, recorded = sinkhorn.scaled(k), sinkhorn.scaled(k.requires_grad_()).detach()
    assert ((recorded == plain) | recorded.isnan()).all()
    assert (recorded == plain)[(plain > 0).all(-1).all(-1)].all()
