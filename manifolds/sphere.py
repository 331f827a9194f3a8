"""The unit sphere {x in R^n : |x| = 1}, real or complex."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._points import broadcast, check_axes, inner, length
from .base import GeodesicManifold, NearestPointManifold, check_ndim
from .engine import Engine
from .kernels.linalg import may_look
from .kernels.transforms import whole

Points = Inexact[Tensor, "*batch n"]


@dataclass(frozen=True)
class Sphere(NearestPointManifold, GeodesicManifold):
    """Unit vectors along the last axis, with the metric of R^n; unit vectors of C^n for complex tensors.

    Points and tangent vectors are (..., n); T_x = {v : Re<x, v> = 0}; `retract` is (x + v) / |x + v|, second order.
    Source: Boumal, An Introduction to Optimization on Smooth Manifolds (2023), section 7.2.

    >>> x, y = torch.eye(2)
    >>> Sphere().distance(x, y)  # a quarter of a turn
    tensor(1.5708)
    """

    ndim = 1
    constant_norm = True

    def project(self, x: Points, a: Points) -> Points:
        """a - Re<x, a> x."""
        x, a = broadcast(self, x, a)
        return a - inner(x, a, 1).unsqueeze(-1) * x

    def nearest(self, x: Points) -> Points:
        """x / |x|. Raises ValueError for a zero vector, which every point of the sphere is nearest to."""
        check_axes(self, x.shape)
        # entries scaled by the largest first: the square of a tiny or huge vector would under- or overflow
        largest = x.detach().abs().amax(-1, keepdim=True)
        if may_look(x) and bool(whole(largest == 0).any()):
            raise ValueError(
                f"a zero vector has no nearest point on Sphere; got shape {tuple(x.shape)} with a zero along the last "
                f"axis. Give a nonzero start, or init='haar'."
            )
        scaled = x / largest
        return scaled / inner(scaled, scaled, 1).sqrt().unsqueeze(-1)

    def dim(self, shape: Sequence[int]) -> int:
        """n - 1 for each point."""
        count, (n,) = check_ndim("Sphere", shape, 1)
        return count * (n - 1)

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        """2 n - 1 for each point."""
        count, (n,) = check_ndim("Sphere", shape, 1)
        return count * (2 * n - 1)

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """| |x| - 1 |."""
        check_axes(self, x.shape)
        return (length(x, 1) - 1).abs()

    def retract(self, x: Points, v: Points) -> Points:
        """(x + v) / |x + v|."""
        x, v = broadcast(self, x, v)
        y = x + v
        y = y / y.detach().abs().amax(-1, keepdim=True)  # the square of a huge step would overflow
        return y / inner(y, y, 1).sqrt().unsqueeze(-1)

    def exp(self, x: Points, v: Points) -> Points:
        """cos(t) x + sin(t) v / t with t = |v|."""
        x, v = broadcast(self, x, v)
        squared = inner(v, v, 1).unsqueeze(-1)
        # cos t and sin t / t are smooth in t^2, but sqrt is not at 0: below 1e-4 use their series there
        small = squared < 1e-4
        t = torch.where(small, torch.ones_like(squared), squared).sqrt()
        cos = torch.where(small, 1 - squared / 2 + squared**2 / 24 - squared**3 / 720, t.cos())
        sinc = torch.where(small, 1 - squared / 6 + squared**2 / 120 - squared**3 / 5040, t.sin() / t)
        return cos * x + sinc * v

    def log(self, x: Points, y: Points) -> Points:
        """t w / |w| with w = project(x, y) and t = atan2(|w|, Re<x, y>), the angle between x and y.

        At y = -x, where every direction is shortest, one of length pi, and NaN on the two points of the sphere of R^1.
        Smooth at y = x, twice too: for second derivatives of a squared distance there, take that of |log(x, y)|^2.
        """
        x, y = broadcast(self, x, y)
        c = inner(x, y, 1).unsqueeze(-1)
        # of y and y -+ x, which have one projection, the shortest loses no digits
        w = self.project(x, torch.where(c < 0, y + x, y - x))
        # atan(r) / r is smooth in r^2 = |w|^2 / c^2, but sqrt is not at 0: for small angles its series
        front = torch.where(c > 0, c, 1)
        r2 = inner(w, w, 1).unsqueeze(-1) / front**2
        small = (c > 0) & (r2 < 1e-4)
        series = (1 - r2 / 3 + r2**2 / 5 - r2**3 / 7) / front
        opposite = (c < 0) & (w == 0).all(-1, keepdim=True)
        w_far = torch.where(small | opposite, _tangent(x), w)
        s = length(w_far, 1).unsqueeze(-1)
        t = torch.where(opposite, math.pi, torch.atan2(s, c))
        v = torch.where(small, series * w, t * (w_far / s))
        return torch.where(opposite, torch.nan, v) if x.shape[-1] == 1 and not x.is_complex() else v

    def distance(self, x: Points, y: Points) -> Float[Tensor, "*batch"]:
        """2 atan2(|x - y|, |x + y|), the angle of x and y: exact near 0 and pi, where acos loses half its digits.

        Its derivative is 0 where it has none, at y = x and y = -x; see `log` for second derivatives at y = x.
        """
        x, y = broadcast(self, x, y)
        return 2 * torch.atan2(length(x - y, 1), length(x + y, 1))

    def _engine(self) -> Engine:
        return _SphereEngine(self)


class _SphereEngine(Engine):
    def recenter(self, x: Points, y: Points, c: Points, m: Points) -> Points:
        """project(y, h (m - h Re<y, m> x)) with h = |x + c|, the inverse adjoint of the derivative of `retract`."""
        h = inner(y, x + c, 1).unsqueeze(-1)
        return self.manifold.project(y, h * (m - h * inner(y, m, 1).unsqueeze(-1) * x))


def _tangent(x: Points) -> Points:
    """A constant unit tangent vector at x; for real n = 1, where there is none, x itself."""
    x = x.detach()
    if x.is_complex() or x.shape[-1] == 1:
        return 1j * x if x.is_complex() else x
    place = x.abs().argmin(-1, keepdim=True)
    axis = (torch.arange(x.shape[-1], device=x.device) == place).to(x.dtype)
    v = axis - inner(x, axis, 1).unsqueeze(-1) * x
    return v / length(v, 1).unsqueeze(-1)
