"""The positive numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._points import broadcast, sizes
from .base import GeodesicManifold
from .engine import Engine, Isometric

Points = Inexact[Tensor, "*batch"]


@dataclass(frozen=True)
class Positive(GeodesicManifold):
    """{x > 0} with the metric u v / x^2, that of log x: a point is one entry, and every axis is a batch axis.

    Steps are relative: one learning rate serves entries of any size, and zero is infinitely far. The set is open: a
    value that is not positive is refused. Positive numbers in complex tensors have no imaginary part.
    It is `PositiveDefinite` of 1 x 1 matrices, under the first three of its metrics.
    Source: Bhatia, Positive Definite Matrices (2007), chapter 6, of n = 1.

    >>> Positive().distance(torch.tensor(1.0), torch.tensor(torch.e))
    tensor(1.)
    """

    ndim = 0

    def project(self, x: Points, a: Points) -> Points:
        """Re a."""
        return _real(broadcast(self, x, a)[1])

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """0 for each positive entry, |Im x| / |x| for complex ones; inf for others, NaN for NaN."""
        off = (x - x).abs()
        if x.is_complex():
            off = off + x.imag.abs() / torch.where(x == 0, 1, x.abs())
        positive = (x.real if x.is_complex() else x) > 0
        return torch.where(positive | off.isnan(), off, torch.inf)

    def dim(self, shape: Sequence[int]) -> int:
        """The number of entries."""
        return math.prod(shape)

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """The same."""
        return math.prod(shape)

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Points:
        """exp of a standard normal number."""
        gaussian = torch.randn(sizes(shape), generator=generator, dtype=dtype, device=device)
        return (_real(gaussian) * math.sqrt(2)).exp() if gaussian.is_complex() else gaussian.exp()

    def inner(self, x: Points, u: Points, v: Points) -> Float[Tensor, "*batch"]:
        """u v / x^2."""
        x, u, v = broadcast(self, x, u, v)
        product = (u / x) * (v / x)
        return product.real if product.is_complex() else product

    def norm(self, x: Points, v: Points) -> Float[Tensor, "*batch"]:
        """|v| / x."""
        x, v = broadcast(self, x, v)
        return (v / x).abs()

    def gradient(self, x: Points, g: Points) -> Points:
        """x^2 Re g."""
        x, g = broadcast(self, x, g)
        return x * _real(g) * x

    def retract(self, x: Points, v: Points) -> Points:
        """exp."""
        return self.exp(x, v)

    def transport(self, x: Points, y: Points, v: Points) -> Points:
        """y v / x, parallel."""
        x, y, v = broadcast(self, x, y, v)
        return y * (v / x)

    def exp(self, x: Points, v: Points) -> Points:
        """x exp(v / x), or the least normal number where that underflows."""
        x, v = broadcast(self, x, v)
        return _kept(x * (v / x).exp())

    def log(self, x: Points, y: Points) -> Points:
        """x log(y / x)."""
        x, y = broadcast(self, x, y)
        return x * (y / x).log()

    def distance(self, x: Points, y: Points) -> Float[Tensor, "*batch"]:
        """|log(y / x)|."""
        x, y = broadcast(self, x, y)
        return (y / x).log().abs()

    def _engine(self) -> Engine:
        return RelativeEngine(self)


class RelativeEngine(Isometric):
    """It keeps w = v / x, which needs no transport."""

    def coordinates(self, x: Points, a: Points) -> Points:
        return self.manifold.project(x, a)

    def frame(self, x: Points, v: Points) -> Points:
        """v / x."""
        x, v = broadcast(self.manifold, x, v)
        return v / x

    def lift(self, x: Points, g: Points) -> Points:
        """x g."""
        x, g = broadcast(self.manifold, x, g)
        return x * _real(g)

    def move(self, x: Points, c: Points) -> Points:
        """x exp(w)."""
        x, c = broadcast(self.manifold, x, c)
        return _kept(x * c.exp())

    def carry(self, x: Points, y: Points, c: Points) -> Points:
        """w."""
        return broadcast(self.manifold, x, y, c)[2]

    def coordinate_inner(self, x: Points, c: Points, d: Points) -> Float[Tensor, "*batch"]:
        """c d."""
        _, c, d = broadcast(self.manifold, x, c, d)
        return (c * d).real if c.is_complex() else c * d

    def recenter(self, x: Points, y: Points, c: Points, m: Points) -> Points:
        """m: the chart is log x, and what is added to it."""
        return m


def _kept(y: Points) -> Points:
    """y, no less than the least normal number of its dtype."""
    least = torch.finfo(y.dtype).tiny
    return torch.complex(y.real.clamp_min(least), y.imag) if y.is_complex() else y.clamp_min(least)


def _real(a: Points) -> Points:
    """Re a, in the dtype of a."""
    return torch.complex(a.real, torch.zeros_like(a.real)) if a.is_complex() else a
