"""The interior of Birkhoff's polytope {X : X_ij > 0, rows and columns sum to one}."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ._points import broadcast, check_axes, check_real, sizes
from .base import Manifold, check_ndim
from .engine import Engine, Isometric
from .kernels import sinkhorn

Square = Float[Tensor, "*batch n n"]


@dataclass(frozen=True)
class DoublyStochastic(Manifold):
    """Positive n x n matrices whose rows and columns sum to one, with the Fisher metric sum_ij U_ij V_ij / X_ij.

    Points and tangent vectors are (..., n, n), real; T_X = {V : rows and columns sum to zero}. The boundary, where an
    entry is 0, is at a finite distance: a step that would leave the set is reflected there. The set is open: a value
    outside is refused, one on the boundary too, as the identity and every other permutation.
    Raises ValueError for complex tensors.
    Source: Douik & Hassibi, Manifold optimization over the set of doubly stochastic matrices (2019), section IV, with
    another retraction, as X o exp(V / X) overflows near the boundary.

    >>> w = DoublyStochastic().random(4, 4)
    >>> bool((w.sum(0) - 1).abs().max() < 1e-6), bool((w.sum(1) - 1).abs().max() < 1e-6)
    (True, True)
    """

    ndim = 2

    def project(self, x: Square, a: Square) -> Square:
        """A less the means of its rows and of its columns, plus the mean of all."""
        a = broadcast(self, x, a)[1]
        a = a - a.mean(-1, keepdim=True)
        return a - a.mean(-2, keepdim=True)

    def residual(self, x: Square) -> Float[Tensor, "*batch"]:
        """max |sum - 1| over rows and columns; inf where an entry is not positive."""
        check_real(self, x.dtype)
        check_axes(self, x.shape)
        rows, columns = ((x.sum(axis) - 1).abs().amax(-1) for axis in (-1, -2))
        off = torch.maximum(rows, columns)
        return torch.where((x > 0).all(-1).all(-1) | off.isnan(), off, torch.inf)

    def dim(self, shape: Sequence[int]) -> int:
        """(n - 1)^2 for each matrix. Raises ValueError where it is not square."""
        count, (n, m) = check_ndim(self, shape, 2)
        if n != m:
            raise ValueError(
                f"{self} holds square matrices; got shape {tuple(shape)}. For rows that sum to one take Simplex; for "
                f"square blocks a product and a layout."
            )
        return count * (n - 1) ** 2

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Square:
        """exp of a Gaussian matrix, scaled."""
        check_real(self, dtype)
        self.dim(shape := sizes(shape))
        return sinkhorn.scaled(torch.randn(shape, generator=generator, dtype=dtype, device=device).exp())

    def inner(self, x: Square, u: Square, v: Square) -> Float[Tensor, "*batch"]:
        """sum U V / X."""
        x, u, v = broadcast(self, x, u, v)
        s = x.sqrt()  # the product of two small numbers would underflow before it is divided
        return ((u / s) * (v / s)).sum((-2, -1))

    def gradient(self, x: Square, g: Square) -> Square:
        """X o (G - p 1^T - 1 q^T) with p + X q = (X o G) 1 and X^T p + q = (X o G)^T 1."""
        x, g = broadcast(self, x, g)
        return _without_sums(x, x, x * g)

    def retract(self, x: Square, v: Square) -> Square:
        """X + V + V o V / (4 X), scaled by Sinkhorn and Newton: reaches every point, and is first order."""
        x, v = broadcast(self, x, v)
        s = x.sqrt()
        return _squared(s + v / (2 * s))

    def transport(self, x: Square, y: Square, v: Square) -> Square:
        """sqrt(Y) o W, W the nearest to V / sqrt(X) of the frames at Y: no vector gets longer."""
        x, y, v = broadcast(self, x, y, v)
        t = y.sqrt()
        return t * _without_sums(y, t, v / x.sqrt())

    def _engine(self) -> Engine:
        return _Roots(self)


class _Roots(Isometric):
    """Coordinates are frames W = V / sqrt(X), whose Euclidean inner product is the metric."""

    def coordinates(self, x: Square, a: Square) -> Square:
        x, a = broadcast(self.manifold, x, a)
        return _without_sums(x, x.sqrt(), a)

    def frame(self, x: Square, v: Square) -> Square:
        """V / sqrt(X)."""
        x, v = broadcast(self.manifold, x, v)
        return v / x.sqrt()

    def lift(self, x: Square, g: Square) -> Square:
        x, g = broadcast(self.manifold, x, g)
        s = x.sqrt()
        return _without_sums(x, s, s * g)

    def move(self, x: Square, c: Square) -> Square:
        """(sqrt X + W / 2)^2, entry by entry, scaled."""
        x, c = broadcast(self.manifold, x, c)
        return _squared(x.sqrt() + c / 2)

    def carry(self, x: Square, y: Square, c: Square) -> Square:
        x, y, c = broadcast(self.manifold, x, y, c)
        return _without_sums(y, y.sqrt(), c)

    def coordinate_inner(self, x: Square, c: Square, d: Square) -> Float[Tensor, "*batch"]:
        _, c, d = broadcast(self.manifold, x, c, d)
        return (c * d).sum((-2, -1))

    def is_long(self, x: Square, c: Square) -> bool:
        """|w| > 1 in a row, half a radian on the sphere of radius 2 whose point 2 sqrt(x) is."""
        return bool((torch.linalg.vector_norm(c, dim=-1) > 1).any())

    def polish(self, x: Square) -> Square:
        return sinkhorn.scaled(x)

    def renormalizes(self, x: Square) -> bool:
        """True: a step ends with a scaling."""
        return True


def _without_sums(x: Square, s: Square, a: Square) -> Square:
    """A - S o (p 1^T + 1 q^T) such that rows and columns of (X / S) o that sum to zero."""
    factor = sinkhorn.factored(x)
    for _ in range(2):  # once more, for the digits that a nearly singular system loses
        weighted = x / s * a
        p, q = sinkhorn.solved(x, factor, weighted.sum(-1, keepdim=True), weighted.sum(-2).unsqueeze(-1))
        a = a - s * (p + q.mT)
    return a


def _squared(s: Square) -> Square:
    """S o S, scaled. What it adds, less than rounding, keeps an entry that met 0 above it."""
    return sinkhorn.scaled(s * s + torch.finfo(s.dtype).tiny) + torch.finfo(s.dtype).tiny
