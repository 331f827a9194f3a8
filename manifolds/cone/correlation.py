"""The Euclidean metric of the unit triangular factor of a correlation matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.hermitian import cholesky
from ..kernels.linalg import sym
from .flat import Flat
from .metric import Square, diagonal, entries, inside, kept


class UnitCholesky(Flat):
    """The chart is G - I, X = D G G^H D with G triangular of unit diagonal, D = diag(G G^H)^-1/2 = diag of L = D G."""

    def frames(self, a: Square) -> Square:
        return a.tril(-1)

    def chart(self, x: Square) -> Square:
        factor = cholesky(x)
        return (factor / entries(factor).unsqueeze(-1)).tril(-1)

    def point(self, c: Square) -> Square:
        g = c.tril(-1) + torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)
        rows = g * _scale(g).unsqueeze(-1)
        x = rows @ rows.mH
        y = kept(x := x + diagonal(1 - entries(x), x))
        if y is x:
            return x
        scale = entries(y).rsqrt()  # 1, but for those that were lifted
        y = scale.unsqueeze(-1) * y * scale.unsqueeze(-2)
        return y + diagonal(1 - entries(y), y)

    def frame(self, x: Square, v: Square) -> Square:
        factor = cholesky(x)
        a = inside(factor, v)
        d = factor @ (a.tril(-1) + diagonal(entries(a) / 2, a))
        scale = entries(factor).unsqueeze(-1)
        return ((d - entries(d).unsqueeze(-1) / scale * factor) / scale).tril(-1)

    def vector(self, x: Square, w: Square) -> Square:
        factor = cholesky(x)
        m = 2 * sym(entries(factor).unsqueeze(-1) * w.tril(-1) @ factor.mH)
        change = entries(m) / 2
        return m - (change.unsqueeze(-1) + change.unsqueeze(-2)) * x

    def pulled(self, x: Square, g: Square) -> Square:
        factor, g = cholesky(x), sym(g)
        k = g - diagonal(entries(x @ g), x)
        return (2 * entries(factor).unsqueeze(-1) * (k @ factor)).tril(-1)


def _scale(g: Square) -> Tensor:
    """1 / |row|."""
    norms: Tensor = torch.linalg.vector_norm(g, dim=-1)
    return norms.reciprocal()
