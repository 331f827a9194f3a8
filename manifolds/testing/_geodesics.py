"""The optional ability of a GeodesicManifold: exp, log and distance belong to the metric."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..base import GeodesicManifold, per_point, tolerance
from ._case import Case, Finding, inside, theorem, within

EXP = ("project: tangent", "exp: first order", "exp: feasible")
LOG = (*EXP, "log: inverse of exp")
# what takes the rounding off the points on the way to a mean
POLISHED = (
    "split: parts are points",
    "split: join inverts",
    "polish: keeps points",
    "polish: no farther off",
    "nearest: fixes points",
)


def _geodesic(case: Case) -> GeodesicManifold:
    assert isinstance(case.manifold, GeodesicManifold)
    return case.manifold


def _is_geodesic(case: Case) -> bool:
    return isinstance(case.manifold, GeodesicManifold)


def _near(case: Case) -> tuple[Tensor, Tensor]:
    """x, and a point at distance 1/2 from it; nearer on open sets."""
    return case.x, _geodesic(case).exp(case.x, case.short * case.tangent(2))


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
    for scale in case.lengths[:3]:
        allowed = tolerance(case.dtype) * max(1, scale)
        for v in case.steps():
            y = _geodesic(case).exp(case.x, scale * v)
            if case.is_open:  # an incomplete metric has geodesics that touch the boundary, at single times
                met = ~(case.manifold.residual(y) <= allowed)
                y = torch.where(per_point(met, case.manifold.ndim), _geodesic(case).exp(case.x, 0.8 * scale * v), y)
            yield inside(case, y, allowed, f"|v| = {scale}")


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
    m, v = _geodesic(case), case.short * case.tangent(2)
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
    for t in (case.eps**0.5, 1e-2, case.short):
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
    w = case.tangent(3, y)
    slope = case.slope(lambda t: m.distance(x, m.retract(y, t * w)) ** 2 / 2)
    yield within((slope + m.inner(y, m.log(y, x), w)).abs(), case.slope_error)


@theorem(
    "geodesic: between its ends",
    "geodesic(x, y, t) is x at 0, y at 1, and at distance t distance(x, y) from x; t a number, or one per pair",
    needs=(*LOG, "distance: unit speed"),
    applies=_is_geodesic,
)
def _(case: Case) -> Iterator[Finding]:
    m = _geodesic(case)
    x, y = _near(case)
    for t in (0, 1 / 3, 1):
        z = m.geodesic(x, y, t)
        yield within((m.distance(x, z) - t * m.distance(x, y)).abs(), 4 * case.rounding, f"t = {t:.2g}")
        yield within(case.apart(m.geodesic(x, y, t * torch.ones_like(case.size(x))), z), case.rounding, "t a tensor")
    yield within(case.apart(m.geodesic(x, y, 1), y), case.rounding, "the end")


@theorem(
    "mean: critical",
    "sum_i w_i log(mean, x_i) = 0: no point has a smaller weighted sum of squared distances",
    needs=(*LOG, "distance: unit speed", "batch: equals loop", "exp: continues itself", *POLISHED),
    applies=_is_geodesic,
)
def _(case: Case) -> Iterator[Finding]:
    m, x = _geodesic(case), case.flat(case.x)[0]
    vectors = [case.flat(case.tangent(number))[0] for number in (2, 3, 4)]
    points = torch.stack([m.exp(x, case.short * v) for v in vectors])
    for weights in (None, torch.tensor([1.0, 2.0, 5.0], dtype=case.dtype.to_real(), device=case.device)):
        mean = m.mean(points, weights)
        shares = torch.full((3,), 1 / 3) if weights is None else weights / weights.sum()
        left = sum(w * m.log(mean, y) for w, y in zip(shares.tolist(), points, strict=True))
        yield within(case.size(left), 64 * case.rounding, "" if weights is None else "weighted")
