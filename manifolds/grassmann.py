"""The Grassmann manifold: subspaces, each given by any orthonormal basis of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from . import retractions
from ._points import broadcast, check_axes, sizes
from .base import GeodesicManifold, NearestPointManifold, check_ndim
from .engine import Engine
from .kernels import orthonormal, principal, steps
from .kernels.linalg import newton_schulz, orthogonality_error

Points = Inexact[Tensor, "*batch n p"]


@dataclass(frozen=True)
class Grassmann(NearestPointManifold, GeodesicManifold):
    """Subspaces of dimension p of R^n, or of C^n: the span of the columns of X, (..., n, p) with X^H X = I; for n < p
    that of the rows, X X^H = I.

    T_X = {V : X^H V = 0}, the horizontal vectors, with the metric Re tr(U^H V). X and X Q are one point for any
    orthogonal or unitary Q: exp, retract and transport of X Q along V Q give the ones of X along V, times Q, and
    distances are those of the spans. `retract` is the polar factor of X + V.
    Source: Edelman, Arias & Smith, The geometry of algorithms with orthogonality constraints (1998), section 2.5;
    Bendokat, Zimmermann & Absil, A Grassmann manifold handbook (2024).

    >>> x = torch.eye(4, 2)
    >>> turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    >>> bool(Grassmann().distance(x, x @ turn) < 1e-6)
    True
    >>> Grassmann().distance(x, torch.eye(4).flip(1)[:, :2])  # two right angles: pi / sqrt(2)
    tensor(2.2214)
    """

    ndim = 2
    constant_norm = True
    is_quotient = True

    def project(self, x: Points, a: Points) -> Points:
        """A - X X^H A."""
        x, a = broadcast(self, x, a)
        return a - (a @ x.mH) @ x if _is_wide(x) else a - x @ (x.mH @ a)

    def nearest(self, x: Points) -> Points:
        """The polar factor W V^H of X = W S V^H. Raises ValueError for deficient rank, NaN or Inf."""
        check_axes(self, x.shape)
        return orthonormal.polar_factor(x)

    def dim(self, shape: Sequence[int]) -> int:
        """p (n - p) for each subspace, p the smaller side."""
        count, sides = check_ndim("Grassmann", shape, 2)
        return count * min(sides) * (max(sides) - min(sides))

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Points:
        """A uniform (Haar) random basis, and so a uniform subspace."""
        self.dim(shape := sizes(shape))
        return orthonormal.haar(shape, generator, dtype, device)

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """max |X^H X - I|; max |X X^H - I| for n < p."""
        check_axes(self, x.shape)
        return orthogonality_error(x)

    def retract(self, x: Points, v: Points) -> Points:
        """The polar factor of X + V."""
        return retractions.polar(*broadcast(self, x, v))

    def exp(self, x: Points, v: Points) -> Points:
        """X W cos(S) W^H + U sin(S) W^H, with V = U S W^H."""
        x, v = broadcast(self, x, v)
        return retractions.exp(x, self.project(x, v), metric="canonical")

    def log(self, x: Points, y: Points) -> Points:
        """U diag(t) W^H, with the principal angles t between the spans, in [0, pi/2], and their principal vectors.

        exp(X, log(X, Y)) has the span of Y, and is that basis of it that is nearest to X. Where an angle is pi/2 and
        several are shortest, one of them, and no derivatives.
        """
        x, y = broadcast(self, x, y)
        if _is_wide(x):
            return principal.logarithm(x.mH, y.mH, self.exp).mH
        return principal.logarithm(x, y, self.exp)

    def _engine(self) -> Engine:
        return _GrassmannEngine(self)


class _GrassmannEngine(Engine):
    """Coordinates are the tangent vector; what is kept of one is projected when it is recalled."""

    def polish(self, x: Points) -> Points:
        """X (3I - X^H X) / 2, another basis of the same subspace to rounding."""
        return newton_schulz(x)

    def store(self, x: Points, y: Points, c: Points) -> Points:
        """C itself: the transport is the projection at Y."""
        return c

    def recall(self, x: Points, stored: Points) -> Points:
        """The projection of C."""
        return self.manifold.project(x, stored)

    def mix(self, x: Points, stored: Points, g: Points, keep: float, add: float) -> tuple[Points, Tensor]:
        """As defined, with three products or four."""
        return steps.mix_horizontal(x, stored, g, keep, add)

    def advance(self, x: Points, c: Points, size: float | Tensor) -> Points:
        """As defined; for short steps by series."""
        y = steps.polar_step(x, c, size)
        return super().advance(x, c, size) if y is None else y

    def renormalizes(self, x: Points) -> bool:
        return True


def _is_wide(x: Tensor) -> bool:
    return x.shape[-2] < x.shape[-1]
