"""The oblique manifold: matrices whose columns, or rows, have norm 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Inexact
from torch import Tensor

from ._points import broadcast, check_axes, root
from .base import GeodesicManifold, NearestPointManifold, check_ndim
from .engine import Engine
from .kernels import arcs
from .sphere import RoundEngine

Points = Inexact[Tensor, "*batch n p"]


@dataclass(frozen=True)
class Oblique(NearestPointManifold, GeodesicManifold):
    """Matrices (..., n, p) whose columns have norm 1, with the metric Re tr(U^H V): a product of p spheres.

    A matrix is one point, with one second moment; on `Sphere` each row has its own.
    T_X = {V : Re<x_j, v_j> = 0 for each column j}; `retract` divides the columns of X + V by their norms, second order.
    axis: that of one vector: -2 for unit columns, -1 for unit rows.
    Source: Absil & Gallivan, Joint diagonalization on the oblique manifold for independent component analysis (2006).

    >>> bool(Oblique().contains(torch.eye(3, 2)))
    True
    >>> Oblique(axis=-1).distance(torch.eye(2), -torch.eye(2))  # pi sqrt(2)
    tensor(4.4429)
    """

    axis: Literal[-2, -1] = -2

    ndim = 2
    constant_norm = True

    def __post_init__(self) -> None:
        if self.axis not in (-2, -1) or isinstance(self.axis, bool):
            raise ValueError(f"the axis of Oblique is -2 for unit columns or -1 for unit rows; got {self.axis!r}.")

    def project(self, x: Points, a: Points) -> Points:
        """a_j - Re<x_j, a_j> x_j, vector by vector."""
        x, a = broadcast(self, x, a)
        return arcs.project(x, a, (self.axis,), 1)

    def nearest(self, x: Points) -> Points:
        """x_j / |x_j|. Raises ValueError where one of the vectors is zero."""
        check_axes(self, x.shape)
        return arcs.nearest(self, x, (self.axis,), 1)

    def dim(self, shape: Sequence[int]) -> int:
        """n - 1 for each vector of n entries."""
        n, others = self._sizes(shape)
        return others * (n - 1)

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """2 n - 1 for each vector of n entries."""
        n, others = self._sizes(shape)
        return others * (2 * n - 1)

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """max_j | |x_j| - 1 |."""
        check_axes(self, x.shape)
        return (arcs.size(x, (self.axis,)) - 1).abs().amax((-2, -1))

    def retract(self, x: Points, v: Points) -> Points:
        """(x_j + v_j) / |x_j + v_j|."""
        x, v = broadcast(self, x, v)
        return arcs.normalized(x + v, (self.axis,), 1)

    def exp(self, x: Points, v: Points) -> Points:
        """cos(t_j) x_j + sin(t_j) v_j / t_j with t_j = |v_j|."""
        x, v = broadcast(self, x, v)
        return arcs.exp(x, v, (self.axis,), 1)

    def log(self, x: Points, y: Points) -> Points:
        """The log of the sphere, vector by vector; see `Sphere.log` for y_j = -x_j."""
        x, y = broadcast(self, x, y)
        return arcs.log(x, y, (self.axis,), 1)

    def distance(self, x: Points, y: Points) -> Float[Tensor, "*batch"]:
        """sqrt(sum_j t_j^2) with t_j the angle of x_j and y_j.

        Its derivative by a pair x_j, y_j is 0 where it has none, at y_j = x_j and y_j = -x_j.
        """
        x, y = broadcast(self, x, y)
        return root(arcs.angle(x, y, (self.axis,)).square().sum((-2, -1)))

    def _engine(self) -> Engine:
        return RoundEngine(self, (self.axis,), 1)

    def _sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        """(entries of one vector, number of vectors)."""
        count, point = check_ndim(self, shape, 2)
        return point[self.axis], count * point[-3 - self.axis]
