"""Each retraction against its definition, computed independently, and against its cost when p << n."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manifolds import Orthogonal, SpecialOrthogonal, Stiefel
from manifolds.engine import engine
from manifolds.retractions import cayley, exp, polar, qr
from manifolds.testing import tangent_vectors

DTYPES = (torch.float64, torch.complex128)
SHAPES = [(4, 4), (7, 3), (3, 7), (5, 1), (1, 5), (1, 1), (2, 2), (3, 3), (4, 3)]
RETRACTIONS = {
    "polar": polar,
    "qr": qr,
    "cayley": cayley,
    "exp": exp,
    "canonical exp": partial(exp, metric="canonical"),
}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
lengths = pytest.mark.parametrize("length", [1e-3, 0.3, 2.0, 10.0])
every_retraction = pytest.mark.parametrize("retract", RETRACTIONS.values(), ids=list(RETRACTIONS))


def tangent(shape: tuple[int, ...], dtype: torch.dtype, length: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A point, and a tangent vector of this length."""
    generator = torch.Generator().manual_seed(seed)
    x = Stiefel().random(*shape, generator=generator, dtype=dtype)
    v = Stiefel().project(x, torch.randn(shape, generator=generator, dtype=dtype))
    return x, length * v / v.norm().clamp_min(1e-300)


def tall(function: Callable[[np.ndarray, np.ndarray], np.ndarray], x: Tensor, v: Tensor) -> Tensor:
    """An oracle for orthonormal columns, of conjugate transposes where there are rows."""
    a, b = x.numpy(), v.numpy()
    wide = a.shape[-2] < a.shape[-1]
    y = function(a.conj().T, b.conj().T).conj().T if wide else function(a, b)
    return torch.as_tensor(np.ascontiguousarray(y))


