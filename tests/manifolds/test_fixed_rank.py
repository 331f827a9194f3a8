"""Matrices of one rank: numpy's singular values, pymanopt's projection, completion, and derivatives where they meet."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.accelerator.pretend import Waits, pretended
from manifolds import BlockSpec, Euclidean, FixedRank, Manifold, ProductManifold, Stiefel
from manifolds.engine import Engine, engine
from manifolds.kernels import truncation
from manifolds.testing import check_manifold

F64 = torch.float64
EPS = torch.finfo(F64).eps


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def of_rank(rank: int, *shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return FixedRank(rank).random(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (FixedRank(2), (4, 3)),
        (FixedRank(1), (2, 2, 4)),
        (FixedRank(2), (2, 3)),
        (FixedRank(1), (1, 1)),
    ],
    ids=str,
)
def test_the_contract(manifold: Manifold, shape: tuple[int, ...]) -> None:
    check_manifold(manifold, shape)


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (FixedRank(1) * Stiefel(), (6, 3)),
        (ProductManifold((FixedRank(1), Euclidean(2)), BlockSpec(rows=2, axis=1)), (3, 4)),
    ],
    ids=str,
)
def test_products(manifold: Manifold, shape: tuple[int, ...]) -> None:
    check_manifold(manifold, shape, dtype=(torch.float32, torch.complex128))


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
def test_the_nearest_point_is_that_of_numpy(dtype: torch.dtype) -> None:
    a = noise(2, 6, 4, dtype=dtype)
    u, s, vh = np.linalg.svd(a.numpy(), full_matrices=False)
    expected = (u[..., :2] * s[..., None, :2]) @ vh[..., :2, :]
    assert np.allclose(FixedRank(2).nearest(a).numpy(), expected, atol=1e-13)


@pytest.mark.parametrize("dtype", [F64, torch.complex128])
@pytest.mark.parametrize("size", [0.0, -0.1, "one a point"])
def test_a_step_by_one_decomposition_is_the_step(dtype: torch.dtype, size: Any) -> None:
    m, x = FixedRank(2), of_rank(2, 3, 6, 4, dtype=dtype)
    c = m.project(x, noise(3, 6, 4, seed=1, dtype=dtype))
    size = torch.tensor([0.1, -2.0, 0.0], dtype=F64)[:, None, None] if isinstance(size, str) else size
    found, expected = (travel(x, c.clone(), size) for travel in (engine(m).travel, Engine(m).travel))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # of forward mode, as it compiles its own rules
@pytest.mark.parametrize("dtype", [F64, torch.complex128])
@pytest.mark.parametrize("values", [(3.0, 2.0, 1.0), (2.0, 2.0, 0.5), (2.0, 2.0, 0.0), (2.0, 1.0, 1.0 - 1e-6)], ids=str)
def test_truncation_has_derivatives_where_singular_values_meet(values: tuple[float, ...], dtype: torch.dtype) -> None:
    """Once and twice, forward and in vmap: kept ones that are equal, and dropped ones that are 0."""
    q, p = Stiefel().random(4, 3, dtype=dtype), Stiefel().random(3, 3, dtype=dtype)
    rank = 1 if values[1] == 1 else 2
    a = ((q * torch.tensor(values, dtype=F64)) @ p.mH).requires_grad_()

    def function(a: Tensor) -> Tensor:
        return truncation.truncated(a, rank)

    torch.autograd.gradcheck(function, a, check_forward_ad=True)
    torch.autograd.gradgradcheck(function, a, fast_mode=True)
    many = torch.stack([a.detach(), 2 * a.detach()])
    assert torch.allclose(torch.vmap(function)(many), function(many), atol=1e-12)


def test_the_derivative_of_the_nearest_point_on_the_set_is_the_projection() -> None:
    """P(X + tV) for any V; and the projection itself has a derivative by X, along the set."""
    m, x, a = FixedRank(2), of_rank(2, 5, 4), noise(5, 4, seed=1)
    _, pushed = torch.autograd.functional.jvp(m.nearest, x, a)
    assert torch.allclose(pushed, m.project(x, a), atol=1e-12)
    v, b = m.project(x, noise(5, 4, seed=2)), noise(5, 4, seed=3)
    _, slope = torch.autograd.functional.jvp(lambda z: m.project(z, b), x, v)
    t = 1e-4
    differences = (m.project(m.retract(x, t * v), b) - m.project(m.retract(x, -t * v), b)) / (2 * t)
    assert torch.allclose(slope, differences, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # of the other library
def test_projection_is_that_of_pymanopt() -> None:
    """Its vectors are triples (Up, M, Vp) with V = U M V^H + Up V^H + U Vp^H."""
    pymanopt = pytest.importorskip("pymanopt")
    x, a = of_rank(2, 5, 4), noise(5, 4, seed=1)
    theirs = pymanopt.manifolds.FixedRankEmbedded(5, 4, 2)
    point = tuple(np.linalg.svd(x.numpy(), full_matrices=False))
    point = (point[0][:, :2], point[1][:2], point[2][:2])
    up, m, vp = theirs.projection(point, a.numpy())
    u, vt = point[0], point[2]
    assert np.allclose(u @ m @ vt + up @ vt + u @ vp.T, FixedRank(2).project(x, a).numpy(), atol=1e-12)


def test_retract_is_second_order() -> None:
    """The acceleration of R(tv) at 0 is normal to the set."""
    m, x = FixedRank(2), of_rank(2, 5, 4)
    v = m.project(x, noise(5, 4, seed=1))
    t = 1e-3
    bent = (m.retract(x, t * v) - 2 * x + m.retract(x, -t * v)) / t**2
    assert float(m.project(x, bent).norm()) < 1e-4 * float(bent.norm())


SIZES = [((12, 16), 2), ((2, 30, 16), 3), ((1, 9, 9), 1)]  # so large that few columns are enough


class Factorized(TorchDispatchMode):
    """Notes the sizes of what is decomposed."""

    def __init__(self) -> None:
        super().__init__()
        self.columns: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("svd", "eigh", "qr", "cholesky", "triangular")):
            self.columns.append(min(args[0].shape[-2:]))
        return func(*args, **(kwargs or {}))


def by_svd(a: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """(nearest, U, V) by the decomposition of all of it."""
    u, s, vh = (torch.from_numpy(t) for t in np.linalg.svd(a.numpy(), full_matrices=False))
    return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :], u[..., :rank], vh[..., :rank, :].mH


def tangent(x: Tensor, a: Tensor, rank: int) -> Tensor:
    _, u, v = by_svd(x, rank)
    return a - (a - u @ u.mH @ a) @ (torch.eye(a.shape[-1], dtype=a.dtype) - v @ v.mH)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("dtype", [F64, torch.complex128])
@pytest.mark.parametrize(("shape", "rank"), SIZES, ids=str)
def test_a_step_decomposes_few_columns(
    shape: tuple[int, ...], rank: int, dtype: torch.dtype, accelerated: bool
) -> None:
    """Projection and step are those of the whole decomposition; on an accelerator nothing is waited for."""
    x, g = of_rank(rank, *shape, dtype=dtype), noise(*shape, seed=1, dtype=dtype)
    m, at = FixedRank(rank), engine(FixedRank(rank))
    least = float(torch.linalg.svdvals(x)[..., rank - 1].min())
    c = tangent(x, g, rank)
    c = c / torch.linalg.matrix_norm(c, 2).max() * least / 8
    seen = Factorized()
    with pretended() if accelerated else nullcontext(), Waits() if accelerated else nullcontext(), seen:
        lifted, reached = at.lift(x, g), at.move(x, c)
        y, carried = at.travel(x, c.clone(), 1.0)
    assert max(seen.columns) <= 2 * rank + 2
    expected = by_svd(x + c, rank)[0]
    near = {"rtol": 0.0, "atol": 1e-11}
    for found in (y, reached) if accelerated else (y, reached, m.retract(x, c)):
        torch.testing.assert_close(found, expected, **near)
    torch.testing.assert_close(lifted, tangent(x, g, rank), **near)
    torch.testing.assert_close(carried, tangent(expected, c, rank), **near)
    assert float(m.residual(y).max()) < 64 * EPS


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("values", [(1.0, 1.0, 1.0), (1e4, 1.0, 1e-3), (1e-30, 1e-30, 1e-31)], ids=str)
def test_few_columns_find_any_matrix_of_the_rank(values: tuple[float, ...], accelerated: bool) -> None:
    """Sides that are single entries, blocks of equal ones, or singular values far apart, to the digits these have."""
    rows = [torch.eye(24, 3, dtype=F64), torch.eye(24, dtype=F64)[:, ::8], torch.eye(3, dtype=F64).repeat(8, 1)]
    rows += [torch.eye(24, dtype=F64)[:, [0, 11, 23]], Stiefel().random(24, 3, dtype=F64)]
    rows = [torch.linalg.qr(each).Q for each in rows]
    x = torch.stack([(u * torch.tensor(values, dtype=F64)) @ v.mH for u in rows for v in rows])
    a, digits = noise(24, 24), 256 * EPS * max(values) / min(values)
    with pretended() if accelerated else nullcontext():
        found = engine(FixedRank(3)).lift(x, a.expand(x.shape))
    expected = torch.stack([tangent(each, a, 3) for each in x])
    torch.testing.assert_close(found, expected, rtol=0, atol=digits * float(a.norm()))


def test_what_has_no_such_rank_is_decomposed_as_a_whole() -> None:
    """A matrix that is off the set, a vector that is not tangent, and one with NaN in a batch."""
    m, x, a = FixedRank(2), of_rank(2, 3, 12, 16), noise(3, 12, 16)
    torch.testing.assert_close(m.retract(x, a), by_svd(x + a, 2)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(m.project(x + 1e-3 * a, a), tangent(x + 1e-3 * a, a, 2), rtol=0, atol=1e-11)
    bad = x.clone()
    bad[1, 0, 0] = torch.nan
    found = m.retract(bad, torch.zeros_like(x))
    assert bool(found[1].isnan().all())
    torch.testing.assert_close(found[::2], x[::2], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="rank below 2"):
        m.retract(of_rank(1, 12, 16), torch.zeros(12, 16, dtype=F64))


@pytest.mark.parametrize("exponent", [-100, -70, 62, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_points_whose_squares_are_no_numbers(dtype: torch.dtype, exponent: int) -> None:
    """R_tX(tV) = t R_X(V) and P_tX = P_X, also where V is not tangent, or X off the set."""
    m, x, a = FixedRank(2), of_rank(2, 12, 16, dtype=dtype), noise(12, 16, dtype=dtype)
    t = 2.0**exponent
    for v in (a, m.project(x, a), 0.1 * a):
        found, expected = m.retract(t * x, t * v), m.retract(x, v)
        torch.testing.assert_close(found / t, expected, rtol=0, atol=1e-5 * float(expected.norm()))
    off = x + 1e-3 * a
    torch.testing.assert_close(m.project(t * off, a), m.project(off, a), rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore")  # of forward mode, as it compiles its own rules
def test_a_point_of_few_columns_has_the_derivatives_of_any() -> None:
    """Of project and retract, along the set, once and twice; those of the whole decomposition."""
    m, x = FixedRank(2), of_rank(2, 12, 12)
    v, b = m.project(x, noise(12, 12, seed=1)), noise(12, 12, seed=2)

    def function(t: Tensor) -> Tensor:
        return m.project(m.retract(x, t * v), b)

    t = torch.tensor(0.1, dtype=F64, requires_grad=True)
    torch.autograd.gradcheck(function, t, check_forward_ad=True)
    torch.autograd.gradgradcheck(function, t)


def test_completion_finds_what_was_hidden() -> None:
    """A matrix 24 x 20 of rank 2 from 60 % of its entries; a linear rate, which which of them are seen decides."""
    m, truth = FixedRank(2), of_rank(2, 24, 20)
    seen = torch.rand(24, 20, dtype=F64, generator=torch.Generator().manual_seed(1)) < 0.6
    x = m.nearest(torch.where(seen, truth, 0) / 0.6)
    steps = 0
    while (x - truth).norm() > 1e-8 * truth.norm() and steps < 3000:
        x, steps = m.retract(x, -1.4 * m.gradient(x, torch.where(seen, x - truth, 0))), steps + 1
    assert steps < 3000


def test_what_is_of_another_rank_is_told() -> None:
    m = FixedRank(2)
    one, two, three = (torch.diag(torch.tensor([3.0] * k + [0.0] * (3 - k))) for k in (1, 2, 3))
    assert m.residual(two) == 0
    assert m.residual(one) == torch.inf
    assert m.residual(torch.zeros(3, 3)) == torch.inf
    assert float(m.residual(three)) == pytest.approx(3**-0.5)
    with pytest.raises(ValueError, match=r"rank below 2 has no nearest point on FixedRank\(rank=2\)"):
        m.nearest(one)
    with pytest.raises(ValueError, match=r"sides of 2 or more; got shape \(1, 4\)"):
        m.random(1, 4)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="rank of FixedRank is a positive integer"):
            FixedRank(wrong)  # type: ignore[arg-type]
