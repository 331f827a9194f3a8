"""The nearest matrix of rank r, as a function of a matrix: finite derivatives wherever it is unique.

The singular value decomposition has no derivative where singular values meet. So it is taken without, and what it gives
is the constant start of an iteration of plain torch operations for the two leading subspaces, in which only those
singular values are divided by that are kept, and differences of a kept and a dropped one. Each step is right to one
order more.
Source: Stewart & Sun, Matrix Perturbation Theory (1990), section V.4, on singular subspaces.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .iterations import ORDER
from .lowrank import Decomposition, svd
from .transforms import is_recorded

Points = Inexact[Tensor, "*batch n m"]
Values = Float[Tensor, "*batch k"]


def truncated(a: Points, rank: int, known: Decomposition | None = None) -> Points:
    """sum over i <= rank of s_i u_i v_i^H, differentiable up to ORDER; known: (U, s, V) of A, but for s = 0."""
    u, s, v = known = svd(a) if known is None else known
    if not is_recorded(a):
        return (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank].mH
    p = sides(a, rank, known)[0]
    return p @ (p.mH @ a)


def sides(a: Points, rank: int, known: Decomposition | None = None) -> tuple[Points, Points]:
    """(U, V), orthonormal bases of the leading singular subspaces of A, differentiable up to ORDER as subspaces."""
    u, s, v = svd(a) if known is None else known
    p, q = x, z = u[..., :rank], v[..., :rank]
    if not is_recorded(a):
        return p, q
    left, right, kept, dropped = u[..., rank:], v[..., rank:], s[..., :rank], s[..., rank:]
    for _ in range(ORDER):
        # A Q = P (X^H A Q) and A^H P = Q (Z^H A^H P) for X^H P = I = Z^H Q
        aq, ap = a @ q, a.mH @ p
        off, back = aq - p @ (x.mH @ aq), ap - q @ (z.mH @ ap)
        p, q = (
            p + _solved(off, back, left, right, kept, dropped),
            q + _solved(back, off, right, left, kept, dropped),
        )
    return _orthonormal(p), _orthonormal(q)


def _solved(off: Points, back: Points, left: Points, right: Points, kept: Values, dropped: Values) -> Points:
    """The change of P from both errors: in the dropped directions (s_i e_ij + s_j f_ij) / (s_i^2 - s_j^2), e / s_i in
    those that A has none of."""
    i, j = kept.unsqueeze(-2), dropped.unsqueeze(-1)
    e, f = left.mH @ off, right.mH @ back
    rest = off - left @ e
    return rest / i + left @ ((i * e + j * f) / ((i - j) * (i + j)))


def _orthonormal(a: Points) -> Points:
    """A L^-H with L L^H = A^H A."""
    factor = torch.linalg.cholesky_ex(a.mH @ a).L
    return torch.linalg.solve_triangular(factor.mH, a, upper=True, left=False)  # type: ignore[no-any-return]
