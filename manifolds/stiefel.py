"""The Stiefel manifold {X in R^(n x p) : X^T X = I}."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from . import _group, _tall
from ._points import broadcast, check_axes, inner, sizes
from .base import GeodesicManifold, NearestPointManifold, check_ndim
from .engine import Engine
from .kernels import orthonormal
from .kernels.linalg import orthogonality_error, sym
from .retractions import Metric, Retraction, exp, polar

Points = Inexact[Tensor, "*batch n p"]


@dataclass(frozen=True)
class Stiefel(NearestPointManifold, GeodesicManifold):
    """Matrices (..., n, p) with orthonormal columns, X^H X = I; for n < p with orthonormal rows, X X^H = I.

    T_X = {V : X^H V + V^H X = 0} (for n < p the same of the transposes). Complex tensors give the complex Stiefel
    manifold; n = p gives the orthogonal or unitary group.

    metric: "euclidean", Re tr(U^H V), or "canonical", Re tr(U^H (I - X X^H / 2) V).
    retraction: a function (x, v) -> y; `retractions.exp` follows the geodesic of the metric. Engines keep X Omega on
    square blocks as the skew Omega, and there move by Cayley in place of polar: second order too, and one solve.
    Source: Edelman, Arias & Smith, The geometry of algorithms with orthogonality constraints (1998), section 2.

    >>> x = Stiefel().random(5, 3)
    >>> torch.allclose(x.T @ x, torch.eye(3), atol=1e-6)
    True
    >>> Stiefel(metric="canonical") ** 2
    Stiefel(metric='canonical')**2
    """

    metric: Metric = "euclidean"
    retraction: Retraction = polar

    ndim = 2
    constant_norm = True

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            sizes = " Write Stiefel(): sizes are those of the tensor." if isinstance(self.metric, int) else ""
            raise ValueError(f"the metric of Stiefel is 'euclidean' or 'canonical'; got {self.metric!r}.{sizes}")
        _group.check_retraction("Stiefel", self.retraction)

    def project(self, x: Points, a: Points) -> Points:
        """A - X sym(X^H A)."""
        x, a = broadcast(self, x, a)
        if _tall.is_wide(x):
            return a - sym(a @ x.mH) @ x
        return _group.project(x, a) if _tall.is_square(x) else a - x @ sym(x.mH @ a)

    def nearest(self, x: Points) -> Points:
        """The polar factor W V^H of X = W S V^H. Raises ValueError for deficient rank, NaN or Inf."""
        check_axes(self, x.shape)
        return orthonormal.polar_factor(x)

    def dim(self, shape: Sequence[int]) -> int:
        """n p - p (p + 1) / 2 for each matrix, p the smaller side."""
        count, sides = check_ndim("Stiefel", shape, 2)
        n, p = max(sides), min(sides)
        return count * (n * p - p * (p + 1) // 2)

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """2 n p - p^2 for each matrix, p the smaller side."""
        count, sides = check_ndim("Stiefel", shape, 2)
        n, p = max(sides), min(sides)
        return count * (2 * n * p - p**2)

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Points:
        """A uniform (Haar) random point."""
        self.dim(shape := sizes(shape))
        return orthonormal.haar(shape, generator, dtype, device)

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """max |X^H X - I|; max |X X^H - I| for n < p."""
        check_axes(self, x.shape)
        return orthogonality_error(x)

    def gradient(self, x: Points, g: Points) -> Points:
        """G - X sym(X^H G) for the Euclidean metric, G - X G^H X for the canonical one."""
        if self.metric == "euclidean":
            return self.project(x, g)
        x, g = broadcast(self, x, g)
        return g - x @ (g.mH @ x) if not _tall.is_wide(x) else g - (x @ g.mH) @ x

    def inner(self, x: Points, u: Points, v: Points) -> Float[Tensor, "*batch"]:
        """Re tr(U^H V), less Re tr(U^H X X^H V) / 2 for the canonical metric."""
        x, u, v = broadcast(self, x, u, v)
        if self.metric == "euclidean":
            return inner(u, v, 2)
        a, b = (u @ x.mH, v @ x.mH) if _tall.is_wide(x) else (x.mH @ u, x.mH @ v)
        return inner(u, v, 2) - inner(a, b, 2) / 2

    def retract(self, x: Points, v: Points) -> Points:
        """retraction(X, V)."""
        x, v = broadcast(self, x, v)
        if self.retraction is exp:
            return exp(x, v, metric=self.metric)
        return self.retraction(x, v)

    def transport(self, x: Points, y: Points, v: Points) -> Points:
        """The projection of V at Y; for square matrices Y X^H V, an isometry."""
        x, y, v = broadcast(self, x, y, v)
        return _group.transport(x, y, v) if _tall.is_square(x) else self.project(y, v)

    def exp(self, x: Points, v: Points) -> Points:
        """The geodesic of the metric from X with velocity V: `retractions.exp`; X exp(X^H V) if square."""
        return exp(*broadcast(self, x, v), metric=self.metric)

    def log(self, x: Points, y: Points) -> Points:
        """V with exp(X, V) = Y: the shortest one where |V| is below the injectivity radius.

        That is pi for the Euclidean metric, 0.89 pi for the canonical one of real matrices, at most pi / sqrt(2) of
        complex ones; beyond, V may be another geodesic to Y. By Newton's method, with a matrix of dim^2 numbers for
        each pair, dim <= p (3p - 1) / 2. Square matrices: as `Orthogonal.log`, all angles up to pi.
        Raises ValueError where it does not settle, or no path joins square X and Y; NaN where values cannot be looked
        at.
        """
        x, y = broadcast(self, x, y)
        return _tall.log(self, x, y, self.metric)

    def distance(self, x: Points, y: Points) -> Float[Tensor, "*batch"]:
        """|log(X, Y)|; for square matrices that of `Orthogonal`, over sqrt(2) for the canonical metric."""
        x, y = broadcast(self, x, y)
        if not _tall.is_square(x):
            return self.norm(x, self.log(x, y))
        return _group.distance(x, y) / (2**0.5 if self.metric == "canonical" else 1)

    def _engine(self) -> Engine:
        return _tall.StiefelEngine(self, self.metric, self.retraction)
