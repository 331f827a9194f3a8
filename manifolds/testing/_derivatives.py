"""What autograd makes of a retraction: finite where training starts, and right where it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ._case import Case, Finding, theorem, within

RETRACT = ("retract: fixes x", "retract: first order", "project: linear")
MOVE = ("move: first order", "coordinates: linear")


def _pull(case: Case, function: Callable[[Tensor], Tensor], at: Tensor, w: Tensor) -> Tensor:
    """The gradient of Re<w, function(a)> at a."""
    a = at.detach().requires_grad_()
    (grad,) = torch.autograd.grad(case.dot(w, function(a)).sum(), a)
    return grad


def _identity_at_zero(
    case: Case, function: Callable[[Tensor, Tensor], Tensor], u: Tensor, v: Tensor
) -> Iterator[Finding]:
    """The derivative of function(x, .) at 0 takes u to v."""
    zero, w = torch.zeros_like(case.x), case.ambient(4)
    grad = _pull(case, lambda c: function(case.x, c), zero, w)
    yield within((case.dot(grad, u) - case.dot(w, v)).abs(), case.slope_error, "in v")
    grad = _pull(case, lambda x: function(x, zero), case.x, w)
    yield within((grad - grad).abs(), 0.0, "in x")


def _matches_differences(case: Case, function: Callable[[Tensor], Tensor]) -> Iterator[Finding]:
    """First and second derivatives along a generic line, at generic places near 0 and far from it."""
    for length in (0.01, 0.5, 1 if case.is_open else 3):
        first, second = _errors(case, function, length * case.direction(5))
        yield within(first, case.slope_error, f"first, |v| = {length}")
        yield within(second, 10 * case.slope_error, f"second, |v| = {length}")


def _errors(case: Case, function: Callable[[Tensor], Tensor], place: Tensor) -> tuple[Tensor, Tensor]:
    """How far first and second derivatives of Re<w, function(a)> are from finite differences."""
    line, w, w2 = case.direction(6), case.ambient(7), case.ambient(8)
    slope = case.slope(lambda t: case.dot(w, function(place + t * line)).sum())
    first = (slope - case.dot(line, _pull(case, function, place, w)).sum()).abs()
    slope = case.slope(lambda t: case.dot(w2, _pull(case, function, place + t * line, w)).sum())
    second = (slope - case.dot(line, _second(case, function, place, w, w2)).sum()).abs()
    return first, second


def _second(case: Case, function: Callable[[Tensor], Tensor], place: Tensor, w: Tensor, w2: Tensor) -> Tensor:
    """The gradient of Re<w2, gradient of Re<w, function(a)>> at a place; zero for an affine function."""
    a = place.detach().requires_grad_()
    (grad,) = torch.autograd.grad(case.dot(w, function(a)).sum(), a, create_graph=True)
    if not grad.requires_grad:
        return torch.zeros_like(a)
    (second,) = torch.autograd.grad(case.dot(w2, grad).sum(), a, allow_unused=True, materialize_grads=True)
    return second


@theorem("retract: derivative at 0", "autograd at v = 0 is finite, and D R_x(0) u = u for u in T_x", needs=RETRACT)
def _(case: Case) -> Iterator[Finding]:
    u = case.tangent(3)
    yield from _identity_at_zero(case, case.manifold.retract, u, u)


@theorem("retract: derivatives", "autograd of R_x(v), once and twice, agrees with finite differences", needs=RETRACT)
def _(case: Case) -> Iterator[Finding]:
    m = case.manifold
    yield from _matches_differences(case, lambda a: m.retract(case.x, m.project(case.x, a)))


@theorem(
    "move: derivative at 0",
    "autograd at c = 0 is finite, and D move(x, 0) c is the vector with coordinates c",
    needs=(*MOVE, "retract: derivative at 0"),
)
def _(case: Case) -> Iterator[Finding]:
    c = case.coordinates(3)
    yield from _identity_at_zero(case, case.engine.move, c, case.velocity(case.x, c))


@theorem(
    "move: derivatives",
    "autograd of move(x, c), once and twice, agrees with finite differences",
    needs=(*MOVE, "retract: derivatives"),
)
def _(case: Case) -> Iterator[Finding]:
    e = case.engine
    yield from _matches_differences(case, lambda a: e.move(case.x, e.coordinates(case.x, a)))
