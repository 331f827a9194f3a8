"""Derivatives: the slopes of Taylor models, the cheap Hessian against the one through the retraction."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable
from statistics import median
from typing import get_args

import pytest
import torch
from torch import Tensor

import manifolds
from constraints.solve import Check, TrustRegion, check_gradient, check_hessian, hessians, minimize
from constraints.solve.derivative import _engine
from constraints.solve.piece import Piece
from constraints.solve.points import points_of
from constraints.solve.starts import Starts
from manifolds import (
    BlockSpec,
    Correlation,
    Euclidean,
    Grassmann,
    Manifold,
    Oblique,
    Orthogonal,
    Positive,
    PositiveDefinite,
    ProductManifold,
    Skew,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    Symmetric,
)
from manifolds import retractions as r
from manifolds.positive_definite import Name

F64, C128 = torch.float64, torch.complex128

SECOND_ORDER: list[tuple[Manifold, tuple[int, ...]]] = [
    (Euclidean(), (3, 2)),
    (Sphere(), (5,)),
    (Stiefel(), (6, 3)),
    (Stiefel(), (3, 6)),
    (Stiefel(), (4, 4)),
    (Stiefel(retraction=r.exp), (6, 3)),
    (Stiefel("canonical", r.exp), (6, 3)),
    (Stiefel("canonical", r.cayley), (6, 3)),
    (Stiefel(), (2, 5, 3)),
    (Orthogonal(), (4, 4)),
    (Orthogonal(r.exp), (4, 4)),
    (Orthogonal(r.polar), (4, 4)),
    (SpecialOrthogonal(), (4, 4)),
    (SpecialOrthogonal(r.exp), (4, 4)),
    (Stiefel**2, (8, 4)),
    (Stiefel("canonical", r.exp) * Sphere(), (8, 4)),
    (ProductManifold((Stiefel,) * 2, BlockSpec(rows=2, axis=1)), (5, 6)),
    (Grassmann(), (6, 2)),
    (Oblique(), (4, 5)),
    (Oblique(axis=-1), (4, 5)),
    (Symmetric(), (4, 4)),
    (Skew(), (4, 4)),
    (Correlation(), (4, 4)),
    (Positive(), (4,)),
    *[(PositiveDefinite(metric), (4, 4)) for metric in get_args(Name)],
]  # fmt: skip
FIRST_ORDER: list[tuple[Manifold, tuple[int, ...]]] = [
    (Stiefel(retraction=r.qr), (6, 3)),
    (Stiefel(retraction=r.cayley), (6, 3)),
    (Stiefel("canonical"), (6, 3)),
]  # fmt: skip


def smooth(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A function with no symmetry that would make a coefficient vanish."""
    linear, weight = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype.to_real())

    def f(x: Tensor) -> Tensor:
        if isinstance(manifold, Grassmann):  # a function of the subspace
            x = (x @ x.mH)[..., : shape[-1]]
        return (
            (linear * x).real.sum().sin() + (weight * x.abs().square().square()).sum() + (linear * x).real.exp().sum()
        )

    return f


def assert_slope(expected: int, check: Callable[[], Check]) -> None:
    """Never less, and no more but along the few directions where the next coefficient nearly vanishes."""
    checks = [check() for _ in range(5)]
    assert all(each.ok for each in checks), checks
    assert abs(median(each.slope for each in checks) - expected) < 0.1, checks


