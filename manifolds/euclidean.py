"""The real or complex line, and so every tensor without a constraint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._points import broadcast, sizes
from .base import GeodesicManifold, NearestPointManifold
from .engine import Engine

Points = Inexact[Tensor, "*batch"]


@dataclass(frozen=True)
class Euclidean(NearestPointManifold, GeodesicManifold):
    """Unconstrained numbers: a point is one entry, T_x = R (or C), and every axis is a batch axis.

    R^n is the product of n lines. So `inner` is entry by entry, and an optimizer that keeps one second moment per
    point keeps one per entry, as torch.optim.Adam does. In a product, the entries of a block add up.

    >>> Euclidean().retract(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]))
    tensor([1.5000, 2.5000])
    """

    ndim = 0

    def project(self, x: Points, a: Points) -> Points:
        """a."""
        return broadcast(self, x, a)[1]

    def nearest(self, x: Points) -> Points:
        """x."""
        return x

    def dim(self, shape: Sequence[int]) -> int:
        """The number of entries."""
        return math.prod(shape)

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """0 for each entry; NaN where x is not finite."""
        return (x - x).abs()

    def norm(self, x: Points, v: Points) -> Float[Tensor, "*batch"]:
        """|v|, entry by entry."""
        return broadcast(self, x, v)[1].abs()

    def retract(self, x: Points, v: Points) -> Points:
        """x + v."""
        return x + v

    def transport(self, x: Points, y: Points, v: Points) -> Points:
        """v."""
        return broadcast(self, x, y, v)[2]

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Points:
        """Standard normal entries."""
        return torch.randn(sizes(shape), generator=generator, dtype=dtype, device=device)

    def exp(self, x: Points, v: Points) -> Points:
        """x + v."""
        return x + v

    def log(self, x: Points, y: Points) -> Points:
        """y - x."""
        return y - x

    def _engine(self) -> Engine:
        return _EuclideanEngine(self)


class _EuclideanEngine(Engine):
    def recenter(self, x: Points, y: Points, c: Points, m: Points) -> Points:
        """m."""
        return m
