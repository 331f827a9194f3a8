"""The cone of positive definite matrices against scipy, geoopt and an integrated geodesic equation."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.overrides import TorchFunctionMode

from manifolds import PositiveDefinite, Stiefel, positive_definite
from manifolds._points import length
from manifolds.engine import engine
from manifolds.kernels import hermitian
from manifolds.positive_definite import Name
from manifolds.testing import check_manifold

F64 = torch.float64
METRICS = get_args(Name)
every_metric = pytest.mark.parametrize("metric", METRICS)
EPS = torch.finfo(F64).eps


def points(count: int, n: int = 4, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return PositiveDefinite().random(count, n, n, generator=generator, dtype=dtype)


def ill(n: int = 5, condition: float = 1e8, seed: int = 0) -> Tensor:
    q = Stiefel().random(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return hermitian.rebuilt(torch.logspace(0, -math.log10(condition), n, dtype=F64), q)


def tangent(x: Tensor, seed: int = 1) -> Tensor:
    return PositiveDefinite().random_tangent(x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 3), (1, 1), (2, 4, 4)], ids=str)
@every_metric
def test_the_contract(metric: Any, shape: tuple[int, ...]) -> None:
    check_manifold(PositiveDefinite(metric), shape)


def test_products() -> None:
    check_manifold(PositiveDefinite * PositiveDefinite("log-cholesky") * Stiefel, (9, 3))


# Against others ----------------------------------------------------------------------------------------------


def distance_by_scipy(metric: str, x: Any, y: Any) -> float:
    if metric == "affine-invariant":
        a, b = np.linalg.cholesky(x), np.linalg.cholesky(y)  # whose condition is the root of that of x, or y
        return 2 * float(np.linalg.norm(np.log(scipy.linalg.svdvals(scipy.linalg.solve_triangular(a, b, lower=True)))))
    if metric == "log-euclidean":
        return float(np.linalg.norm(scipy.linalg.logm(x) - scipy.linalg.logm(y)))
    if metric == "log-cholesky":
        a, b = np.linalg.cholesky(x), np.linalg.cholesky(y)
        low = np.linalg.norm(np.tril(a - b, -1))
        return float(np.hypot(low, np.linalg.norm(np.log(np.diag(a).real) - np.log(np.diag(b).real))))
    root = scipy.linalg.sqrtm(x)
    return float(np.sqrt((np.trace(x + y) - 2 * np.trace(scipy.linalg.sqrtm(root @ y @ root))).real))


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
@every_metric
def test_distance_is_that_of_scipy(metric: Any, dtype: torch.dtype) -> None:
    x, y = points(2, dtype=dtype)
    expected = distance_by_scipy(metric, x.numpy(), y.numpy())
    assert float(PositiveDefinite(metric).distance(x, y)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.filterwarnings("ignore")  # of the other library
def test_affine_invariant_is_that_of_geoopt() -> None:
    """Distance, exp, log, inner and gradient."""
    geoopt = pytest.importorskip("geoopt")
    theirs, ours = geoopt.SymmetricPositiveDefinite(), PositiveDefinite()
    x, y = points(2)
    u, v = tangent(x, 1), tangent(x, 2)
    for a, b in (
        (theirs.dist(x, y), ours.distance(x, y)),
        (theirs.expmap(x, u), ours.exp(x, u)),
        (theirs.logmap(x, y), ours.log(x, y)),
        (theirs.inner(x, u, v).squeeze(), ours.inner(x, u, v)),
        (theirs.egrad2rgrad(x, u), ours.gradient(x, u)),
        (theirs.retr(x, u), ours.retract(x, u)),
    ):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@every_metric
def test_exp_solves_the_geodesic_equation(metric: Any) -> None:
    """The stationary curve of the energy of the metric, of whose Lagrangian only `inner` is used."""
    m = PositiveDefinite(metric)
    x, n = points(1, 2)[0], 2
    v = 0.5 * tangent(x)
    basis = torch.tensor([[[1.0, 0], [0, 0]], [[0, 0], [0, 1.0]], [[0, 1.0], [1.0, 0]]], dtype=F64)

    def gram(c: Tensor) -> Tensor:
        z = (c[:, None, None] * basis).sum(0).expand(9, n, n)
        u, w = basis.repeat_interleave(3, 0), basis.repeat(3, 1, 1)
        return m.inner(z, u, w).reshape(3, 3)

    def slope(_: float, state: Any) -> Any:
        c, d = torch.from_numpy(state).split(3)
        g = gram(c)
        h = 1e-5
        e = h * torch.eye(3, dtype=F64)
        dg = torch.stack([(gram(c + e[k]) - gram(c - e[k])) / (2 * h) for k in range(3)])  # dg[k, i, j]
        force = torch.einsum("kij,i,j->k", dg, d, d) / 2 - torch.einsum("kij,k,j->i", dg, d, d)
        return torch.cat([d, torch.linalg.solve(g, force)]).numpy()

    def entries(a: Tensor) -> Any:
        return torch.stack([a[0, 0], a[1, 1], a[0, 1]]).numpy()

    end = solve_ivp(slope, (0, 1), np.concatenate([entries(x), entries(v)]), rtol=1e-8, atol=1e-10).y[:3, -1]
    assert np.allclose(end, entries(m.exp(x, v)), atol=1e-6)


@every_metric
def test_bad_condition_is_no_bad_result(metric: Any) -> None:
    """At a condition of 1e8, rounding leaves half of the digits of a float64, and exp inverts log to them."""
    m, x, y = PositiveDefinite(metric), ill(), ill(seed=1)
    assert bool(m.contains(torch.stack([x, y])).all())
    assert float(m.distance(x, y)) == pytest.approx(distance_by_scipy(metric, x.numpy(), y.numpy()), rel=1e-6)
    back = m.exp(x, m.log(x, y))
    assert bool(m.contains(back))
    assert float((back - y).norm()) < 1e8 * 64 * EPS
    g = tangent(x, 3)
    v = m.gradient(x, g)
    assert float(m.inner(x, v, v)) == pytest.approx(float((g * v).sum()), rel=1e-6)
    assert bool(m.contains(m.retract(x, torch.stack([v, -v]))).all())


# Means -------------------------------------------------------------------------------------------------------


@every_metric
def test_the_mean_has_no_gradient(metric: Any) -> None:
    """100 matrices of 20 x 20, weighted."""
    m, x = PositiveDefinite(metric), points(100, 20, seed=3)
    weights = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=F64)
    mean = m.mean(x, weights)
    left = (weights[:, None, None] * m.log(mean.expand_as(x), x)).sum(0) / weights.sum()
    assert float(m.norm(mean, left)) < 1e-10


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
def test_the_mean_of_two_is_half_way(dtype: torch.dtype) -> None:
    x = points(2, 5, dtype=dtype)
    for metric in METRICS:
        m = PositiveDefinite(metric)
        assert torch.allclose(m.mean(x), m.geodesic(x[0], x[1], 0.5), atol=1e-11), metric


def test_the_affine_invariant_mean_does_not_see_the_basis_nor_inversion() -> None:
    m, x = PositiveDefinite(), points(7, 3)
    a = torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    mean = m.mean(x)
    assert torch.allclose(m.mean(a @ x @ a.mT), a @ mean @ a.mT, atol=1e-11)
    assert torch.allclose(m.mean(x.inverse()), mean.inverse(), atol=1e-11)


def test_the_mean_of_far_and_nearly_singular_matrices_settles() -> None:
    """A fixed step of 1 goes too far, and the condition leaves few digits."""
    x = torch.stack([ill(3, 1e8, seed) for seed in range(6)])
    m = PositiveDefinite()
    mean = m.mean(x)
    left = m.log(mean.expand_as(x), x).mean(0)
    assert float(m.norm(mean, left)) < 1e8 * 64 * EPS


def test_means_are_batched() -> None:
    x = points(6, 3).reshape(2, 3, 3, 3)
    for metric in METRICS:
        m = PositiveDefinite(metric)
        together = m.mean(x)
        assert together.shape == (2, 3, 3)
        for i in range(2):
            assert torch.allclose(together[i], m.mean(x[i]), atol=1e-12)


def test_a_mean_needs_an_axis() -> None:
    for metric in METRICS:
        with pytest.raises(ValueError, match="over the last batch axis"):
            PositiveDefinite(metric).mean(torch.eye(3))


# Steps -------------------------------------------------------------------------------------------------------


@every_metric
def test_transport_is_an_isometry(metric: Any) -> None:
    """Also far out, where plain projection would make a short momentum long."""
    m = PositiveDefinite(metric)
    x, y = torch.eye(4, dtype=F64), ill(4, 1e6)
    v = tangent(x)
    assert float(m.norm(y, m.transport(x, y, v))) == pytest.approx(float(m.norm(x, v)), rel=1e-8)


def test_retract_is_second_order() -> None:
    """|R(tv) - exp(tv)| = O(t^3)."""
    m, x = PositiveDefinite(), points(1)[0]
    v = tangent(x)

    def error(t: float) -> float:
        return float((m.retract(x, t * v) - m.exp(x, t * v)).norm())

    assert error(5e-3) <= 0.13 * error(1e-2)


# Functions of matrices ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func.jvp
@pytest.mark.parametrize("name", ["exp", "log", "sqrt"])
@pytest.mark.parametrize("dtype", [F64, torch.complex128])
def test_functions_have_derivatives_where_eigenvalues_meet(name: str, dtype: torch.dtype) -> None:
    """Once and twice, forward, batched: at 2 I, and where two of four eigenvalues are equal."""
    function = getattr(hermitian, name)
    q = Stiefel().random(4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for values in ([2.0, 2, 2, 2], [0.5, 2, 2, 3], [0.5, 2, 2 + 1e-9, 3]):
        s = hermitian.rebuilt(torch.tensor(values, dtype=F64), q)
        expected = getattr(scipy.linalg, name + "m")(s.numpy())
        assert np.allclose(function(s).numpy(), expected, atol=1e-12)
        point = s.requires_grad_()
        torch.autograd.gradcheck(function, point)
        torch.autograd.gradgradcheck(function, point)
        e = hermitian.sym(torch.randn(4, 4, dtype=dtype, generator=torch.Generator().manual_seed(1)))
        _, tangent = torch.func.jvp(function, (s.detach(),), (e,))
        pulled = torch.func.vjp(function, s.detach())[1](e)[0]  # self-adjoint
        assert torch.allclose(tangent, pulled, atol=1e-12)
        many = torch.stack([s.detach(), 2 * s.detach()])
        assert torch.allclose(torch.vmap(function)(many), function(many), atol=1e-12)
        each = torch.func.vmap(torch.func.grad(lambda a: function(a).real.square().sum()))(many)
        whole = many.clone().requires_grad_()
        function(whole).real.square().sum().backward()
        assert torch.allclose(each, whole.grad, atol=1e-10)  # type: ignore[arg-type]


@every_metric
def test_distance_is_differentiable_where_eigenvalues_meet(metric: Any) -> None:
    """The gradient of distance^2 / 2 at y is -log(y, x), also from the identity."""
    m, x = PositiveDefinite(metric), torch.eye(3, dtype=F64)
    for y in (2 * torch.eye(3, dtype=F64), points(1, 3)[0]):
        at = y.clone().requires_grad_()
        (m.distance(x, at) ** 2 / 2).backward()
        assert torch.allclose(m.gradient(y, at.grad), -m.log(y, x), atol=1e-11)  # type: ignore[arg-type]
    at = x.clone().requires_grad_()
    m.distance(x, at).backward()
    assert torch.equal(at.grad, torch.zeros_like(x))  # type: ignore[arg-type]


def test_what_is_no_metric_or_no_square_is_refused() -> None:
    with pytest.raises(ValueError, match="metric of PositiveDefinite is one of 'affine-invariant'"):
        PositiveDefinite("euclidean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"square matrices; got shape \(3, 2\)"):
        PositiveDefinite().random(3, 2)


@pytest.mark.parametrize("metric", get_args(Name))
@pytest.mark.parametrize("what", ["distance", "log", "mean"])
def test_what_is_not_symmetric_or_not_definite_is_refused(metric: Any, what: str) -> None:
    """None of the formulas looks at both triangles: a matrix of one would be measured by half of it, in silence."""
    m, eye = PositiveDefinite(metric), torch.eye(3, dtype=torch.float64)

    def of(a: torch.Tensor) -> torch.Tensor:
        return m.mean(torch.stack([eye, a])) if what == "mean" else getattr(m, what)(eye, a)

    upper = eye + 0.3 * torch.ones_like(eye).triu(1)
    with pytest.raises(ValueError, match="symmetric"):
        of(upper)
    assert bool(of((upper + upper.mT) / 2).isfinite().all())
    if metric == "bures-wasserstein":
        return  # which singular matrices are at a finite distance under
    with pytest.raises(ValueError, match="positive definite matrices"):
        of(eye * torch.tensor([1.0, 1.0, -1.0]))


class Looks(TorchFunctionMode):
    """How often values are asked for NaN, and whether they are finite."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("isfinite", "isnan"):
            self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))