def product(
    hessian: hessians.Hessian, f: Callable[[Tensor], Tensor], x: Tensor, manifold: Manifold
) -> tuple[Starts, Callable[[Tensor], Tensor], Tensor]:
    start = Starts(points_of(x, manifold), False, 1, False, None)
    problem = start.problem(f)
    problem.twice = True
    with torch.no_grad():
        at = problem.at(start.rows)
        return start, hessian(at), at.gradient


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize(("manifold", "shape"), SECOND_ORDER, ids=str)
def test_slopes_are_2_and_3_for_retractions_of_second_order(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    f, x = smooth(manifold, shape, dtype), manifold.random(shape, dtype=dtype)
    assert_slope(2, lambda: check_gradient(f, x, manifold))
    assert_slope(3, lambda: check_hessian(f, x, manifold))


@pytest.mark.parametrize(("manifold", "shape"), FIRST_ORDER, ids=str)
def test_the_model_of_a_first_order_retraction_is_its_pullback(manifold: Manifold, shape: tuple[int, ...]) -> None:
    f, x = smooth(manifold, shape, F64), manifold.random(shape, dtype=F64)
    assert_slope(2, lambda: check_gradient(f, x, manifold))
    assert_slope(3, lambda: check_hessian(f, x, manifold, hessian=hessians.pullback))


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize(("manifold", "shape"), SECOND_ORDER, ids=str)
def test_the_hessian_without_a_retraction_is_that_of_the_pullback(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    f, x = smooth(manifold, shape, dtype), manifold.random(shape, dtype=dtype)
    start, exact, _ = product(hessians.exact, f, x, manifold)
    _, through, _ = product(hessians.pullback, f, x, manifold)
    space, row = start.space, start.rows
    with torch.no_grad():
        u, v = (space.project(row, torch.randn_like(row)) for _ in range(2))
        hu, hv = exact(u), exact(v)
        # the numbers that are added are a few times as long as the result, and so is their rounding
        size = 1000 * torch.finfo(F64).eps * (space.norm(row, hv) + space.norm(row, v))
        assert space.norm(row, hv - through(v)) < size
        assert space.norm(row, hv - space.project(row, hv)) < size
        # symmetric in the metric
        assert abs(space.inner(row, u, hv) - space.inner(row, hu, v)) < size * space.norm(row, u)


def every_set() -> list[tuple[Manifold, tuple[int, ...]]]:
    """Each manifold that is exported and needs no options, with the first shape of these that it has."""
    found = []
    for name in manifolds.__all__:
        kind = getattr(manifolds, name)
        if not (inspect.isclass(kind) and issubclass(kind, Manifold)) or inspect.isabstract(kind):
            continue
        try:
            manifold = kind()
        except TypeError:
            continue
        for shape in ((5, 3), (4, 4), (5,)):
            with contextlib.suppress(ValueError):
                if len(shape) == max(1, manifold.ndim) and manifold.dim(shape) > 0:
                    found.append((manifold, shape))
                    break
    return found


@pytest.mark.parametrize(("manifold", "shape"), every_set(), ids=str)
def test_every_set_has_right_derivatives(manifold: Manifold, shape: tuple[int, ...]) -> None:
    """Also those that are new here: the model of f along the retraction that a set has is right to second order."""
    f, x = smooth(manifold, shape, F64), manifold.random(shape, dtype=F64)
    assert_slope(2, lambda: check_gradient(f, x, manifold))
    assert_slope(3, lambda: check_hessian(f, x, manifold, hessian=hessians.pullback))


def test_a_check_is_of_the_retraction_of_the_manifold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of Cayley, by which solvers move in place of polar on square matrices."""
    x, calls, retract = Stiefel().random(4, 4, dtype=F64), [], Stiefel.retract
    monkeypatch.setattr(Stiefel, "retract", lambda self, x, v: calls.append(v) or retract(self, x, v))
    check = check_gradient(lambda x: x[0].exp().sum(), x, Stiefel)
    assert len(calls) == 2 * len(check.sizes)
    assert bool(Stiefel().contains(x).all())
    assert all(abs((x.mT @ v + v.mT @ x).abs().max().item()) < 1e-12 for v in calls)  # tangent vectors, no coordinates


def test_a_wrong_gradient_is_seen() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.exp()

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:  # type: ignore[override]
            return 1.01 * g

    x = Sphere().random(4, dtype=F64)
    check = check_gradient(lambda x: Wrong.apply(x).sum(), x, Sphere)
    assert not check.ok
    assert abs(check.slope - 1) < 0.1


def test_a_product_costs_one_pass_backward_and_no_value() -> None:
    calls = 0

    def f(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x[0].exp().sum()

    x = Stiefel().random(6, 3, dtype=F64)
    start, times, _ = product(hessians.exact, f, x, Stiefel())
    v = start.space.project(start.rows, torch.randn_like(start.rows))
    before = calls
    for _ in range(3):
        times(v)
    assert calls == before == 1


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(Stiefel(), (8, 3)), (Stiefel("canonical"), (8, 3)), (SpecialOrthogonal(), (5, 5)), (Sphere(), (8,))],
    ids=str,
)
def test_trust_regions_converge_quadratically(manifold: Manifold, shape: tuple[int, ...]) -> None:
    """At the end |g+| <= C |g|^2: the number of digits doubles, down to 1e-10 and below."""
    torch.manual_seed(1)
    f, x0 = smooth(manifold, shape, F64), manifold.random(shape, dtype=F64)
    found = minimize(f, x0, manifold, tol=1e-10)
    assert found.converged
    assert found.gradient_norm < 1e-10
    # at the end: it may have passed near a saddle before; at least one step that doubles the digits, none of rounding
    norms = found.history.norm
    end = norms[max(i for i, norm in enumerate(norms) if norm >= 1e-2) + 1 :]
    pairs = [(a, b) for a, b in itertools.pairwise(end) if a > 1e-6]
    assert pairs
    assert all(b <= max(1e3 * a * a, 1e-11) for a, b in pairs)


def test_first_order_hessians_find_the_same_point() -> None:
    torch.manual_seed(1)
    f, x0 = smooth(Stiefel(), (8, 3), F64), Stiefel().random(8, 3, dtype=F64)
    values = [
        minimize(f, x0, Stiefel(retraction=retraction), solver=TrustRegion(hessian=hessian), tol=1e-8)
        for retraction in (r.polar, r.qr)
        for hessian in (hessians.exact, hessians.pullback, hessians.finite_difference)
    ]
    assert all(v.converged for v in values)


@pytest.mark.parametrize("manifold", [Stiefel(), Stiefel("canonical"), PositiveDefinite()], ids=str)
def test_nothing_is_imported_for_derivatives(manifold: Manifold, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights `torch.autograd.grad` imports sympy, which takes longer than many a problem."""

    def never(*_: object) -> None:
        raise AssertionError("torch.autograd.grad was called")

    if _engine() is None:
        pytest.skip("this torch has another engine")
    monkeypatch.setattr("torch.autograd._make_grads", never)
    c = torch.diag(torch.arange(1.0, 5.0, dtype=F64))
    shape = (4, 4) if isinstance(manifold, PositiveDefinite) else (4, 2)
    assert minimize(lambda x: (x - c[:, : shape[1]]).square().sum(), shape, manifold, dtype=F64).converged


ORTHONORMAL: list[tuple[Manifold, tuple[int, ...]]] = [
    (Stiefel(), (6, 3)),
    (Stiefel(), (3, 6)),
    (Stiefel(), (4, 4)),
    (Stiefel(), (2, 5, 3)),
    (Orthogonal(), (4, 4)),
    (SpecialOrthogonal(), (2, 4, 4)),
]


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("is_linear", [False, True])
@pytest.mark.parametrize(("manifold", "shape"), ORTHONORMAL, ids=str)
def test_the_term_of_the_curvature_by_hand_is_that_of_autograd(
    monkeypatch: pytest.MonkeyPatch, manifold: Manifold, shape: tuple[int, ...], is_linear: bool, dtype: torch.dtype
) -> None:
    """Also where f is linear in the ambient space, and torch knows no second derivative."""
    f, x, a = smooth(manifold, shape, dtype), manifold.random(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    f = (lambda x: (a * x).real.sum()) if is_linear else f
    start, by_hand, _ = product(hessians.exact, f, x, manifold)
    monkeypatch.setattr(Piece, "straightener", lambda *_: None)
    _, by_autograd, _ = product(hessians.exact, f, x, manifold)
    space, row = start.space, start.rows
    with torch.no_grad():
        v = space.project(row, torch.randn_like(row))
        expected = by_autograd(v)
        size = 1000 * torch.finfo(F64).eps * (space.norm(row, expected) + space.norm(row, v))
        assert space.norm(row, by_hand(v) - expected) < size
