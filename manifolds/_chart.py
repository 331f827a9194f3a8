"""Changing the chart of a trivialization: what a covector in the coordinates at x is in those at another point.

The chart at x is F(c) = move(x, coordinates(x, c)). A gradient in it, or a mean of gradients, is m = DF(c)^* t for one
t in T_y, y = F(c); in the chart G at y, whose zero is y, the same one is m' = DG(0)^* t. So m' is m by the inverse
adjoint of the change of chart. `solved` finds t by conjugate gradients, on any manifold that autograd differentiates;
`cayley` and `polar` are closed forms.
Source: Saad, Iterative Methods for Sparse Linear Systems (2003), section 8.3.1, on CGNR.
"""

from __future__ import annotations

import torch
from jaxtyping import Inexact
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
    """Whether a point has coordinates with |C| > |X| / (2 k^(1/4)), from where its chart may bend. Looks at values.

    k is 1 for vectors and the shorter side of matrices: if C has all its length in one of k directions it is as long
    there as |C| sqrt(k) / |X|, which is |C| on Stiefel, and if it has it evenly, as |C| / |X|. Their geometric mean is
    compared with 1/2. Numbers have a chart that never bends. False where c is NaN.
    """
    for (factor, points), (_, vectors) in zip(manifold.split(x), manifold.split(c), strict=True):
        if factor.ndim == 0 or not points.numel():
            continue
        axes = tuple(range(-factor.ndim, 0))
        scale, length = (torch.linalg.vector_norm(t, dim=axes) for t in (points, vectors))
        k = min(points.shape[axes[0] :]) if factor.ndim > 1 else 1
        if bool((length > scale / (2 * k**0.25)).any()):
            return True
    return False
