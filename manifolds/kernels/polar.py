"""Nearest points as functions of their matrix: finite derivatives wherever the nearest point is unique.

The singular value decomposition has none where singular values meet, as at every rotation. So it is taken without, and
what it gives is the constant start of an iteration of plain torch operations, the factor with a Lyapunov equation
solved in the singular basis. Each step is right to one order more in dA, so that derivatives up to ORDER, in every
mode of differentiation, are those of the nearest point: dQ = Q Omega + (I - Q Q^H) dA P^-1 with P = Q^H A and
Omega P + P Omega = Q^H dA - dA^H Q.
Source: Higham, Functions of Matrices (2008), chapter 8, on the polar decomposition.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .iterations import ORDER
from .transforms import is_recorded

Values = Float[Tensor, "*batch p"]
Square = Inexact[Tensor, "*batch p p"]


def factor(
    a: Inexact[Tensor, "*batch n p"],
    w: Inexact[Tensor, "*batch n p"],
    p: Values,
    vh: Square,
    mend: Callable[[Tensor], Tensor] | None = None,
) -> Inexact[Tensor, "*batch n p"]:
    """W V^H, differentiable as a function of A, for n >= p, where W^H A V has the Hermitian part diag(p).

    Two of the p have a positive sum; all are positive where n > p. mend: for SU(n), what divides a unitary matrix by
    the n-th root of its determinant; Omega is traceless then.
    """
    if not is_recorded(a):
        return w @ vh
    a, x = a @ vh.mH, w
    for _ in range(ORDER):
        m = x.mH @ a
        omega = _omega(p, m - m.mH, traceless=mend is not None)
        y = x + x @ omega
        if x.shape[-2] > x.shape[-1]:
            y = y + (a - x @ m) / p.unsqueeze(-2)
        x = 1.5 * y - 0.5 * (y @ (y.mH @ y))
        if mend is not None:
            x = mend(x @ vh) @ vh.mH
    return x @ vh


def _omega(p: Values, c: Square, traceless: bool) -> Square:
    """The skew Omega with Omega P + P Omega = C for P = diag(p) and skew C; traceless: up to a multiple of i I."""
    sums = p.unsqueeze(-1) + p.unsqueeze(-2)
    one = torch.eye(p.shape[-1], dtype=torch.bool, device=p.device)
    if not c.is_complex():  # its diagonal is 0, where the last sum may be
        return c / torch.where(one, 1, sums)
    if not traceless:
        return c / sums
    diagonal = 1j * _diagonal(p, c.diagonal(dim1=-2, dim2=-1).imag)
    return torch.where(one, diagonal.unsqueeze(-1), c / torch.where(one, 1, sums))


def _diagonal(p: Values, c: Values) -> Values:
    """The o that sum to 0 with 2 p_i o_i = c_i - mu for some mu. Only the last p may be 0 or negative."""
    first, last = p[..., :-1], p[..., -1:]
    weights = torch.cat([last / first, torch.ones_like(last)], -1)  # 1 / p_i, times p_n
    mu = (weights * c).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    o = (c[..., :-1] - mu) / (2 * first)
    return torch.cat([o, -o.sum(-1, keepdim=True)], -1)
