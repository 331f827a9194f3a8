"""What autograd makes of a retraction: finite where training starts, and right where it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ._case import Case, Finding, theorem, within

RETRACT = ("retract: first order", "project: linear")
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
    """First and second derivatives of a function at a generic place, along a generic line, against differences."""
    place, line, w, w2 = 0.5 * case.ambient(5), case.ambient(6), case.ambient(7), case.ambient(8)

    def first(a: Tensor) -> Tensor:
        return torch.autograd.grad(case.dot(w, function(a)).sum(), a, create_graph=True)[0]

    def at(t: float) -> Tensor:
        return (place + t * line).requires_grad_()

    slope = case.slope(lambda t: case.dot(w, function(place + t * line)).sum())
    grad = first(at(0))
    yield within((slope - case.dot(line, grad).sum()).abs(), case.slope_error, "first derivative")
    slope = case.slope(lambda t: case.dot(w2, first(at(t)).detach()).sum())
    a = at(0)
    moment = case.dot(w2, first(a)).sum()
    if moment.requires_grad:  # an affine function has none
        (grad,) = torch.autograd.grad(moment, a, allow_unused=True, materialize_grads=True)
    else:
        grad = torch.zeros_like(a)
    yield within((slope - case.dot(line, grad).sum()).abs(), 10 * case.slope_error, "second derivative")


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
    yield from _identity_at_zero(case, case.manifold.move, c, case.velocity(case.x, c))


@theorem(
    "move: derivatives",
    "autograd of move(x, c), once and twice, agrees with finite differences",
    needs=(*MOVE, "retract: derivatives"),
)
def _(case: Case) -> Iterator[Finding]:
    m = case.manifold
    yield from _matches_differences(case, lambda a: m.move(case.x, m.coordinates(case.x, a)))
