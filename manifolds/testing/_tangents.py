"""Tangent vectors: projection, metric, gradient, retraction, transport."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..base import tolerance
from ._case import Case, Finding, holds, inside, theorem, within

TANGENT = ("project: tangent",)
METRIC = ("inner: symmetric", "inner: linear", "inner: positive")


@theorem("project: tangent", "residual(x + tv) = O(t^2) for v = project(x, a)")
def _(case: Case) -> Iterator[Finding]:
    v = case.tangent(2)
    yield case.quarters(lambda t: case.manifold.residual(case.x + t * v))


@theorem("project: idempotent", "project(x, project(x, a)) = project(x, a)")
def _(case: Case) -> Iterator[Finding]:
    v = case.manifold.project(case.x, case.ambient(2))
    yield within(case.apart(case.manifold.project(case.x, v), v), case.rounding)


@theorem("project: self-adjoint", "Re<project(x, a), b> = Re<a, project(x, b)>")
def _(case: Case) -> Iterator[Finding]:
    a, b, project = case.ambient(2), case.ambient(3), case.manifold.project
    yield within((case.dot(project(case.x, a), b) - case.dot(a, project(case.x, b))).abs(), case.rounding)


@theorem("project: linear", "project(x, 2a - b) = 2 project(x, a) - project(x, b)")
def _(case: Case) -> Iterator[Finding]:
    a, b, project = case.ambient(2), case.ambient(3), case.manifold.project
    yield within(case.apart(project(case.x, 2 * a - b), 2 * project(case.x, a) - project(case.x, b)), case.rounding)


@theorem(
    "project: rank",
    "the real rank of project(x, .) is dim(shape), of complex x dim_of_complex(shape)",
    needs=("project: linear", "project: idempotent", "batch: equals loop"),
)
def _(case: Case) -> Iterator[Finding]:
    basis, count, is_complex = case.basis(), case.dim(), case.dtype.is_complex
    # the trace of an idempotent matrix is its rank
    rank = float(case.dot(basis, case.manifold.project(case.x.expand(basis.shape), basis)).sum())
    said = f"dim{'_of_complex' * is_complex}({case.shape}) is {count}{', 2 dim unless written' * is_complex}"
    yield holds(abs(rank - count) <= 1e-3, f"the rank is {rank:.3f}".removesuffix(".000") + f", and {said}")


@theorem(
    "random_tangent: tangent",
    "project(x, random_tangent(x)) = random_tangent(x), of the generator's numbers",
    needs=("project: idempotent",),
)
def _(case: Case) -> Iterator[Finding]:
    v, again = (case.manifold.random_tangent(case.x, case.generator(2)) for _ in range(2))
    error = case.apart(case.manifold.project(case.x, v), v)
    yield within(error / case.size(v).clamp_min(1), case.rounding)
    yield holds(torch.equal(v, again), "the same generator gives different vectors")


@theorem("inner: symmetric", "inner(x, u, v) = inner(x, v, u)")
def _(case: Case) -> Iterator[Finding]:
    u, v, inner = case.tangent(2), case.tangent(3), case.manifold.inner
    yield within((inner(case.x, u, v) - inner(case.x, v, u)).abs(), case.rounding)


@theorem("inner: linear", "inner(x, 2u - w, v) = 2 inner(x, u, v) - inner(x, w, v)")
def _(case: Case) -> Iterator[Finding]:
    u, v, w, inner = case.tangent(2), case.tangent(3), case.tangent(4), case.manifold.inner
    expected = 2 * inner(case.x, u, v) - inner(case.x, w, v)
    yield within((inner(case.x, 2 * u - w, v) - expected).abs(), case.rounding)


@theorem("inner: positive", "inner(x, v, v) > 0 for v != 0 in T_x")
def _(case: Case) -> Iterator[Finding]:
    for number in (2, 3, 4):
        v = case.tangent(number)
        square = case.manifold.inner(case.x, v, v)
        yield holds(bool(((square > 0) | (case.size(v) == 0)).all()), f"inner(x, v, v) is {float(square.min()):.3g}")


@theorem("norm: of the metric", "norm(x, v)^2 = inner(x, v, v)", needs=METRIC)
def _(case: Case) -> Iterator[Finding]:
    v = case.tangent(2)
    yield within((case.manifold.norm(case.x, v) ** 2 - case.manifold.inner(case.x, v, v)).abs(), case.rounding)


@theorem("retract: fixes x", "R_x(0) = x")
def _(case: Case) -> Iterator[Finding]:
    yield within(case.apart(case.manifold.retract(case.x, torch.zeros_like(case.x)), case.x), case.rounding)


@theorem("retract: feasible", "residual(R_x(v)) <= tolerance(dtype) max(1, |v|) for short and long v", needs=TANGENT)
def _(case: Case) -> Iterator[Finding]:
    for scale in case.lengths:
        for v in case.steps():
            y = case.manifold.retract(case.x, scale * v)
            yield inside(case, y, tolerance(case.dtype) * max(1, scale), f"|v| = {scale}")


@theorem("retract: first order", "R_x(tv) = x + tv + O(t^2): halving t quarters the error", needs=TANGENT)
def _(case: Case) -> Iterator[Finding]:
    v = case.tangent(2)
    yield case.quarters(lambda t: case.apart(case.manifold.retract(case.x, t * v), case.x + t * v))


@theorem("gradient: tangent", "project(x, gradient(x, g)) = gradient(x, g)", needs=TANGENT)
def _(case: Case) -> Iterator[Finding]:
    v = case.manifold.gradient(case.x, case.ambient(2))
    yield within(case.apart(case.manifold.project(case.x, v), v), case.rounding)


@theorem("gradient: dual to the metric", "inner(x, gradient(x, g), u) = Re<g, u> for u in T_x", needs=TANGENT + METRIC)
def _(case: Case) -> Iterator[Finding]:
    g, u = case.ambient(2), case.tangent(3)
    error = case.manifold.inner(case.x, case.manifold.gradient(case.x, g), u) - case.dot(g, u)
    yield within(error.abs(), case.rounding)


@theorem(
    "gradient: slope of f",
    "d/dt f(R_x(tv)) at 0 = inner(x, gradient(x, g), v), by finite differences",
    needs=("project: linear", "retract: fixes x", "retract: first order", "gradient: dual to the metric"),
)
def _(case: Case) -> Iterator[Finding]:
    v, m = case.tangent(2), case.manifold
    slope = case.slope(lambda t: case.f(m.retract(case.x, t * v)))
    error = slope - m.inner(case.x, m.gradient(case.x, case.euclidean_gradient(case.x)), v)
    yield within(error.abs(), case.slope_error)


@theorem("transport: tangent", "project(y, transport(x, y, v)) = transport(x, y, v)", needs=TANGENT)
def _(case: Case) -> Iterator[Finding]:
    w = case.manifold.transport(case.x, case.y, case.tangent(2))
    yield within(case.apart(case.manifold.project(case.y, w), w), case.rounding)


@theorem("transport: linear", "transport(x, y, 2u - v) = 2 transport(x, y, u) - transport(x, y, v)", needs=TANGENT)
def _(case: Case) -> Iterator[Finding]:
    u, v, x, y, carry = case.tangent(2), case.tangent(3), case.x, case.y, case.manifold.transport
    yield within(case.apart(carry(x, y, 2 * u - v), 2 * carry(x, y, u) - carry(x, y, v)), case.rounding)


@theorem("transport: identity", "transport(x, x, v) = v", needs=TANGENT)
def _(case: Case) -> Iterator[Finding]:
    v = case.tangent(2)
    yield within(case.apart(case.manifold.transport(case.x, case.x, v), v), case.rounding)


@theorem(
    "transport: bounded",
    "norm(y, transport(x, y, v)) <= 10 norm(x, v) for y after six steps of norm 1 along v: momentum keeps its size",
    needs=(*TANGENT, *METRIC, "retract: feasible", "retract: first order", "norm: of the metric", "transport: linear"),
    applies=lambda case: case.is_open,
)
def _(case: Case) -> Iterator[Finding]:
    m, x, v = case.manifold, case.x, case.tangent(2)
    for sign in (1, -1):
        y, step = x, sign * v
        for _ in range(6):
            z, before = m.retract(y, step), step
            if not bool(m.contains(z).all()):  # so near to a boundary that rounding takes it there
                break
            y = z
            step = m.project(y, before)
            step = case.times(1 / m.norm(y, step).clamp_min(1e-3), step)
        yield within(m.norm(y, m.transport(x, y, v)), 10 * float(m.norm(x, v).max()) + case.rounding)
