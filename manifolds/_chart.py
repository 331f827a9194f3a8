"""Changing the chart of a trivialization: what a covector in the coordinates at x is in those at another point.

The chart at x is F(c) = move(x, coordinates(x, c)). A gradient in it, or a mean of gradients, is m = DF(c)^* t for one
t in T_y, y = F(c); in the chart G at y, whose zero is y, the same one is m' = DG(0)^* t. So m' is m by the inverse
adjoint of the change of chart. `solved` finds t by conjugate gradients, on any manifold that autograd differentiates;
`cayley` and `polar` are closed forms.
Source: Saad, Iterative Methods for Sparse Linear Systems (2003), section 8.3.1, on CGNR.
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .base import Manifold
from .kernels.chart import least_squares

Points = Inexact[Tensor, "*batch n p"]


def solved(manifold: Manifold, x: Tensor, y: Tensor, c: Tensor, m: Tensor) -> Tensor:
    """DG(0)^* t for the t with DF(c)^* t = m."""
    with torch.enable_grad():
        c = c.detach().requires_grad_()
        at = manifold.coordinates(x, c)
        z = manifold.move(x, at)
        probe = torch.zeros_like(z, requires_grad=True)
        (pulled,) = torch.autograd.grad(z, c, probe, create_graph=True)  # linear in the probe
        zero = torch.zeros_like(c, requires_grad=True)
        there = manifold.move(y, manifold.coordinates(y, zero))

    def pull(t: Tensor) -> Tensor:
        return torch.autograd.grad(z, c, t, retain_graph=True)[0]

    def push(v: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, probe, v, retain_graph=True)[0]

    (m,) = torch.autograd.grad(at, c, m, retain_graph=True)  # what of m is no covector of the chart is left out
    result: Tensor = torch.autograd.grad(there, zero, least_squares(pull, push, m, manifold.ndim))[0]
    return result


def is_long(manifold: Manifold, x: Tensor, c: Tensor) -> bool:
    """Whether a point has coordinates longer than it is itself: where charts begin to bend. It looks at the values.

    Of vectors the norms are compared; of matrices the largest singular value of C, estimated from below, with the
    quadratic mean of those of X, which are 1 on Stiefel. Numbers have a chart that never bends. False where c is NaN.
    """
    for (factor, points), (_, vectors) in zip(manifold.split(x), manifold.split(c), strict=True):
        if factor.ndim == 0 or not points.numel():
            continue
        axes = tuple(range(-factor.ndim, 0))
        scale, length = (torch.linalg.vector_norm(t, dim=axes) for t in (points, vectors))
        if factor.ndim == 2:
            scale = scale / math.sqrt(min(points.shape[-2:]))
        longer = length > scale
        if factor.ndim == 2 and bool(longer.any()):
            longer &= _largest_singular_value(vectors) > scale
        if bool(longer.any()):
            return True
    return False


def _largest_singular_value(a: Points) -> Float[Tensor, "*batch"]:
    """Of each matrix, from below, by power iteration from a start that is the same every time."""
    tiny = torch.finfo(a.dtype).tiny
    size = torch.linalg.vector_norm(a, dim=(-2, -1), keepdim=True)
    a, v = a / size.clamp_min(tiny), _start(a.shape[-1], a.dtype)
    for _ in range(3):
        v = a.mH @ (a @ v)
    before, after = (torch.linalg.vector_norm(t, dim=(-2, -1)) for t in (v, a @ v))
    largest: Tensor = after / before.clamp_min(tiny) * size[..., 0, 0]
    return largest


@functools.cache
def _start(n: int, dtype: torch.dtype) -> Tensor:
    return (torch.arange(1, n + 1, dtype=torch.float64).square() * math.sqrt(2)).cos().to(dtype).unsqueeze(-1)
