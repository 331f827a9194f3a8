"""The engine-facing side: coordinates of tangent vectors, and what is done with them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..base import per_point, tolerance
from ._case import Case, Finding, inside, theorem, within
from ._tangents import METRIC

COORDINATES = ("project: tangent", "coordinates: identity on coordinates", "coordinates: linear")
MOVE = (*COORDINATES, "move: fixes x", "move: first order")


@theorem(
    "coordinates: identity on coordinates",
    "coordinates(x, coordinates(x, a)) = coordinates(x, a)",
    needs=("project: idempotent",),
)
def _(case: Case) -> Iterator[Finding]:
    c = case.coordinates(2)
    yield within(case.apart(case.engine.coordinates(case.x, c), c), case.rounding)


@theorem(
    "coordinates: linear",
    "coordinates(x, 2a - b) = 2 coordinates(x, a) - coordinates(x, b)",
    needs=("project: linear",),
)
def _(case: Case) -> Iterator[Finding]:
    a, b, of = case.ambient(2), case.ambient(3), case.engine.coordinates
    yield within(case.apart(of(case.x, 2 * a - b), 2 * of(case.x, a) - of(case.x, b)), case.rounding)


@theorem(
    "coordinates: rank",
    "the real rank of coordinates(x, .) is dim(shape), of complex x dim_of_complex(shape)",
    needs=("coordinates: identity on coordinates", "coordinates: linear", "project: rank", "batch: equals loop"),
)
def _(case: Case) -> Iterator[Finding]:
    basis = case.basis()
    rank = case.dot(basis, case.engine.coordinates(case.x.expand(basis.shape), basis)).sum()
    yield within((rank - case.dim()).abs(), 1e-3, f"rank {float(rank):.3g}")


@theorem("move: fixes x", "move(x, 0) = x", needs=("retract: fixes x",))
def _(case: Case) -> Iterator[Finding]:
    yield within(case.apart(case.engine.move(case.x, torch.zeros_like(case.x)), case.x), case.rounding)


@theorem(
    "move: feasible", "residual(move(x, c)) <= tolerance(dtype) max(1, |c|)", needs=("retract: feasible", *COORDINATES)
)
def _(case: Case) -> Iterator[Finding]:
    for scale in case.lengths:
        for c in case.coordinate_steps():
            y = case.engine.move(case.x, scale * c)
            yield inside(case, y, tolerance(case.dtype) * max(1, scale), f"|c| = {scale}")


@theorem(
    "move: first order",
    "move(x, tc) = x + tv + O(t^2) with v in T_x linear in c: the vector with coordinates c",
    needs=("retract: first order", "move: fixes x", *COORDINATES),
)
def _(case: Case) -> Iterator[Finding]:
    m, e, c, d = case.manifold, case.engine, case.coordinates(2), case.coordinates(3)
    v = case.velocity(case.x, c)
    yield within(case.apart(m.project(case.x, v), v), case.slope_error, "v is not tangent")
    both = case.velocity(case.x, 2 * c - d)
    yield within(case.apart(both, 2 * v - case.velocity(case.x, d)), 3 * case.slope_error, "v is not linear in c")
    yield case.quarters(lambda t: case.apart(e.move(case.x, t * c), case.x + t * v))


@theorem(
    "coordinate_inner: the metric",
    "coordinate_inner(x, c, d) = inner(x, v, w) of the vectors with coordinates c and d",
    needs=METRIC + MOVE,
)
def _(case: Case) -> Iterator[Finding]:
    m, e, c, d = case.manifold, case.engine, case.coordinates(2), case.coordinates(3)
    v, w = case.velocity(case.x, c), case.velocity(case.x, d)
    yield within((e.coordinate_inner(case.x, c, d) - m.inner(case.x, v, w)).abs(), case.slope_error)
    yield within((e.coordinate_inner(case.x, c, c) - m.inner(case.x, v, v)).abs(), case.slope_error)


@theorem(
    "lift: coordinates of the gradient",
    "coordinate_inner(x, lift(x, g), c) = Re<g, v> for the v with coordinates c",
    needs=("gradient: tangent", "gradient: dual to the metric", "coordinate_inner: the metric", *MOVE),
)
def _(case: Case) -> Iterator[Finding]:
    e, g, c = case.engine, case.ambient(2), case.coordinates(3)
    lifted = e.lift(case.x, g)
    yield within(case.apart(e.coordinates(case.x, lifted), lifted), case.rounding, "not coordinates")
    error = e.coordinate_inner(case.x, lifted, c) - case.dot(g, case.velocity(case.x, c))
    yield within(error.abs(), case.slope_error)


@theorem(
    "carry: coordinates of the transport",
    "the vector with coordinates carry(x, y, c) is transport(x, y, v) of the vector with coordinates c",
    needs=("transport: tangent", "transport: linear", *MOVE),
)
def _(case: Case) -> Iterator[Finding]:
    m, e, c = case.manifold, case.engine, case.coordinates(2)
    carried = e.carry(case.x, case.y, c)
    yield within(case.apart(e.coordinates(case.y, carried), carried), case.rounding, "not coordinates at y")
    moved = m.transport(case.x, case.y, case.velocity(case.x, c))
    yield within(case.apart(case.velocity(case.y, carried), moved), 2 * case.slope_error)


@theorem(
    "store and recall: carry",
    "recall(y, store(x, y, c)) = carry(x, y, c)",
    needs=("carry: coordinates of the transport",),
)
def _(case: Case) -> Iterator[Finding]:
    e, c = case.engine, case.coordinates(2)
    x, y = case.flat(case.x), case.flat(case.y)
    with torch.no_grad():  # where memory may be written to
        recalled = e.recall(y, e.store(x, y, case.flat(c).clone()).clone())
    yield within(case.apart(recalled, e.carry(x, y, case.flat(c))), case.rounding)


@theorem(
    "mix: momentum and gradient",
    "mix(x, stored, g, a, b) = (a recall(x, stored) + b lift(x, g), |lift(x, g)|^2), on (B, *point)",
    needs=("lift: coordinates of the gradient", "store and recall: carry"),
)
def _(case: Case) -> Iterator[Finding]:
    e, x, y, g, c = case.engine, *map(case.flat, (case.x, case.y, case.ambient(2), case.coordinates(3)))
    stored, lifted = e.store(x, y, c), e.lift(y, g)
    for keep, add in ((0.9, 0.1), (0.5, 2.0)):
        mixed, square = e.mix(y, stored.clone(), g, keep, add)
        yield within(case.apart(mixed, keep * e.recall(y, stored) + add * lifted), 4 * case.rounding, "not the sum")
        yield within((square - e.coordinate_inner(y, lifted, lifted)).abs(), 4 * case.rounding, "not |lift|^2")


@theorem(
    "advance: move",
    "advance(x, c, s) = move(x, s c) for one number s, and for one per point, on (B, *point)",
    needs=("move: feasible", "move: first order"),
)
def _(case: Case) -> Iterator[Finding]:
    e, x, c = case.engine, case.flat(case.x), case.flat(case.coordinates(2))
    sizes = per_point(
        torch.linspace(0.5, 1, len(x), dtype=case.dtype.to_real(), device=case.device), case.manifold.ndim
    )
    for scale in (1e-3, 0.03, 1.0):
        expected = e.move(x, scale * c)
        yield within(case.apart(e.advance(x, c, scale), expected), case.rounding, f"s = {scale}")
        expected = e.move(x, scale * sizes * c)
        yield within(case.apart(e.advance(x, c, scale * sizes), expected), case.rounding, f"s up to {scale}")


@theorem(
    "travel: advance and store",
    "travel(x, c, s) = (y, store(x, y, c)) with y = advance(x, c, s), on (B, *point)",
    needs=("advance: move", "store and recall: carry"),
)
def _(case: Case) -> Iterator[Finding]:
    e, x, c = case.engine, case.flat(case.x), case.flat(case.coordinates(2))
    for scale in (1e-3, 1.0):
        y = e.advance(x, c, scale)
        reached, stored = e.travel(x, c.clone(), scale)
        yield within(case.apart(reached, y), case.rounding, f"s = {scale}")
        yield within(case.apart(e.recall(y, stored), e.carry(x, y, c)), case.rounding, f"what is stored, s = {scale}")


@theorem(
    "reach: move of coordinates",
    "reach(x, a) = move(x, coordinates(x, a)) for any a, on (B, *point)",
    needs=("advance: move",),
)
def _(case: Case) -> Iterator[Finding]:
    e, x, a = case.engine, case.flat(case.x), case.flat(case.ambient(2))
    for scale in (1e-3, 0.03, 1.0):
        expected = e.move(x, e.coordinates(x, scale * a))
        with torch.no_grad():  # where memory may be written to
            reached = e.reach(x, scale * a)
        yield within(case.apart(reached, expected), case.rounding, f"|a| ~ {scale}")
