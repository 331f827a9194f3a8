"""The quadratic model of a trust region, minimized by conjugate gradients that stop at its boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .hessians import Product
from .numbers import Number, Truth, all_, any_, eps_of, full, is_finite, larger, no, over, plus, smaller, sqrt, where
from .problem import Problem
from .solver import State
from .space import Rows

FLOOR = 4.0
"""A residual of so many eps of the Euclidean gradient is rounding."""


class Step(NamedTuple):
    """A step v, by how much the model decreases along it, and whether it ends at the boundary."""

    v: Rows
    decrease: Number
    at_boundary: Truth


def minimize_model(
    problem: Problem,
    state: State,
    times: Product,
    precondition: Callable[[Rows, Rows], Rows] | None,
    radius: Number,
    active: Truth,
    kappa: float,
    theta: float,
    limit: int,
) -> Step:
    """Steihaug-Toint conjugate gradients on <g, v> + <v, H v> / 2 over |v| <= radius, g the gradient of the state.

    With a preconditioner P the norm of the boundary is that of P^-1. Every problem stops for itself.
    Source: Steihaug (1983); Conn, Gould & Toint (2000), algorithm 7.5.1.
    """
    space, x, r = problem.space, state.x, state.gradient
    v, decrease, at_boundary = torch.zeros_like(r), full(radius, 0.0), active & False
    # what is below the tolerance of the gradient needs no answer, and what is rounding of the Euclidean one has none:
    # conjugate gradients that go on after it turn to directions in which f is flat, and find sizes for them by chance
    target = larger(state.norm * smaller(state.norm**theta, kappa), problem.tol / 10)
    if space.is_ambient:
        slopes = space.join([g.detach() for g in state.at.slopes])
        target = larger(target, FLOOR * eps_of(x.dtype) * space.size(slopes))
    z = r if precondition is None else precondition(x, r)
    rz = space.inner(x, r, z)
    # <v, v>, <v, d> and <d, d> in the norm of the boundary, by recursion
    d, vv, vd, dd, limit_squared = -z, full(rz, 0.0), full(rz, 0.0), rz, radius * radius
    everywhere = all_(active)
    for _ in range(limit):
        h = times(d)
        curvature = space.inner(x, d, h)
        step = over(rz, curvature)
        vv_next = vv + step * (2 * vd + step * dd)
        # negated, so that NaN leaves too
        leaves = active & no((curvature > 0) & (vv_next < limit_squared))
        if any_(leaves):
            root = sqrt(larger(vd * vd + dd * (limit_squared - vv), 0.0))
            # of the two forms the one that does not cancel
            ahead = vd > 0
            to_boundary = over(where(ahead, limit_squared - vv, root - vd), where(ahead, vd + root, dd))
            step, everywhere = where(leaves, to_boundary, step), False
            curvature = where(is_finite(curvature), curvature, 0.0)
        if not everywhere:
            step = where(active, step, 0.0)
        v = plus(v, step, d)
        decrease = decrease + step * (rz - step * curvature / 2)
        if not everywhere:
            at_boundary, active = at_boundary | leaves, active & no(leaves)
            if not any_(active):
                break
        r = plus(r, step, h)
        z = r if precondition is None else precondition(x, r)
        rz_next = space.inner(x, r, z)
        goes_on = (sqrt(rz_next) if precondition is None else space.norm(x, r)) > target
        if not (everywhere and all_(goes_on)):
            everywhere, active = False, active & goes_on
            if not any_(active):
                break
        if problem.out_of_time():
            break
        beta = over(rz_next, rz)
        vd, dd, vv, rz = beta * (vd + step * dd), rz_next + beta * beta * dd, vv_next, rz_next
        # rounding leaves a normal part, which no product with H makes smaller, and in the end is all that is left of d
        d = space.straight(x, plus(-z, beta, d))
    return Step(v, decrease, at_boundary)
