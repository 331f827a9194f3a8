"""Geodesics between subspaces, by principal angles: tangents from one orthonormal basis to another.

For orthonormal X, Y, n x p, the singular values of X^H Y are the cosines of the angles t between the spans, those of
(I - X X^H) Y the sines.
Source: Bjorck & Golub, Numerical methods for computing angles between linear subspaces (1973); Bendokat, Zimmermann &
Absil, A Grassmann manifold handbook (2024), algorithm 5.3, for a log that inverts no X^H Y.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Inexact
from torch import Tensor

from .iterations import ORDER
from .linalg import inverse_sqrt, skew, sym
from .transforms import is_recorded

Points = Inexact[Tensor, "*batch n p"]


def logarithm(x: Points, y: Points, exp: Callable[[Points, Points], Points]) -> Points:
    """U diag(t) W^H: the shortest V with X^H V = 0 and span exp(X, V) = span Y; differentiable up to ORDER.

    exp: that of the manifold, a function (x, v) -> y.
    """
    x, y = (a @ inverse_sqrt(sym(a.mH @ a)) for a in (x, y))
    v = _value(x.detach(), y.detach())
    return _differentiable(x, y, v, exp) if is_recorded(x) or is_recorded(y) else v


def _value(x: Points, y: Points) -> Points:
    """L t/sin(t) with the Hermitian t of cos(t) = X^H Z and L = (I - X X^H) Z, Z the basis of span Y nearest to X.

    As a function of cos(t), t/sin(t) has no corner at 0 and none at pi/2, nor a basis that has to be resolved there.
    """
    a, cosines, bh = torch.linalg.svd(x.mH @ y)
    z = y @ (bh.mH @ a.mH)
    away = z - x  # shorter than Z, where spans are near, and so more exact
    away = away - x @ (x.mH @ away)
    away = away - x @ (x.mH @ away)
    d = (1 - cosines).clamp_min(0)
    series = 1 + d * (1 / 3 + d * (2 / 15 + d * (2 / 35 + d * (8 / 315))))
    c = torch.where(d < 1e-3, 0, cosines)
    ratio = torch.where(d < 1e-3, series, c.acos() / (1 - c * c).sqrt())
    return (away @ a * ratio.to(a).unsqueeze(-2)) @ a.mH  # type: ignore[no-any-return]


def _differentiable(x: Points, y: Points, v: Points, exp: Callable[[Points, Points], Points]) -> Points:
    """V as a function of X and Y: Newton steps with the derivative of exp kept, each right to one order more.

    Along U diag(t) W^H a Jacobi field is, in the moved basis, sin(a) / a times its start: with a = t_j outside of span
    [X, U], and on U K W^H with a = t_i - t_j on the Hermitian part of K, t_i + t_j on the skew one.
    """
    u, t, wh = torch.linalg.svd(v, full_matrices=False)
    w, few = wh.mH, 4 * max(x.shape[-2:]) * torch.finfo(t.dtype).eps
    u = u * (t > few).to(u).unsqueeze(-2)  # where an angle is 0 to rounding its vector need not be normal to X
    start = x.detach() @ w
    cos, sin = t.cos().unsqueeze(-2), t.sin().unsqueeze(-2)
    moved = u * cos - start * (sin * (t > few).unsqueeze(-2))  # U carried along
    basis = wh.mH @ (start * cos + u * sin).mH @ y.detach()
    less, more = (torch.sinc((t.unsqueeze(-1) - s * t.unsqueeze(-2)) / torch.pi) for s in (1, -1))
    alone = torch.sinc(t / torch.pi).unsqueeze(-2)
    for _ in range(ORDER):
        v = v - x @ (x.mH @ v)
        z = exp(x, v)
        rest = y @ basis.mH
        rest = (rest - z @ (z.mH @ rest)) @ w
        k = moved.mH @ rest
        outside = rest - moved @ k
        v = v + (u @ (sym(k) / less + skew(k) / more) + outside / alone) @ wh
    return v - x @ (x.mH @ v)
