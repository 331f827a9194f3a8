"""Correlation matrices of full rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._mean import weighted
from ._points import broadcast, check_axes, sizes
from .base import GeodesicManifold, check_ndim
from .cone.correlation import UnitCholesky
from .cone.engine import ConeEngine
from .engine import Engine
from .kernels.linalg import sym
from .oblique import Oblique

Square = Inexact[Tensor, "*batch n n"]
METRIC = UnitCholesky()


@dataclass(frozen=True)
class Correlation(GeodesicManifold):
    """{X = X^H positive definite with unit diagonal}; points and tangent vectors are (..., n, n), T_X = {V = V^H with
    zero diagonal}. The set is open: a value outside is refused, and no step leaves it.

    The metric is that of the triangular G with unit diagonal, X = D G G^H D for a diagonal D: a straight space, where
    exp, log, distance and mean are closed forms, and singular matrices are infinitely far. It depends on the order of
    the variables. Derivatives are finite where eigenvalues meet.
    rank: None for that. With a number r the points are factors Y (..., n, r) with rows of norm 1, as on
    `Oblique(axis=-1)`: Y Y^H are the correlation matrices of rank r at most, singular ones too.
    Source: Thanwerdas & Pennec, Theoretically and computationally convenient geometries on full-rank correlation
    matrices (2022), the Euclidean-Cholesky metric.

    >>> x = Correlation().random(3, 3)
    >>> torch.allclose(x.diagonal(), torch.ones(3))
    True
    """

    rank: int | None = None

    ndim = 2

    def __new__(cls, rank: int | None = None) -> Correlation:
        return object.__new__(cls) if rank is None else CorrelationFactors(rank=rank)  # type: ignore[return-value]

    def project(self, x: Square, a: Square) -> Square:
        """(A + A^H) / 2 less its diagonal."""
        a = sym(broadcast(self, x, a)[1])
        return a - a.diagonal(dim1=-2, dim2=-1).diag_embed()

    def residual(self, x: Square) -> Float[Tensor, "*batch"]:
        """max(|X_ij - conj X_ji|, |X_ii - 1|); inf where X is not positive definite."""
        check_axes(self, x.shape)
        skewness = (x - x.mH).abs().amax((-2, -1))
        off = torch.maximum(skewness, (x.diagonal(dim1=-2, dim2=-1) - 1).abs().amax(-1))
        definite = torch.linalg.cholesky_ex(x.detach()).info == 0
        return torch.where(definite | off.isnan(), off, torch.inf)

    def dim(self, shape: Sequence[int]) -> int:
        """n (n - 1) / 2 for each matrix. Raises ValueError where it is not square."""
        count, (n, m) = check_ndim("Correlation", shape, 2)
        if n != m:
            raise ValueError(
                f"Correlation holds square matrices; got shape {tuple(shape)}. Cut the tensor into square blocks with "
                f"a product and a layout; n x r factors of such matrices are points of Correlation(rank=r)."
            )
        return count * (n * (n - 1) // 2)

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Square:
        """The correlation of G G^H for a triangular Gaussian G of variance 1/n with unit diagonal."""
        self.dim(shape := sizes(shape))
        gaussian = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return METRIC.point(gaussian.tril(-1) / math.sqrt(shape[-1]))

    def inner(self, x: Square, u: Square, v: Square) -> Float[Tensor, "*batch"]:
        """Re tr(W(U)^H W(V)), W the change of G."""
        return METRIC.inner(*broadcast(self, x, u, v))

    def gradient(self, x: Square, g: Square) -> Square:
        """V with W(V) the gradient by G."""
        return METRIC.gradient(*broadcast(self, x, g))

    def retract(self, x: Square, v: Square) -> Square:
        """exp."""
        return METRIC.exp(*broadcast(self, x, v))

    def transport(self, x: Square, y: Square, v: Square) -> Square:
        """V of the same W at Y: parallel, an isometry."""
        x, y, v = broadcast(self, x, y, v)
        return METRIC.vector(y, METRIC.frame(x, v))

    def exp(self, x: Square, v: Square) -> Square:
        """The point of G(X) + W(V)."""
        return METRIC.exp(*broadcast(self, x, v))

    def log(self, x: Square, y: Square) -> Square:
        """V with W(V) = G(Y) - G(X)."""
        return METRIC.log(*broadcast(self, x, y))

    def distance(self, x: Square, y: Square) -> Float[Tensor, "*batch"]:
        """|G(X) - G(Y)|. Derivative 0 at Y = X."""
        return METRIC.distance(*broadcast(self, x, y))

    def mean(self, x: Square, weights: Float[Tensor, "..."] | None = None) -> Square:
        """The point of sum w_i G(X_i), over the last batch axis, see `GeodesicManifold.mean`."""
        return METRIC.mean(*weighted(self, x, weights))

    def _engine(self) -> Engine:
        return CorrelationEngine(self, METRIC)


class CorrelationEngine(ConeEngine):
    def polish(self, x: Square) -> Square:
        """(X + X^H) / 2 with its diagonal divided out."""
        x = sym(x)
        scale = x.diagonal(dim1=-2, dim2=-1).rsqrt()
        return scale.unsqueeze(-1) * x * scale.unsqueeze(-2)


@dataclass(frozen=True)
class CorrelationFactors(Oblique):
    """`Correlation(rank=r)`: Y (..., n, r) with rows of norm 1. Y Q gives the same Y Y^H for each orthogonal Q."""

    axis: Literal[-2, -1] = -1
    rank: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"rank of Correlation is a number of columns, 1 or more, or None; got {self.rank!r}.")

    def __repr__(self) -> str:
        return f"Correlation(rank={self.rank})"

    def dim(self, shape: Sequence[int]) -> int:
        """n (r - 1). Raises ValueError where the matrices do not have r columns."""
        _, (_, columns) = check_ndim(self, shape, 2)
        if columns != self.rank:
            raise ValueError(f"points of {self} have {self.rank} columns, rows of norm 1; got shape {tuple(shape)}.")
        return super().dim(shape)
