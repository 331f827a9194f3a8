"""The unit sphere {x in R^n : |x| = 1}, real or complex."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._linalg import may_look
from .base import GeodesicManifold, check_ndim, inner

Points = Inexact[Tensor, "*batch n"]


@dataclass(frozen=True)
class Sphere(GeodesicManifold):
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
        return a - inner(x, a, 1).unsqueeze(-1) * x

    def nearest(self, x: Points) -> Points:
        """x / |x|. Raises ValueError for a zero vector, which every point of the sphere is nearest to."""
        # entries scaled by the largest first: the square of a tiny or huge vector would under- or overflow
        largest = x.detach().abs().amax(-1, keepdim=True)
        if may_look(x) and bool((largest == 0).any()):
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
        return (inner(x, x, 1).sqrt() - 1).abs()

    def retract(self, x: Points, v: Points) -> Points:
        """(x + v) / |x + v|."""
        y = x + v
        y = y / y.detach().abs().amax(-1, keepdim=True)  # the square of a huge step would overflow
        return y / inner(y, y, 1).sqrt().unsqueeze(-1)

    def exp(self, x: Points, v: Points) -> Points:
        """cos(t) x + sin(t) v / t with t = |v|."""
        squared = inner(v, v, 1).unsqueeze(-1)
        # cos t and sin t / t are smooth in t^2, but sqrt is not at 0: below 1e-4 use their series there
        small = squared < 1e-4
        t = torch.where(small, torch.ones_like(squared), squared).sqrt()
        cos = torch.where(small, 1 - squared / 2 + squared**2 / 24 - squared**3 / 720, t.cos())
        sinc = torch.where(small, 1 - squared / 6 + squared**2 / 120 - squared**3 / 5040, t.sin() / t)
        return cos * x + sinc * v

    def log(self, x: Points, y: Points) -> Points:
        """t w / |w| with w = project(x, y - x) and t the angle between x and y; zero at y = x.

        At y = -x, where every direction is shortest, the result is zero or arbitrary of length pi.
        """
        w = self.project(x, y - x)
        t = self.distance(x, y).unsqueeze(-1)
        length = inner(w, w, 1).unsqueeze(-1).sqrt()
        near = length < torch.finfo(x.dtype).eps
        return torch.where(near, w, t / torch.where(near, torch.ones_like(length), length) * w)

    def distance(self, x: Points, y: Points) -> Float[Tensor, "*batch"]:
        """2 atan2(|x - y|, |x + y|), the angle of x and y: exact near 0 and pi, where acos loses half its digits."""
        apart, together = x - y, x + y
        return 2 * torch.atan2(inner(apart, apart, 1).sqrt(), inner(together, together, 1).sqrt())
