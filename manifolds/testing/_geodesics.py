"""The optional ability of a GeodesicManifold: exp, log and distance belong to the metric."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..base import GeodesicManifold, tolerance
from ._case import Case, Finding, theorem, within

EXP = ("project: tangent", "exp: first order", "exp: feasible")
LOG = (*EXP, "log: inverse of exp")


def _geodesic(case: Case) -> GeodesicManifold:
    assert isinstance(case.manifold, GeodesicManifold)
    return case.manifold


def _is_geodesic(case: Case) -> bool:
    return isinstance(case.manifold, GeodesicManifold)


def _near(case: Case) -> tuple[Tensor, Tensor]:
    """x, and a point at distance 1/2 from it."""
    return case.x, _geodesic(case).exp(case.x, 0.5 * case.tangent(2))


@theorem("exp: first order", "exp(x, tv) = x + tv + O(t^2)", needs=("project: tangent",), applies=_is_geodesic)
def _(case: Case) -> Iterator[Finding]:
    v = case.tangent(2)
    yield case.quarters(lambda t: case.apart(_geodesic(case).exp(case.x, t * v), case.x + t * v))


@theorem(
    "exp: feasible",
    "residual(exp(x, v)) <= tolerance(dtype) max(1, |v|)",
    needs=("project: tangent",),
    applies=_is_geodesic,
)
def _(case: Case) -> Iterator[Finding]:
    for scale in (0.01, 1, 10):
        y = _geodesic(case).exp(case.x, scale * case.tangent(2))
        yield within(case.manifold.residual(y), tolerance(case.dtype) * max(1, scale), f"|v| = {scale}")


@theorem(
    "exp: constant speed", "norm(c(t), c'(t)) = norm(x, v) along c(t) = exp(x, tv)", needs=EXP, applies=_is_geodesic
)
def _(case: Case) -> Iterator[Finding]:
    m, x, v = _geodesic(case), case.x, case.tangent(2)
    for time in (0.3, 0.6):
        velocity = case.slope(lambda t: m.exp(x, t * v), time)
        yield within((m.norm(m.exp(x, time * v), velocity) - m.norm(x, v)).abs(), case.slope_error)


@theorem(
    "exp: continues itself", "c(s + t) = exp(c(s), t c'(s)) along c(t) = exp(x, tv)", needs=EXP, applies=_is_geodesic
)
def _(case: Case) -> Iterator[Finding]:
    m, x, v = _geodesic(case), case.x, case.tangent(2)
    velocity = case.slope(lambda t: m.exp(x, t * v), 0.3)
    yield within(case.apart(m.exp(m.exp(x, 0.3 * v), 0.4 * velocity), m.exp(x, 0.7 * v)), case.slope_error)


@theorem(
    "log: inverse of exp",
    "exp(x, log(x, y)) = y and log(x, exp(x, v)) = v for short v",
    needs=EXP,
    applies=_is_geodesic,
)
def _(case: Case) -> Iterator[Finding]:
    m, v = _geodesic(case), 0.5 * case.tangent(2)
    x, y = _near(case)
    yield within(case.apart(m.exp(x, m.log(x, y)), y), case.rounding, "exp(x, log(x, y))")
    yield within(case.apart(m.log(x, m.exp(x, v)), v), case.rounding, "log(x, exp(x, v))")
    yield within(case.size(m.log(x, x)), case.rounding, "log(x, x)")


@theorem("distance: symmetric", "distance(x, y) = distance(y, x)", needs=LOG, applies=_is_geodesic)
def _(case: Case) -> Iterator[Finding]:
    x, y = _near(case)
    yield within((_geodesic(case).distance(x, y) - _geodesic(case).distance(y, x)).abs(), case.rounding)


@theorem("distance: zero at y = x", "distance(x, x) = 0, to rounding", needs=LOG, applies=_is_geodesic)
def _(case: Case) -> Iterator[Finding]:
    yield within(_geodesic(case).distance(case.x, case.x), case.rounding)


@theorem(
    "distance: unit speed",
    "distance(x, exp(x, tv)) = t norm(x, v)",
    needs=(*LOG, "norm: of the metric"),
    applies=_is_geodesic,
)
def _(case: Case) -> Iterator[Finding]:
    m, x, v = _geodesic(case), case.x, case.tangent(2)
    for t in (case.eps**0.5, 1e-2, 0.5):
        error = (m.distance(x, m.exp(x, t * v)) - t * m.norm(x, v)).abs()
        yield within(error, case.rounding, f"t = {t:.1e}")


@theorem(
    "distance: shortest path",
    "d/dt distance(x, R_y(tw))^2 / 2 at 0 = -inner(y, log(y, x), w): the distance is that of the metric",
    needs=(
        *LOG,
        "distance: unit speed",
        "exp: constant speed",
        "exp: continues itself",
        "retract: fixes x",
        "retract: first order",
    ),
    applies=_is_geodesic,
)
def _(case: Case) -> Iterator[Finding]:
    m = _geodesic(case)
    x, y = _near(case)
    w = case.unit(m.project(y, case.ambient(3)))
    slope = case.slope(lambda t: m.distance(x, m.retract(y, t * w)) ** 2 / 2)
    yield within((slope + m.inner(y, m.log(y, x), w)).abs(), case.slope_error)
