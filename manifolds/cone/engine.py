"""The engine of positive definite matrices: it keeps the frame W of V, which needs no transport."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from .._points import broadcast, inner
from ..base import Manifold
from ..engine import Isometric
from ..kernels.linalg import sym
from .metric import Metric, Square


class ConeEngine(Isometric):
    def __init__(self, manifold: Manifold, metric: Metric) -> None:
        super().__init__(manifold)
        self.metric = metric

    def coordinates(self, x: Square, a: Square) -> Square:
        """What of A is a frame."""
        return self.metric.frames(broadcast(self.manifold, x, a)[1])

    def frame(self, x: Square, v: Square) -> Square:
        """W of V."""
        return self.metric.frame(*broadcast(self.manifold, x, v))

    def lift(self, x: Square, g: Square) -> Square:
        """The frame of the gradient."""
        return self.metric.pulled(*broadcast(self.manifold, x, g))

    def move(self, x: Square, c: Square) -> Square:
        """A map onto the whole cone: see `Metric.move`."""
        return self.metric.move(*broadcast(self.manifold, x, c))

    def carry(self, x: Square, y: Square, c: Square) -> Square:
        """W."""
        return broadcast(self.manifold, x, y, c)[2]

    def coordinate_inner(self, x: Square, c: Square, d: Square) -> Float[Tensor, "*batch"]:
        """Re tr(C^H D)."""
        _, c, d = broadcast(self.manifold, x, c, d)
        return inner(c, d, 2)

    def recenter(self, x: Square, y: Square, c: Square, m: Square) -> Square:
        """M where the chart is flat."""
        return self.metric.frames(m) if self.metric.is_flat else super().recenter(x, y, c, m)

    def is_long(self, x: Square, c: Square) -> bool:
        """Never where the chart is flat; else where a frame is longer than X sees a unit."""
        return not self.metric.is_flat and bool((inner(c, c, 2) > self.metric.unit(x)).any())

    def polish(self, x: Square) -> Square:
        """(X + X^H) / 2."""
        return sym(x)

    def renormalizes(self, x: Square) -> bool:
        """True: a step begins with a factor, and ends with its square."""
        return True
