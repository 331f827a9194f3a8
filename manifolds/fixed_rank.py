"""Matrices of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._points import broadcast, check_axes, length
from .base import NearestPointManifold, check_ndim, tolerance
from .engine import Engine
from .kernels import lowrank, truncation
from .kernels.linalg import may_look, may_wait, on_accelerator
from .kernels.others import OTHERS
from .kernels.transforms import is_recorded, whole

Points = Inexact[Tensor, "*batch n m"]

PRODUCTS = 9
"""On accelerators, of a step: what is left is rounding where s_(r+1) < s_r / 60, as for |C| < s_r / 8."""


@dataclass(frozen=True)
class FixedRank(NearestPointManifold):
    """{X in R^(n x m) : rank X = r}, complex for complex tensors, with the metric Re tr(U^H V).

    Points and tangent vectors are (..., n, m), dense; for X = U diag(s) V^H, T_X = {U A + B V^H}. `retract` is the
    matrix of rank r nearest to X + V, second order; it and `project` are a few products with 2r + 2 columns. The set is
    not closed: matrices of rank r come as near as one likes to lower rank, and what has a lower one to rounding is
    refused, as a start too. `LowRank` stores the factors, and has rank at most r.
    rank: r, a positive integer.
    Raises ValueError for another rank, for shapes with a side shorter than r, and for matrices of lower rank, where
    their values may be looked at. Derivatives divide by no differences of singular values but those of a kept and a
    dropped one, which are 0 on the set.
    Source: Vandereycken, Low-rank matrix completion by Riemannian optimization (2013).

    >>> x = FixedRank(2).random(5, 4)
    >>> torch.linalg.matrix_rank(x), FixedRank(2).dim((5, 4))
    (tensor(2), 14)
    """

    rank: int

    ndim = 2

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"the rank of FixedRank is a positive integer; got {self.rank!r}.")

    def project(self, x: Points, a: Points) -> Points:
        """U U^H A + A V V^H - U U^H A V V^H."""
        x, a = broadcast(self, x, a)
        return _projected(a, *truncation.sides(x, self.rank, lowrank.svd(x, self.rank)))

    def retract(self, x: Points, v: Points) -> Points:
        """The point nearest to X + V, which is of rank 2r or less. Raises ValueError where s_r is 0 to rounding."""
        x, v = broadcast(self, x, v)
        ahead = x + v
        return truncation.truncated(ahead, self.rank, self._decomposed(ahead, 2 * self.rank))

    def nearest(self, x: Points) -> Points:
        """sum over i <= r of s_i u_i v_i^H. Raises ValueError where s_r is 0 to rounding."""
        return truncation.truncated(x, self.rank, self._decomposed(x))

    def _decomposed(self, x: Points, rank: int | None = None, *, known: bool = False) -> lowrank.Decomposition:
        """(U, s, V), see `lowrank.svd`. Raises ValueError where s_r is 0 to rounding."""
        self.dim(x.shape)
        u, s, v = lowrank.svd(x, rank, known=known)
        if (may_look(x) if known else may_wait(x)) and bool(whole(s[..., self.rank - 1] <= self._least(s)).any()):
            raise ValueError(
                f"a matrix of rank below {self.rank} has no nearest point on {self}; got shape {tuple(x.shape)} with "
                f"one, which needs a smaller rank. {OTHERS}"
            )
        return u, s, v

    def dim(self, shape: Sequence[int]) -> int:
        """r (n + m - r) for each matrix. Raises ValueError where a side is shorter than r."""
        count, (n, m) = check_ndim(self, shape, 2)
        if min(n, m) < self.rank:
            raise ValueError(
                f"{self} holds matrices with sides of {self.rank} or more; got shape {tuple(shape)}. Give a smaller "
                f"rank."
            )
        return count * self.rank * (n + m - self.rank)

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """|X - nearest(X)| / |X|, a relative error, as points are of any size; inf where s_r is 0 to rounding."""
        check_axes(self, x.shape)
        self.dim(x.shape)
        u, s, v = lowrank.svd(x)
        size = length(x, 2)
        off = length(x - truncation.truncated(x, self.rank, (u, s, v)), 2) / torch.where(size == 0, 1, size)
        return torch.where((s[..., self.rank - 1] > self._least(s)) | off.isnan(), off, torch.inf)

    def _engine(self) -> Engine:
        return _FixedRankEngine(self)

    def _least(self, s: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """What a singular value is 0 below."""
        return tolerance(s.dtype) / 16 * s[..., 0]


class _FixedRankEngine(Engine):
    """What are points and tangent vectors is not looked at. On accelerators `lowrank.leading` serves what no graph
    records: the point that is reached is of rank r and as near to the nearest one as (s_(r+1) / s_r)^9."""

    manifold: FixedRank

    def coordinates(self, x: Points, a: Points) -> Points:
        """The projection."""
        x, a = broadcast(self.manifold, x, a)
        return _projected(a, *self._sides(x))

    def lift(self, x: Points, g: Points) -> Points:
        """The projection."""
        return self.coordinates(x, g)

    def move(self, x: Points, c: Points) -> Points:
        """The nearest point to X + C."""
        return self._reached(x + c)[0]

    def carry(self, x: Points, y: Points, c: Points) -> Points:
        """The projection at Y."""
        return self.coordinates(y, c)

    def travel(self, x: Points, c: Points, size: float | Tensor) -> tuple[Points, Points]:
        """As defined, with one decomposition: that of X + size C has the singular vectors of Y."""
        y, u, v = self._reached(x + size * c)
        return y, _projected(c, u, v)

    def _sides(self, x: Points) -> tuple[Points, Points]:
        rank = self.manifold.rank
        if on_accelerator(x) and not is_recorded(x):
            return lowrank.leading(x, rank, 3)
        return truncation.sides(x, rank, lowrank.svd(x, rank, known=True))

    def _reached(self, ahead: Points) -> tuple[Points, Points, Points]:
        """(Y, U, V) of the point nearest to a matrix of rank 2r."""
        rank = self.manifold.rank
        if on_accelerator(ahead) and not is_recorded(ahead):
            u, v = lowrank.leading(ahead, rank, PRODUCTS)
            return u @ (u.mH @ ahead), u, v
        u, _, v = known = self.manifold._decomposed(ahead, 2 * rank, known=True)
        return truncation.truncated(ahead, rank, known), u[..., :rank], v[..., :rank]


def _projected(a: Points, u: Points, v: Points) -> Points:
    """U W + (A V - U W V) V^H with W = U^H A: one product that is of the size of A."""
    top = u.mH @ a
    side = a @ v - u @ (top @ v)
    return torch.cat([u, side], -1) @ torch.cat([top, v.mH], -2)