def close(a: Tensor, b: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# Definitions -------------------------------------------------------------------------------------------------


def scipy_polar(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    return scipy.linalg.polar(x + v)[0]


def numpy_qr(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Q of QR with the signs (phases) that make the diagonal of R positive."""
    q, r = np.linalg.qr(x + v)
    return q * (np.diag(r) / np.abs(np.diag(r)))


def textbook_cayley(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(I - W/2)^-1 (I + W/2) X with the n x n matrix W = P V X^H - X V^H P, P = I - X X^H / 2."""
    eye = np.eye(len(x))
    p = eye - x @ x.conj().T / 2
    w = p @ v @ x.conj().T - x @ v.conj().T @ p
    return np.linalg.solve(eye - w / 2, (eye + w / 2) @ x)


def canonical_geodesic(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """expm(W) X, the same n x n W: one-parameter subgroups of O(n) give the geodesics of the canonical metric."""
    p = np.eye(len(x)) - x @ x.conj().T / 2
    return scipy.linalg.expm(p @ v @ x.conj().T - x @ v.conj().T @ p) @ x


def euclidean_geodesic(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """[X, V] expm([[A, -V^H V], [I, A]]) [I; 0] expm(-A), A = X^H V: Edelman, Arias & Smith (1998), section 2.2.2."""
    a, s, p = x.conj().T @ v, v.conj().T @ v, x.shape[1]
    big = scipy.linalg.expm(np.block([[a, -s], [np.eye(p), a]]))
    return np.hstack([x, v]) @ big[:, :p] @ scipy.linalg.expm(-a)


ORACLES = {
    "polar": (polar, scipy_polar),
    "qr": (qr, numpy_qr),
    "cayley": (cayley, textbook_cayley),
    "exp": (exp, euclidean_geodesic),
    "canonical exp": (partial(exp, metric="canonical"), canonical_geodesic),
}


@pytest.mark.parametrize(("retract", "oracle"), ORACLES.values(), ids=list(ORACLES))
@shapes
@dtypes
@lengths
def test_retraction_is_what_its_definition_says(retract, oracle, shape, dtype: torch.dtype, length: float) -> None:
    x, v = tangent(shape, dtype, length)
    close(retract(x, v), tall(oracle, x, v), atol=1e-12 * max(1, length))


@dtypes
@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
@lengths
def test_exp_of_a_square_point_is_scipys_expm(dtype: torch.dtype, n: int, length: float) -> None:
    """X expm(X^H V), for either metric."""
    x, v = tangent((n, n), dtype, length)
    expected = x @ torch.as_tensor(scipy.linalg.expm((x.mH @ v).numpy()))
    for metric in ("euclidean", "canonical"):
        close(exp(x, v, metric=metric), expected)


@dtypes
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@lengths
@pytest.mark.parametrize("group", [Orthogonal, SpecialOrthogonal, Stiefel], ids=lambda g: g.__name__)
def test_engines_move_by_cayley_and_exp_of_omega(group, dtype: torch.dtype, n: int, length: float) -> None:
    """move(X, Omega) = X expm(Omega) for exp and X (I - Omega/2)^-1 (I + Omega/2) for cayley and polar."""
    x = group().random(n, n, dtype=dtype)
    omega = engine(group()).coordinates(x, torch.randn(n, n, dtype=dtype))
    omega = length * omega / omega.norm().clamp_min(1e-300)
    eye = torch.eye(n, dtype=dtype)
    by_cayley = x @ torch.linalg.solve(eye - omega / 2, eye + omega / 2)
    if group is SpecialOrthogonal:  # on SU(n) the phase of the determinant is taken out
        by_cayley = by_cayley / torch.linalg.det(by_cayley) ** (1 / n) if dtype.is_complex else by_cayley
    for retraction in (cayley, polar):
        close(engine(group(retraction=retraction)).move(x, omega), by_cayley)
    by_exp = x @ torch.as_tensor(scipy.linalg.expm(omega.numpy()))
    close(engine(group(retraction=exp)).move(x, omega), by_exp)
    close(engine(group(retraction=qr)).move(x, omega), group(retraction=qr).retract(x, x @ omega))


# Geodesics: the differential equation of the metric, by differences along the curve ------------------------------


@dtypes
@pytest.mark.parametrize("shape", [(6, 2), (2, 6), (5, 4), (4, 4)], ids=str)
def test_exp_satisfies_the_geodesic_equation_of_the_euclidean_metric(shape, dtype: torch.dtype) -> None:
    """The acceleration is normal: X'' + X (X'^H X') = 0."""
    x, v = tangent(shape, dtype)
    if shape[0] < shape[1]:
        x, v = x.mH, v.mH
    h, t = 1e-3, 0.7
    y, before, after = (exp(x, s * v) for s in (t, t - h, t + h))
    first, second = (after - before) / (2 * h), (after - 2 * y + before) / h**2
    close(second + y @ (first.mH @ first), torch.zeros_like(y), atol=1e-6)


@dtypes
@pytest.mark.parametrize("shape", [(6, 2), (2, 6), (5, 4), (4, 4)], ids=str)
def test_exp_satisfies_the_geodesic_equation_of_the_canonical_metric(shape, dtype: torch.dtype) -> None:
    """X'' + X' X'^H X + X ((X^H X')^2 + X'^H X') = 0: Edelman, Arias & Smith (1998), equation 2.41."""
    x, v = tangent(shape, dtype)
    if shape[0] < shape[1]:
        x, v = x.mH, v.mH
    h, t = 1e-3, 0.7
    y, before, after = (exp(x, s * v, metric="canonical") for s in (t, t - h, t + h))
    first, second = (after - before) / (2 * h), (after - 2 * y + before) / h**2
    a = y.mH @ first
    close(second + first @ first.mH @ y + y @ (a @ a + first.mH @ first), torch.zeros_like(y), atol=1e-6)


@dtypes
def test_the_two_metrics_have_different_geodesics_on_tall_points(dtype: torch.dtype) -> None:
    x, v = tangent((6, 3), dtype)
    assert (exp(x, v) - exp(x, v, metric="canonical")).norm() > 1e-3


@dtypes
@pytest.mark.parametrize("metric", ["euclidean", "canonical"])
@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4)], ids=str)
def test_stiefel_passes_its_metric_to_exp_and_keeps_the_speed(shape, dtype: torch.dtype, metric: Any) -> None:
    manifold = Stiefel(metric, exp)
    x, v = tangent(shape, dtype)
    close(manifold.retract(x, v), exp(x, v, metric=metric))
    h = 1e-4
    velocity = (manifold.retract(x, (0.5 + h) * v) - manifold.retract(x, (0.5 - h) * v)) / (2 * h)
    close(manifold.norm(manifold.retract(x, 0.5 * v), velocity), manifold.norm(x, v), atol=1e-7)


# Orders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "order"), [("polar", 2), ("cayley", 2), ("qr", 1), ("exp", 2)])
@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)], ids=str)
@dtypes
def test_order_of_accuracy(name: str, order: int, shape, dtype: torch.dtype) -> None:
    """The distance to the geodesic of the Euclidean metric shrinks by 2^(order + 1) when t is halved."""
    retract = {"polar": polar, "cayley": cayley, "qr": qr, "exp": exp}[name]
    x, v = tangent(shape, dtype)
    # Cayley follows the canonical metric on tall points, where it is second order
    metric = "canonical" if name == "cayley" else "euclidean"

    def error(t: float) -> float:
        return float((retract(x, t * v) - exp(x, t * v, metric=metric)).norm())

    if name == "exp":
        assert error(1.0) == 0
    else:
        assert 0.8 * 2 ** (order + 1) < error(2e-2) / error(1e-2) < 1.25 * 2 ** (order + 1)


