"""Hyperbolic space of constant curvature on one sheet of a hyperboloid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ._hyperbolic import asinhc, check_curvature
from ._points import broadcast, check_axes, check_real, sizes
from .base import GeodesicManifold, check_ndim
from .kernels import arcs

Points = Float[Tensor, "*batch n"]
Numbers = Float[Tensor, "*batch 1"]
AXIS = (-1,)


@dataclass(frozen=True)
class Hyperboloid(GeodesicManifold):
    """{x in R^(n + 1) : <x, x> = -R^2, x_0 > 0} for curvature -1 / R^2, with the Minkowski product
    <u, v> = -u_0 v_0 + u_1 v_1 + ... + u_n v_n, which is positive on T_x = {v : <x, v> = 0}.

    Points and tangent vectors are (..., n + 1), real; the first entry is the timelike one. x -> R x_s / (R + x_0), of
    the other entries x_s, is an isometry to `PoincareBall`. No acosh, no clamping.
    curvature: a negative number.
    Raises ValueError for another curvature, and for complex tensors.
    Source: Nickel & Kiela, Learning continuous hierarchies in the Lorentz model (2018); Ratcliffe, Foundations of
    Hyperbolic Manifolds (2019), chapter 3.

    >>> x = torch.tensor([1.25, 0.75])
    >>> Hyperboloid().distance(x, torch.tensor([1.0, 0.0]))  # log 2
    tensor(0.6931)
    """

    curvature: float = -1.0

    ndim = 1

    def __post_init__(self) -> None:
        check_curvature(self, self.curvature)

    def project(self, x: Points, a: Points) -> Points:
        """a - <x, a> J x / |x|^2 with J = diag(-1, 1, ..., 1), nearest in the norm of R^(n + 1)."""
        x, a = broadcast(self, x, a)
        jx = _flipped(x)
        unit = jx / arcs.size(x, AXIS)
        return a - arcs.dot(unit, a, AXIS) * unit

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """|x_0 - (R^2 + |x_s|^2)^1/2| / |x|, a relative error, as points are of any size; inf for x_0 <= 0."""
        check_real(self, x.dtype)
        check_axes(self, x.shape)
        off = (x[..., :1] - self._time(x[..., 1:])).abs() / arcs.size(x, AXIS)
        off = off.squeeze(-1)
        return torch.where((x[..., 0] > 0) | off.isnan(), off, torch.inf)

    def dim(self, shape: Sequence[int]) -> int:
        """n for each vector of n + 1 entries. Raises ValueError where there is no second entry."""
        count, (n,) = check_ndim(self, shape, 1)
        if n < 2:
            raise ValueError(
                f"a point of {self} has a timelike entry and one or more others; got shape {tuple(shape)}. Give it n + "
                f"1 entries for n dimensions."
            )
        return count * (n - 1)

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Points:
        """exp at (R, 0, ..., 0) of a Gaussian vector of length about R."""
        check_real(self, dtype)
        self.dim(shape := sizes(shape))
        n = shape[-1] - 1
        v = torch.randn(shape, generator=generator, dtype=dtype, device=device) * (self._radius / math.sqrt(n))
        v = torch.cat([torch.zeros_like(v[..., :1]), v[..., 1:]], -1)
        origin = torch.zeros_like(v)
        origin[..., 0] = self._radius
        return self.exp(origin, v)

    def inner(self, x: Points, u: Points, v: Points) -> Float[Tensor, "*batch"]:
        """<u, v>, for tangent vectors, as the sum of what is along x_s, times R^2 / x_0^2, and what is across."""
        x, u, v = broadcast(self, x, u, v)
        return self._inner(x, u, v).squeeze(-1)

    def gradient(self, x: Points, g: Points) -> Points:
        """J g + (x . g) x / R^2."""
        x, g = broadcast(self, x, g)
        return _flipped(g) - self.curvature * arcs.dot(x, g, AXIS) * x

    def retract(self, x: Points, v: Points) -> Points:
        """(1 + <v, v> / R^2)^1/2 x + v, second order."""
        x, v = broadcast(self, x, v)
        return self._point((1 - self.curvature * self._inner(x, v, v)).sqrt() * x + v)

    def transport(self, x: Points, y: Points, v: Points) -> Points:
        """v + <y, v> (x + y) / (R^2 - <x, y>), parallel along the geodesic."""
        x, y, v = broadcast(self, x, y, v)
        far = self._far(x, y)
        by = arcs.dot(_flipped(y - x), v, AXIS) * (-self.curvature / 2) / (1 + far)
        return _tangent(y, v + by * (x + y))

    def exp(self, x: Points, v: Points) -> Points:
        """cosh(t) x + sinh(t) v / t with t = |v| / R."""
        x, v = broadcast(self, x, v)
        square = -self.curvature * self._inner(x, v, v)
        # cosh t and sinh t / t are smooth in t^2, but sqrt is not at 0: below 1e-4 their series there
        small = square < 1e-4
        t = torch.where(small, 1, square).sqrt()
        cosh = torch.where(small, 1 + square / 2 + square**2 / 24 + square**3 / 720, t.cosh())
        sinhc = torch.where(small, 1 + square / 6 + square**2 / 120 + square**3 / 5040, t.sinh() / t)
        return self._point(cosh * x + sinhc * v)

    def log(self, x: Points, y: Points) -> Points:
        """t w / |w| with w = y + <x, y> x / R^2 and t = distance(x, y)."""
        x, y = broadcast(self, x, y)
        far = self._far(x, y)
        by = (1 + far).rsqrt()
        return _tangent(x, asinhc(far) * (by * (y - x) - (2 * far * by) * x))

    def distance(self, x: Points, y: Points) -> Float[Tensor, "*batch"]:
        """2 R asinh(<y - x, y - x>^1/2 / (2 R)). Its derivative at y = x is 0."""
        x, y = broadcast(self, x, y)
        return (2 * self._radius) * self._apart(x, y).asinh().squeeze(-1)

    @property
    def _radius(self) -> float:
        return 1 / math.sqrt(-self.curvature)

    def _time(self, space: Points) -> Numbers:
        """The x_0 of x_s."""
        return (space.square().sum(-1, keepdim=True) - 1 / self.curvature).sqrt()

    def _point(self, x: Points) -> Points:
        """x with the timelike entry that the others ask for."""
        return torch.cat([self._time(x[..., 1:]), x[..., 1:]], -1)

    def _inner(self, x: Points, u: Points, v: Points) -> Numbers:
        space, u, v = x[..., 1:], u[..., 1:], v[..., 1:]
        size = arcs.size(space, AXIS)
        out = space / torch.where(size == 0, self._radius, size)
        a, b = arcs.dot(out, u, AXIS), arcs.dot(out, v, AXIS)
        return arcs.dot(u - a * out, v - b * out, AXIS) + a * b * (self._radius / x[..., :1]) ** 2

    def _between(self, x: Points, y: Points) -> tuple[Points, Numbers]:
        """x_s / (R + x_0) - y_s / (R + y_0), times the product of these, and that product."""
        r = self._radius
        d = x - y  # exact for points that are near to each other
        z = torch.where(x[..., :1] < y[..., :1], x, y)  # the larger of two that are not would cancel all digits
        a = d[..., 1:] * (r + z[..., :1]) - z[..., 1:] * d[..., :1]
        return a, (r + x[..., :1]) * (r + y[..., :1])

    def _far(self, x: Points, y: Points) -> Numbers:
        """sinh^2(distance / 2 R)."""
        a, both = self._between(x, y)
        return arcs.dot(a, a, AXIS) / both * (-self.curvature / 4)

    def _apart(self, x: Points, y: Points) -> Numbers:
        """sinh(distance / 2 R), with derivative 0 at y = x."""
        a, both = self._between(x, y)
        return arcs.size(a, AXIS) * both.rsqrt() / (2 * self._radius)


def _flipped(x: Points) -> Points:
    """J x."""
    return torch.cat([-x[..., :1], x[..., 1:]], -1)


def _tangent(x: Points, v: Points) -> Points:
    """v with the timelike entry that the others ask for: x_s . v_s / x_0."""
    space = arcs.dot(x[..., 1:], v[..., 1:], AXIS) / x[..., :1]
    return torch.cat([space, v[..., 1:]], -1)
