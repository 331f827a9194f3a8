"""Whether the derivatives of f are what they should be, by the error of its Taylor models along a curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from manifolds.kernels.precision import exact_products

from .hessians import Hessian, exact
from .points import points_of
from .starts import Starts

FLOOR = 1e2
"""Errors up to so many eps of the terms that cancel in them are rounding."""


@dataclass(frozen=True)
class Check:
    """The errors of a Taylor model at step lengths t, and the slope of the line through them on logarithmic axes.

    slope: NaN where every error is rounding: the model is exact, as that of a linear f on Euclidean; 0 where the term
    that is checked is rounding too, so that nothing is known, as of an f that hardly changes near x.
    expected: what it is for right derivatives: 2 for `check_gradient`, 3 for `check_hessian`; a model that is better
    than that, for a special f, has a larger one.

    >>> check_gradient(lambda x: x.exp().sum(), Sphere().random(4, dtype=torch.float64), Sphere)
    Check(gradient: slope 2.00, expected 2)
    """

    what: str
    sizes: list[float]
    errors: list[float]
    slope: float
    expected: int

    @property
    def ok(self) -> bool:
        """Whether the slope is at least the expected one, within 0.1, or the model exact."""
        return math.isnan(self.slope) or self.slope >= self.expected - 0.1

    def __repr__(self) -> str:
        return f"Check({self.what}: slope {self.slope:.2f}, expected {self.expected})"

    def plot(self, axes: Any = None) -> Any:
        """Errors over step lengths, beside the expected slope; the matplotlib axes. Raises ImportError without it."""
        from .figures import draw_check

        return draw_check(self.sizes, self.errors, self.expected, self.what, axes)


def check_gradient(f: Callable[..., Any], x: Any, manifold: Any, *, generator: torch.Generator | None = None) -> Check:
    """|f(R_x(tv)) - f(x) - t <grad f(x), v>| = O(t^2) along a random unit tangent vector v, the larger one of v and -v;
    |v| = |x| on spheres, `Oblique`, `Stiefel`, O(n), `Grassmann`, `FixedRank` and products of these.

    f, x and manifold as for `minimize`; x is best not a critical point, in float64. Raises ValueError or TypeError as
    `minimize` does. Source: Boumal (2023), section 4.8.

    >>> x = Stiefel().random(5, 2, dtype=torch.float64)
    >>> check_gradient(lambda x: x[0].exp().sum(), x, Stiefel).ok
    True
    """
    return _check("gradient", f, x, manifold, generator, None)


def check_hessian(
    f: Callable[..., Any],
    x: Any,
    manifold: Any,
    *,
    hessian: Hessian = exact,
    generator: torch.Generator | None = None,
) -> Check:
    """|f(R_x(tv)) - f(x) - t <grad f(x), v> - t^2 <v, Hess f(x)[v]> / 2| = O(t^3) for a retraction of second order.

    With one of first order, as `retractions.qr`, the slope is 3 at critical points, or for hessian=pullback.
    Otherwise as `check_gradient`. Source: Boumal (2023), section 6.8.

    >>> x = Stiefel().random(5, 2, dtype=torch.float64)
    >>> check_hessian(lambda x: x[0].exp().sum(), x, Stiefel).ok
    True
    """
    return _check("Hessian", f, x, manifold, generator, hessian)


def _check(
    what: str, f: Callable[..., Any], x: Any, manifold: Any, generator: torch.Generator | None, hessian: Hessian | None
) -> Check:
    given = points_of(x, manifold)
    start = Starts(given, batched=False, count=1, both=False, generator=None)
    problem, space, row = start.problem(f), start.space, start.rows
    with torch.no_grad(), exact_products(row.device.type):
        problem.twice = hessian is not None
        at = problem.at(row)
        gradient = at.gradient
        a = torch.randn(row.shape, generator=generator, dtype=row.dtype, device=row.device)
        v = space.project(row, a)
        v = v * (space.stride(row) / space.norm(row, v))
        first = space.inner(row, gradient, v)
        second = 0.0 if hessian is None else space.inner(row, v, hessian(at)(v))
        sizes, errors, rounding = [2.0**-k for k in range(2, 26)], [], []
        eps = torch.finfo(row.dtype).eps
        for t in sizes:
            # of a t^k + b t^(k+1) and -a t^k + b t^(k+1) the larger one is |a| t^k + |b| t^(k+1): they never cancel
            ends = [(s, problem.at(space.own_retraction(row, s * v)).value) for s in (t, -t)]
            errors.append(max(abs(value - at.value - s * first - s * s * second / 2) for s, value in ends))
            largest = max(abs(value) for _, value in ends)
            rounding.append(FLOOR * eps * (largest + t * abs(first) + t * t * abs(second)))
    kept = [(t, e) for t, e, r in zip(sizes, errors, rounding, strict=True) if e > r and t < 2.0**-3]
    slope, term, power = _slope(kept), *((first, 1) if hessian is None else (second, 2))
    if math.isnan(slope) and term and all(t**power * abs(term) <= r for t, r in zip(sizes, rounding, strict=True)):
        slope = 0.0
    return Check(what, sizes, errors, slope, 2 if hessian is None else 3)


WINDOW = 6
"""So many lengths make the slope: those whose errors are nearest to a line; others have higher orders, or rounding."""


def _slope(points: list[tuple[float, float]]) -> float:
    """That of the line through the logarithms, by least squares; NaN for fewer than three points."""
    best, slope = math.inf, math.nan
    for start in range(max(1, len(points) - WINDOW + 1)):
        t, e = torch.tensor(points[start : start + WINDOW], dtype=torch.float64).reshape(-1, 2).log().T
        if len(t) < 3:
            break
        t, e = t - t.mean(), e - e.mean()
        found = float((t @ e) / (t @ t))
        if (misfit := float((e - found * t).norm())) < best:
            best, slope = misfit, found
    return slope
