"""Changing the chart of a trivialization: what a covector in the coordinates at x is in those at another point.

The chart at x is F(c) = move(x, coordinates(x, c)). A gradient in it, or a mean of gradients, is m = DF(c)^* t for one
t in T_y, y = F(c); in the chart G at y, whose zero is y, the same one is m' = DG(0)^* t. So m' is m by the inverse
adjoint of the change of chart. `solved` finds t by conjugate gradients, on any manifold that autograd differentiates;
`cayley` and `polar` are closed forms.
Source: Saad, Iterative Methods for Sparse Linear Systems (2003), section 8.3.1, on CGNR.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Inexact
from torch import Tensor

from ._linalg import may_look, skew, sym
from ._points import inner
from ._tiny import product
from .base import Manifold, per_point

Linear = Callable[[Tensor], Tensor]
Square = Inexact[Tensor, "*batch n n"]
Points = Inexact[Tensor, "*batch n p"]

ROUNDS = 100  # of conjugate gradients, at most
BLIND = 8  # where a value would have to be waited for: at |c| = 1 each leaves a third of the error, or less


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


def cayley(c: Square, m: Square) -> Square:
    """(I - C/2) M (I + C/2) for skew C and M: with P = (I - C/2)^-1, X Cayley(C) moves by P^H dC P."""
    k = product(m, c, m, 0.5)
    return skew(product(c, k, k, -0.5))


def cayley_special(c: Square, m: Square) -> Square:
    """K - tr K / tr S S with K = (I - C/2) M (I + C/2), S = I - C^2/4: `cayley` where determinants are kept at 1."""
    k = cayley(c, m)
    s = product(c, c, alpha=-0.25)
    s.diagonal(dim1=-2, dim2=-1).add_(1)
    ratio = _trace(k) / _trace(s)
    return k - ratio[..., None, None] * s


def polar(x: Points, y: Points, c: Points, m: Points) -> Points:
    """The projection at Y of (M - 2 X Z) H with H = Y^H (X + C), N = X^H Y, and N^H Z + Z N = sym(Y^H M).

    For the tangent C = Y H - X changes by dY H + Y dH, where X^H C stays skew: X^H dY H + N dH is skew.
    """
    if x.shape[-2] < x.shape[-1]:
        return polar(x.mH, y.mH, c.mH, m.mH).mH
    h, n = sym(y.mH @ (x + c)), x.mH @ y
    z = least_squares(lambda z: 2 * sym(z @ n), lambda k: 2 * sym(n @ k), sym(y.mH @ m), 2)
    t = (m - 2 * x @ z) @ h
    return t - y @ sym(y.mH @ t)


def least_squares(of: Linear, adjoint: Linear, b: Tensor, ndim: int) -> Tensor:
    """The shortest t with of(t) = b, for b in the range but for rounding, point by point, by conjugate gradients."""
    looks, tiny = may_look(b), torch.finfo(b.dtype).tiny
    least = (4 * torch.finfo(b.dtype).eps) ** 2 * _squares(b, ndim)
    t, r, p = torch.zeros_like(b), b, adjoint(b)
    size = _squares(p, ndim)
    for _ in range(ROUNDS if looks else BLIND):
        going = size > least
        if looks and not bool(going.any()):
            break
        q = of(p)
        step = torch.where(going, size / _squares(q, ndim).clamp_min(tiny), 0)
        t, r = t + step * p, r - step * q
        s = adjoint(r)
        size, before = _squares(s, ndim), size
        p = s + size / before.clamp_min(tiny) * p
    return t


def is_long(manifold: Manifold, x: Tensor, c: Tensor) -> bool:
    """Whether a point has coordinates with |C| > |X| / (3 k^(1/4)), from where its chart may bend. Looks at values.

    k is 1 for vectors and the shorter side of matrices: if C has all its length in one of k directions it is as long
    there as |C| sqrt(k) / |X|, which is |C| on Stiefel, and if it has it evenly, as |C| / |X|. Their geometric mean is
    compared with 1/3. Numbers have a chart that never bends. False where c is NaN.
    """
    for (factor, points), (_, vectors) in zip(manifold.split(x), manifold.split(c), strict=True):
        if factor.ndim == 0 or not points.numel():
            continue
        axes = tuple(range(-factor.ndim, 0))
        scale, length = (torch.linalg.vector_norm(t, dim=axes) for t in (points, vectors))
        k = min(points.shape[axes[0] :]) if factor.ndim > 1 else 1
        if bool((length > scale / (3 * k**0.25)).any()):
            return True
    return False


def _trace(a: Square) -> Inexact[Tensor, "*batch"]:
    return a.diagonal(dim1=-2, dim2=-1).sum(-1)


def _squares(a: Tensor, ndim: int) -> Tensor:
    """|a|^2 of each point, shaped to multiply points."""
    return per_point(inner(a, a, ndim), ndim)
