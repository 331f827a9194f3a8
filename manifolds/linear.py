"""Linear subspaces of the ambient space: where a geodesic is a straight line."""

from __future__ import annotations

from jaxtyping import Float, Inexact
from torch import Tensor

from ._points import broadcast
from .base import GeodesicManifold, NearestPointManifold
from .engine import Engine

Points = Inexact[Tensor, "..."]


class LinearSpace(NearestPointManifold, GeodesicManifold):
    """A linear subspace with the ambient metric: T_x is the space itself, for every x.

    A subclass defines `ndim`, `dim` and `project`, which does not depend on x.
    """

    def nearest(self, x: Points) -> Points:
        """project(x, x)."""
        return self.project(x, x)

    def retract(self, x: Points, v: Points) -> Points:
        """x + v."""
        x, v = broadcast(self, x, v)
        return x + v

    def transport(self, x: Points, y: Points, v: Points) -> Points:
        """v."""
        return broadcast(self, x, y, v)[2]

    def exp(self, x: Points, v: Points) -> Points:
        """x + v."""
        x, v = broadcast(self, x, v)
        return x + v

    def log(self, x: Points, y: Points) -> Points:
        """y - x."""
        x, y = broadcast(self, x, y)
        return y - x

    def distance(self, x: Points, y: Points) -> Float[Tensor, "*batch"]:
        """|y - x|, one number per point."""
        return self.norm(x, self.log(x, y))

    def _engine(self) -> Engine:
        return _LinearEngine(self)


class _LinearEngine(Engine):
    flat = True

    def recenter(self, x: Points, y: Points, c: Points, m: Points) -> Points:
        """project(y, m): the chart is the same everywhere."""
        return self.manifold.project(y, m)
