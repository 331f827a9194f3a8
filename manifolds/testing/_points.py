"""Points: how they are drawn, recognized and approached."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..base import NearestPointManifold, tolerance
from ._case import Case, Finding, holds, theorem, within


@theorem(
    "random: feasible",
    "residual(random) <= tolerance(dtype)",
    needs=("dim: additive", "random: dtype, device, shape"),
    ground=False,
)
def _(case: Case) -> Iterator[Finding]:
    for number in range(3):
        yield within(case.manifold.residual(case.point(number)), tolerance(case.dtype))


@theorem("random: seeded", "the generator, and it alone, decides; without one, torch's own")
def _(case: Case) -> Iterator[Finding]:
    devices = [case.device] if case.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(case.seed)
        first = case.point(0)
        second = case.point(0)
        yield holds(torch.equal(first, second), "the same seed gives different points")
        if case.manifold.dim(case.shape):
            yield holds(not torch.equal(first, case.point(1)), "different seeds give the same point")
        torch.manual_seed(case.seed)
        first = case.manifold.random(*case.shape, dtype=case.dtype, device=case.device)
        torch.manual_seed(case.seed)
        case.point(1)
        second = case.manifold.random(*case.shape, dtype=case.dtype, device=case.device)
        yield holds(torch.equal(first, second), "torch's own generator is not used, or used beside the one given")


def _has_nearest(case: Case) -> bool:
    return isinstance(case.manifold, NearestPointManifold)


def _nearest(case: Case, z: Tensor) -> Tensor:
    assert isinstance(case.manifold, NearestPointManifold)
    return case.manifold.nearest(z)


@theorem(
    "residual: off the manifold",
    "residual(z) > tolerance(dtype) where |z - nearest(z)| is not small; without nearest, where z - x is normal",
)
def _(case: Case) -> Iterator[Finding]:
    a = 0.3 * case.ambient(2)
    z = case.x + (a - case.manifold.project(case.x, a) if case.is_open else a)
    off = case.apart(z, case.x if case.is_open else _nearest(case, z)) > 0.03
    hidden = off & (case.manifold.residual(z) <= tolerance(case.dtype))
    yield holds(not bool(hidden.any()), "residual calls a point feasible that is not")


@theorem(
    "residual: boundary",
    "residual(x + tv) > tolerance(dtype) for some of many tangent v and t up to 1000: else M is an affine space",
    needs=("project: tangent",),
    applies=lambda case: case.is_open,
)
def _(case: Case) -> Iterator[Finding]:
    if not case.manifold.dim(case.shape):
        return
    steps = [t * sign * case.tangent(n) for n in (2, 3, 4) for t in (1, 10, 1000) for sign in (1, -1)]
    inside = [case.manifold.residual(case.x + v) <= tolerance(case.dtype) for v in steps]
    yield holds(
        not bool(torch.stack(inside).all()),
        "residual calls every x + tv feasible: an open set ends where a straight line leaves it, and there residual is "
        "above tolerance, as inf; a set without a boundary has nearest points",
    )


@theorem(
    "residual: NaN shows", "residual(x) is NaN where x has a NaN, above tolerance where x is infinite, and only there"
)
def _(case: Case) -> Iterator[Finding]:
    batch = case.at(2)
    for bad in (torch.nan, torch.inf):
        x = batch.x.clone()
        x[0][(0,) * x[0].dim()] = bad
        try:
            residual = case.manifold.residual(x)
        except Exception as error:
            yield holds(
                False,
                f"raises {type(error).__name__} where one point has a {bad}, so that nothing is known of the points "
                f"beside it: an equation, or torch.linalg.cholesky_ex for cholesky, answers point by point",
            )
            continue
        point = residual[0].reshape(-1)[0]
        seen = bool(point.isnan()) if bad != bad else not bool(point <= tolerance(case.dtype))
        yield holds(seen and not bool(case.manifold.contains(x)[0].all()), f"a {bad} is not seen")
        yield within(residual[1], tolerance(case.dtype), f"beside a {bad}")


@theorem("nearest: fixes points", "nearest(x) = x for x in M", applies=_has_nearest)
def _(case: Case) -> Iterator[Finding]:
    yield within(case.apart(_nearest(case, case.x), case.x), case.rounding)


@theorem(
    "nearest: feasible", "residual(nearest(z)) <= tolerance(dtype) for z near M and far from it", applies=_has_nearest
)
def _(case: Case) -> Iterator[Finding]:
    for scale in (0.1, 0.7, 10):
        z = case.x + scale * case.ambient(2)
        yield within(case.manifold.residual(_nearest(case, z)), tolerance(case.dtype), f"|z - x| = {scale}")


@theorem(
    "nearest: optimal",
    "z - nearest(z) is normal, and no random point is nearer to z",
    needs=("nearest: fixes points", "nearest: feasible", "project: tangent", "project: self-adjoint"),
    applies=_has_nearest,
)
def _(case: Case) -> Iterator[Finding]:
    for scale in (0.1, 0.7):
        z = case.x + scale * case.ambient(2)
        near = _nearest(case, z)
        slope = case.size(case.manifold.project(near, z - near))
        yield within(slope, 10 * case.rounding, f"tangent part of z - nearest(z), |z - x| = {scale}")
        for number in range(3, 8):
            excess = case.apart(z, near) - case.apart(z, case.point(number))
            yield within(excess, case.rounding, f"a random point is nearer, |z - x| = {scale}")


@theorem("polish: keeps points", "polish(x) = x to rounding, and is feasible")
def _(case: Case) -> Iterator[Finding]:
    polished = case.engine.polish(case.x)
    yield within(case.apart(polished, case.x), case.rounding, "moved")
    yield within(case.manifold.residual(polished), tolerance(case.dtype), "residual")


@theorem("polish: no farther off", "residual(polish(z)) <= residual(z) for z within sqrt(eps) of M")
def _(case: Case) -> Iterator[Finding]:
    z = case.x + 0.1 * case.eps**0.5 * case.ambient(2)
    before, after = case.manifold.residual(z), case.manifold.residual(case.engine.polish(z))
    yield within(after - 1.01 * before, tolerance(case.dtype))


@theorem("split: parts are points", "each (factor, part) of split(x) has part in factor, and dims add up")
def _(case: Case) -> Iterator[Finding]:
    parts = case.engine.split(case.x)
    for factor, part in parts:
        yield within(factor.residual(part), tolerance(case.dtype), repr(factor))
    total = sum(factor.dim(tuple(part.shape)) for factor, part in parts)
    yield holds(total == case.manifold.dim(case.shape), f"the parts have {total} degrees of freedom")


@theorem("split: join inverts", "join(parts of split(x), shape) = x")
def _(case: Case) -> Iterator[Finding]:
    back = case.engine.join([part for _, part in case.engine.split(case.x)], case.shape)
    yield within(case.apart(back, case.x), 0.0)
