"""The Stiefel manifold {X in R^(n x p) : X^T X = I}."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from . import _group
from ._points import broadcast, check_axes, inner, sizes
from .base import NearestPointManifold, check_ndim
from .kernels import chart, orthonormal, steps
from .kernels.cayley import cayley_step
from .kernels.linalg import newton_schulz, orthogonality_error, skew, sym
from .retractions import Metric, Retraction, cayley, exp, polar, qr

Points = Inexact[Tensor, "*batch n p"]


@dataclass(frozen=True)
class Stiefel(NearestPointManifold):
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
            raise ValueError(f"the metric of Stiefel is 'euclidean' or 'canonical'; got {self.metric!r}.")
        _group.check_retraction("Stiefel", self.retraction)

    def project(self, x: Points, a: Points) -> Points:
        """A - X sym(X^H A)."""
        x, a = broadcast(self, x, a)
        if steps.is_wide(x):
            return a - sym(a @ x.mH) @ x
        return _group.project(x, a) if _square(x) else a - x @ sym(x.mH @ a)

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
        return g - x @ (g.mH @ x) if not steps.is_wide(x) else g - (x @ g.mH) @ x

    def inner(self, x: Points, u: Points, v: Points) -> Float[Tensor, "*batch"]:
        """Re tr(U^H V), less Re tr(U^H X X^H V) / 2 for the canonical metric."""
        x, u, v = broadcast(self, x, u, v)
        if self.metric == "euclidean":
            return inner(u, v, 2)
        a, b = (u @ x.mH, v @ x.mH) if steps.is_wide(x) else (x.mH @ u, x.mH @ v)
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
        return _group.transport(x, y, v) if _square(x) else self.project(y, v)

    def coordinates(self, x: Points, a: Points) -> Points:
        """skew(A) for square matrices, else the projection of A."""
        return skew(a) if _square(x) else self.project(x, a)

    def lift(self, x: Points, g: Points) -> Points:
        """For square matrices skew(X^H G), twice that for the canonical metric; else the gradient."""
        if not _square(x):
            return self.gradient(x, g)
        return _group.lift(x, g) * (1 if self.metric == "euclidean" else 2)

    def move(self, x: Points, c: Points) -> Points:
        """X Cayley(C) for square X (X exp(C) for `exp`, the retraction of X C for others), else retract(X, C)."""
        return _group.move(self.retraction, x, c) if _square(x) else self.retract(x, c)

    def carry(self, x: Points, y: Points, c: Points) -> Points:
        """C itself for square matrices, else the transport."""
        return c if _square(x) else self.transport(x, y, c)

    def coordinate_inner(self, x: Points, c: Points, d: Points) -> Float[Tensor, "*batch"]:
        """Re tr(C^H D) for square matrices, half of it for the canonical metric; else the metric."""
        if not _square(x):
            return self.inner(x, c, d)
        return inner(c, d, 2) * (1 if self.metric == "euclidean" else 0.5)

    def recenter(self, x: Points, y: Points, c: Points, m: Points) -> Points:
        """As defined; in closed form for polar, and for Cayley on square matrices."""
        if _square(x):
            return chart.cayley(c, m) if self.retraction in (cayley, polar) else super().recenter(x, y, c, m)
        return chart.polar(x, y, c, m) if self.retraction is polar else super().recenter(x, y, c, m)

    def polish(self, x: Points) -> Points:
        """X (3I - X^H X) / 2."""
        return newton_schulz(x)

    def store(self, x: Points, y: Points, c: Points) -> Points:
        """C itself: the transport of tall and wide matrices is the projection at Y, which `recall` does."""
        return c

    def recall(self, x: Points, stored: Points) -> Points:
        """C itself for square matrices, else the projection of C."""
        return stored if _square(x) else self.project(x, stored)

    def mix(self, x: Points, stored: Points, g: Points, keep: float, add: float) -> tuple[Points, Tensor]:
        """As defined; with one product for square matrices, and where it is as exact three or four for others."""
        canonical = self.metric == "canonical"
        if _square(x):
            return steps.mix_square(x, stored, g, keep, add, canonical)
        return steps.mix_tall(x, stored, g, keep, add, canonical) or super().mix(x, stored, g, keep, add)

    def advance(self, x: Points, c: Points, size: float | Tensor) -> Points:
        """As defined; for short steps by series, where the retraction is polar or, on square matrices, Cayley."""
        y, square = None, _square(x)
        if square and self.retraction in (cayley, polar):
            y = cayley_step(x, c, size)
        elif self.retraction is polar and not square:
            y = steps.polar_step(x, c, size)
        elif self.retraction is exp and not square:
            # torch.matrix_exp is off by up to 100 eps in float32
            y = newton_schulz(super().advance(x, c, size))
        return super().advance(x, c, size) if y is None else y

    def renormalizes(self, x: Points) -> bool:
        """Whether the retraction is polar, qr or exp, and X is not square."""
        return self.retraction in (polar, qr, exp) and not _square(x)


def _square(x: Tensor) -> bool:
    return x.shape[-2] == x.shape[-1]
