"""The quadratic model of a trust region, minimized by conjugate gradients that stop at its boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .hessians import Product
from .problem import Problem
from .solver import Mask, State
from .space import Numbers, Rows


class Step(NamedTuple):
    """A step v, by how much the model decreases along it, and whether it ends at the boundary."""

    v: Rows
    decrease: Numbers
    at_boundary: Mask


def minimize_model(
    problem: Problem,
    state: State,
    times: Product,
    precondition: Callable[[Rows, Rows], Rows] | None,
    radius: Numbers,
    active: Mask,
    kappa: float,
    theta: float,
    limit: int,
) -> Step:
    """Steihaug-Toint conjugate gradients on <g, v> + <v, H v> / 2 over |v| <= radius, g the gradient of the state.

    With a preconditioner P the norm of the boundary is that of P^-1. Every problem stops for itself.
    Source: Steihaug (1983); Conn, Gould & Toint (2000), algorithm 7.5.1.
    """
    space, x, r = problem.space, state.x, state.gradient
    v, decrease, at_boundary = torch.zeros_like(r), torch.zeros_like(radius), torch.zeros_like(active)
    # what is below the tolerance of the gradient needs no answer
    target = (state.norm * state.norm.pow(theta).clamp_max(kappa)).clamp_min(problem.tol / 10)
    z = r if precondition is None else precondition(x, r)
    rz = space.inner(x, r, z)
    # <v, v>, <v, d> and <d, d> in the norm of the boundary, by recursion
    d, vv, vd, dd = -z, torch.zeros_like(rz), torch.zeros_like(rz), rz
    everywhere = bool(active.all())
    for _ in range(limit):
        h = times(d)
        curvature = space.inner(x, d, h)
        step = rz / curvature
        vv_next = vv + step * (2 * vd + step * dd)
        # negated, so that NaN leaves too
        leaves = ~((curvature > 0) & (vv_next < radius * radius)) & active
        if bool(leaves.any()):
            root = (vd * vd + dd * (radius * radius - vv)).clamp_min(0).sqrt()
            # the form that does not cancel
            to_boundary = torch.where(vd > 0, (radius * radius - vv) / (vd + root), (root - vd) / dd)
            step = torch.where(leaves, to_boundary, step)
            curvature, everywhere = curvature.nan_to_num(), False
        if not everywhere:
            step = torch.where(active, step, 0)
        v = torch.addcmul(v, step, d)
        decrease = decrease + step * (rz - step * curvature / 2)
        if not everywhere:
            at_boundary, active = at_boundary | leaves, active & ~leaves
            if not bool(active.any()):
                break
        r = torch.addcmul(r, step, h)
        z = r if precondition is None else precondition(x, r)
        rz_next = space.inner(x, r, z)
        norm = rz_next.sqrt() if precondition is None else space.norm(x, r)
        goes_on = norm > target
        everywhere = everywhere and bool(goes_on.all())
        if not everywhere:
            active = active & goes_on
            if not bool(active.any()):
                break
        if problem.out_of_time():
            break
        beta = rz_next / rz
        vd, dd, vv, rz = beta * (vd + step * dd), rz_next + beta * beta * dd, vv_next, rz_next
        d = torch.addcmul(-z, beta, d)
    return Step(v, decrease, at_boundary)