# Derivatives -------------------------------------------------------------------------------------------------


@every_retraction
@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4), (2, 2), (1, 1), (4, 4)], ids=str)
@dtypes
@pytest.mark.parametrize("length", [0.0, 0.01, 1.0])
def test_derivatives_in_both_arguments(retract, shape, dtype: torch.dtype, length: float) -> None:
    """gradcheck in x and v at once, first and second order, also at v = 0."""
    x, v = tangent(shape, dtype, length)

    def along(a: Tensor, b: Tensor) -> Tensor:
        point = polar(a, torch.zeros_like(a))
        return retract(point, Stiefel().project(point, b))

    inputs = (x.requires_grad_(), v.requires_grad_())
    assert torch.autograd.gradcheck(along, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(along, inputs, fast_mode=True, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch 2.6, of matrix_exp
@every_retraction
@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4), (6, 6)], ids=str)
def test_vmap_equals_a_batch(retract, shape) -> None:
    x, v = tangent((5, *shape), torch.float64)
    close(torch.func.vmap(retract)(x, v), retract(x, v), atol=1e-13)
    close(
        torch.func.vmap(retract, in_dims=(None, 0))(x[0], Stiefel().project(x[0], v)),
        retract(x[0].expand_as(v), Stiefel().project(x[0], v)),
        atol=1e-13,
    )


@given(st.data())
@every_retraction
def test_feasible_for_any_shape_and_length(retract, data) -> None:
    dtype = (torch.float32, torch.float64, torch.complex64, torch.complex128)
    x, v = data.draw(tangent_vectors(Stiefel, dtype=dtype))
    y = retract(x, v)
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    assert (Stiefel().residual(y) <= 10 * 128 * torch.finfo(x.dtype).eps).all()


# Cost: nothing of size n x n when p << n -----------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Remembers the most entries that any tensor had that was made meanwhile."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor):
                self.entries = max(self.entries, t.numel())
        return out


@every_retraction
@pytest.mark.parametrize("wide", [False, True])
def test_nothing_n_by_n_is_made(retract, wide: bool) -> None:
    """Forward and backward for n = 200,000 and p = 3 make no tensor of more than n (2p + 2) entries."""
    n, p = 200_000, 3
    x, v = tangent((p, n) if wide else (n, p), torch.float64)
    v.requires_grad_()
    with LargestTensor() as largest:
        y = retract(x, v)
        y.sum().backward()
    assert largest.entries <= n * (2 * p + 2)
    assert Stiefel().residual(y) < 1e-13
    assert v.grad is not None
    assert v.grad.isfinite().all()


@pytest.mark.parametrize("metric", ["euclidean", "canonical"])
def test_no_method_of_stiefel_makes_anything_n_by_n(metric: Any) -> None:
    n, p = 50_000, 2
    manifold = Stiefel(metric)
    x, v = tangent((n, p), torch.float64)
    y, _ = tangent((n, p), torch.float64, seed=1)
    with LargestTensor() as largest:
        manifold.project(x, y)
        manifold.gradient(x, y)
        manifold.inner(x, v, v)
        manifold.transport(x, y, v)
        manifold.residual(x)
        manifold.nearest(x + v)
        engine(manifold).polish(x)
        engine(manifold).lift(x, y)
        engine(manifold).coordinates(x, y)
        engine(manifold).coordinate_inner(x, v, v)
        engine(manifold).carry(x, y, v)
        engine(manifold).move(x, v)
        manifold.random(n, p)
    assert largest.entries <= n * (2 * p + 2)


def test_the_guard_sees_a_large_tensor() -> None:
    x = torch.zeros(300, 1)
    with LargestTensor() as largest:
        torch.linalg.norm(x @ x.mT)
    assert largest.entries == 300 * 300
