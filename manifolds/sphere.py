"""The sphere {x in R^n : |x| = r}, real or complex."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Inexact
from torch import Tensor

from ._points import broadcast, check_axes, length
from .base import GeodesicManifold, Manifold, NearestPointManifold, check_ndim
from .engine import Engine
from .kernels import arcs

Points = Inexact[Tensor, "..."]


@dataclass(frozen=True)
class Sphere(NearestPointManifold, GeodesicManifold):
    """Vectors of norm r along the last axis, with the metric of R^n; those of C^n for complex tensors.

    Points and tangent vectors are (..., n); T_x = {v : Re<x, v> = 0}; `retract` is r (x + v) / |x + v|, second order.
    radius: r, a positive number.
    ndim: the number of last axes that make one point: with 2, matrices (..., n, p) of Frobenius norm r.
    Source: Boumal, An Introduction to Optimization on Smooth Manifolds (2023), section 7.2.

    >>> x, y = torch.eye(2)
    >>> Sphere().distance(x, y)  # a quarter of a turn
    tensor(1.5708)
    >>> Sphere(radius=2.0, ndim=2).nearest(torch.ones(2, 2)).norm()
    tensor(2.)
    """

    radius: float = 1.0
    ndim: int = 1

    constant_norm = True

    def __post_init__(self) -> None:
        number = isinstance(self.radius, int | float) and not isinstance(self.radius, bool)
        if not number or not 0 < self.radius < math.inf:
            raise ValueError(
                f"the radius of Sphere is a positive number; got {self.radius!r}. For one that is trained, multiply a "
                f"point of the unit sphere by a parameter."
            )
        if not isinstance(self.ndim, int) or isinstance(self.ndim, bool) or self.ndim < 1:
            raise ValueError(
                f"the ndim of Sphere is the number of axes of one point, 1 for vectors; got {self.ndim!r}."
            )
        object.__setattr__(self, "radius", float(self.radius))

    def project(self, x: Points, a: Points) -> Points:
        """a - Re<x, a> x / r^2."""
        x, a = broadcast(self, x, a)
        return arcs.project(x, a, self._axes, self.radius)

    def nearest(self, x: Points) -> Points:
        """r x / |x|. Raises ValueError for a zero vector, which every point of the sphere is nearest to."""
        check_axes(self, x.shape)
        return arcs.nearest(self, x, self._axes, self.radius)

    def dim(self, shape: Sequence[int]) -> int:
        """n - 1 for each point, n the number of its entries."""
        count, point = check_ndim(self, shape, self.ndim)
        return count * (math.prod(point) - 1)

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """2 n - 1 for each point."""
        count, point = check_ndim(self, shape, self.ndim)
        return count * (2 * math.prod(point) - 1)

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """| |x| / r - 1 |."""
        check_axes(self, x.shape)
        return (length(x, self.ndim) / self.radius - 1).abs()

    def retract(self, x: Points, v: Points) -> Points:
        """r (x + v) / |x + v|."""
        x, v = broadcast(self, x, v)
        return arcs.normalized(x + v, self._axes, self.radius)

    def exp(self, x: Points, v: Points) -> Points:
        """cos(t) x + sin(t) v / t with t = |v| / r."""
        x, v = broadcast(self, x, v)
        return arcs.exp(x, v, self._axes, self.radius)

    def log(self, x: Points, y: Points) -> Points:
        """r t w / |w| with w = project(x, y) and t = atan2(|w| / r, Re<x, y> / r^2), the angle between x and y.

        At y = -x, where every direction is shortest, one of length pi r, and NaN on the two points of the sphere of
        R^1. Smooth at y = x, twice too: for second derivatives of a squared distance there, take that of |log(x, y)|^2.
        """
        x, y = broadcast(self, x, y)
        return arcs.log(x, y, self._axes, self.radius)

    def distance(self, x: Points, y: Points) -> Float[Tensor, "*batch"]:
        """2 r atan2(|x - y|, |x + y|), r times the angle of x and y: exact near 0 and pi, where acos loses half its
        digits.

        Its derivative is 0 where it has none, at y = x and y = -x; see `log` for second derivatives at y = x.
        """
        x, y = broadcast(self, x, y)
        return self.radius * arcs.angle(x, y, self._axes).sum(self._axes)

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-self.ndim, 0))

    def _engine(self) -> Engine:
        return RoundEngine(self, self._axes, self.radius)


class RoundEngine(Engine):
    def __init__(self, manifold: Manifold, axes: tuple[int, ...], radius: float) -> None:
        super().__init__(manifold)
        self.axes, self.radius = axes, radius

    def recenter(self, x: Points, y: Points, c: Points, m: Points) -> Points:
        """project(y, h (m - h Re<y, m> x / r^2)) with h = |x + c| / r, the inverse adjoint of the derivative of
        `retract`."""
        square = self.radius**2
        h = arcs.dot(y, x + c, self.axes) / square
        return self.manifold.project(y, h * (m - h * arcs.dot(y, m, self.axes) / square * x))
