"""Matrices of rank at most r."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Inexact
from torch import Tensor

from ..base import check_ndim
from ..euclidean import Euclidean
from ..stiefel import Stiefel
from ._svd import columns
from .base import Composition, Parts

Matrices = Inexact[Tensor, "*batch n m"]


@dataclass(frozen=True)
class LowRank(Composition):
    """U diag(s) V^H with orthonormal U (n x r) and V (m x r) and free s, of either sign: rank at most r.

    Nothing is divided by s or by differences of singular values: equal ones, and zeros, are points like others.
    rank: r, at most min(n, m).
    Source: Lezcano-Casado, Trivializations for gradient-based optimization on manifolds (2019), section 4.

    >>> w = LowRank(2).random(6, 5)
    >>> int(torch.linalg.matrix_rank(w))
    2
    """

    rank: int

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"rank of LowRank is a number of columns, 1 or more; got {self.rank!r}.")

    def parts(self, shape: Sequence[int]) -> Parts:
        """u: Stiefel (n, r), s: Euclidean (r,), v: Stiefel (m, r). Raises ValueError for other shapes."""
        _, (n, m) = check_ndim(self, shape, 2)
        batch, r = tuple(shape)[:-2], self.rank
        if r > min(n, m):
            raise ValueError(f"{self} needs min(n, m) >= {r}; got shape {tuple(shape)}. Take a smaller rank.")
        return {
            "u": (Stiefel(), (*batch, n, r)),
            "s": (Euclidean(), (*batch, r)),
            "v": (Stiefel(), (*batch, m, r)),
        }

    def compose(self, *, u: Matrices, s: Tensor, v: Matrices) -> Matrices:  # type: ignore[override]
        """U diag(s) V^H."""
        return (u * s.unsqueeze(-2)) @ v.mH

    def decompose(self, x: Matrices) -> dict[str, Tensor]:
        """The r largest singular values and their vectors: of the nearest matrix of rank r (Eckart & Young)."""
        u, s, v = columns(x)
        r = self.rank
        return {"u": u[..., :r], "s": s[..., :r].to(x.dtype), "v": v[..., :r]}