@every_metric
def test_points_are_asked_whether_they_are_finite_after_a_nan_only(metric: Any) -> None:
    m, (x, y) = PositiveDefinite(metric), points(2)
    for what in (m.log, m.distance):
        with Looks() as looks:
            what(x, y)
        assert looks.calls == ["isnan"]


@every_metric
def test_what_is_given_is_looked_at_once(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in each step of a mean, with its derivatives."""
    looked: list[Tensor] = []

    def noted(a: Tensor, ndim: int) -> Tensor:
        looked.append(a)
        return length(a, ndim)

    monkeypatch.setattr(positive_definite, "length", noted)
    PositiveDefinite(metric).mean(points(3).requires_grad_()).sum().backward()
    assert len(looked) == 2  # X and X - X^H


@every_metric
@pytest.mark.parametrize("what", ["distance", "log"])
def test_nan_is_told_as_such(metric: Any, what: str) -> None:
    """A multiple of the identity would not mend it."""
    x = points(3)
    bad = x.clone()
    bad[1] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite entries"):
        getattr(PositiveDefinite(metric), what)(x, bad)


def test_residual_tells_the_boundary() -> None:
    m = PositiveDefinite()
    assert m.residual(torch.eye(3)) == 0
    assert m.residual(torch.diag(torch.tensor([1.0, 0.0]))) == torch.inf
    assert m.residual(-torch.eye(2)) == torch.inf
    assert m.residual(torch.zeros(2, 2)) == torch.inf
    assert 0.1 < m.residual(torch.tensor([[2.0, 1.0], [0.0, 2.0]])) < 1


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_bures_wasserstein_goes_to_singular_matrices(condition: float) -> None:
    """They are at a finite distance: in float32 it is that of float64, of which a root takes half of the digits."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(2, 40, 3, 3, dtype=torch.float64, generator=generator)).Q
    x = (q * torch.tensor([1, condition**-0.5, 1 / condition], dtype=torch.float64)) @ q.mT
    x, y = ((x + x.mT) / 2).float()
    m, eps = PositiveDefinite("bures-wasserstein"), torch.finfo(torch.float32).eps
    assert bool(m.contains(x).all())
    exact = m.distance(x.double(), y.double())
    assert float((m.distance(x, y) - exact).abs().max()) <= 0.1 * eps**0.5
    assert bool(m.log(x, y).isfinite().all())
    v = m.random_tangent(x, generator=torch.Generator().manual_seed(1))
    assert bool((m.inner(x, v, v) > 0).all())


@pytest.mark.parametrize("size", [1e-300, 1e-100, 1e100, 1e300])
def test_bures_wasserstein_scales(size: float) -> None:
    """distance(c x, c y) = c^1/2 distance(x, y) and log(c x, c y) = c log(x, y), also where squares have no number."""
    m = PositiveDefinite("bures-wasserstein")
    x, y = m.random(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ratio = m.distance(size * x, size * y) / m.distance(x, y) / size**0.5
    assert abs(float(ratio) - 1) <= 1e-14
    torch.testing.assert_close(m.log(size * x, size * y) / size, m.log(x, y), rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", [25, 99])
def test_conformance_stops_at_singular_matrices(seed: int) -> None:
    """Seeds whose steps end so near to one that eigenvalues are rounding."""
    check_manifold(PositiveDefinite("bures-wasserstein"), (3, 3), dtype=torch.float32, seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("n", [2, 16, 48])
@pytest.mark.parametrize("step", ["move", "retract", "exp"])
@every_metric
def test_steps_to_the_edge_never_end_beyond_it(metric: Any, step: str, n: int, dtype: torch.dtype) -> None:
    """Step by step towards a singular matrix, where rounding would make an eigenvalue of 1e-20 a negative one: points,
    or NaN, which optimizers refuse, where eigenvalues have no digits left."""
    m = PositiveDefinite(metric)
    geometry, generator = engine(m), torch.Generator().manual_seed(0)
    x = m.random(2, n, n, generator=generator, dtype=dtype)
    u = torch.nn.functional.normalize(torch.randn(2, n, 1, generator=generator, dtype=dtype), dim=-2)
    for _ in range(60):
        c = -geometry.lift(x, u @ u.mH)  # u^H X u gets smaller
        c = c * (2 / torch.linalg.matrix_norm(c, keepdim=True))
        v = m._metric.vector(x, c)
        y = geometry.move(x, c) if step == "move" else m.retract(x, v) if step == "retract" else m.exp(x, v)
        seen = y.isnan().any(-1).any(-1)
        assert (m.contains(y) | seen).all()
        x = torch.where(seen[:, None, None], x, y)


@pytest.mark.parametrize("factored", ["affine-invariant", "log-cholesky"])
@pytest.mark.parametrize("sizes", [(1.0, 1e-8, 1e-20), (1e5, 1.0, 1e-4)])
def test_rows_of_any_size_stay(factored: Any, sizes: tuple[float, ...]) -> None:
    """Units differ: what is small beside another row is no rounding, and R_X(0) = X as it is."""
    for dtype in (torch.float32, F64):
        x = torch.tensor([[1, 0.5, 0.2], [0.5, 1, 0.3], [0.2, 0.3, 1]], dtype=dtype)
        x = x * torch.tensor(sizes, dtype=dtype).sqrt() * torch.tensor(sizes, dtype=dtype).sqrt()[:, None]
        m, zero = PositiveDefinite(factored), torch.zeros(3, 3, dtype=dtype)
        for y in (m.retract(x, zero), m.exp(x, zero), engine(m).move(x, zero)):
            assert m.distance(x, y) <= 32 * torch.finfo(dtype).eps


def test_what_is_left_of_no_size_is_seen() -> None:
    """No matrix is so small: NaN, which a step of an optimizer refuses, not a point that is none."""
    x = torch.full((1, 1, 1), 1e-44)
    assert PositiveDefinite("log-euclidean").retract(x, -1e3 * x).isnan().all()
    empty = torch.zeros(2, 0, 0)
    assert PositiveDefinite().retract(empty, empty).shape == (2, 0, 0)
