"""The open simplex {x : x_i > 0, sum x = 1}: the part of a sphere where all entries are positive, under the root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ._points import broadcast, check_axes, check_real, root, sizes
from .base import GeodesicManifold, check_ndim
from .engine import Engine, Isometric
from .kernels import arcs

Points = Float[Tensor, "*batch n"]
AXIS = (-1,)


@dataclass(frozen=True)
class Simplex(GeodesicManifold):
    """Vectors of n positive entries that sum to one, along the last axis, with the Fisher metric sum_i u_i v_i / x_i.

    Points and tangent vectors are (..., n), real; T_x = {v : sum v = 0}. x -> 2 sqrt(x) is an isometry into the sphere
    of radius 2, from which all of it is computed. The boundary, where an entry is 0, is at a finite distance: a step
    that would leave the set is reflected there, as (2 sqrt x + u)^2 is for any u, and no step ends on it. The set is
    open: a value outside is refused, one on the boundary too.
    Raises ValueError for complex tensors.
    Source: Amari & Nagaoka, Methods of Information Geometry (2000), section 2.5; Astrom, Petra, Schmitzer & Schnorr,
    Image Labeling by Assignment (2017), section 2.1.

    >>> x, y = torch.tensor([[0.5, 0.5], [1 - 1e-9, 1e-9]], dtype=torch.float64)
    >>> Simplex().distance(x, y)  # almost a quarter of pi, times 2
    tensor(1.5707, dtype=torch.float64)
    """

    ndim = 1

    def project(self, x: Points, a: Points) -> Points:
        """a - mean(a)."""
        _, a = broadcast(self, x, a)
        return a - a.mean(-1, keepdim=True)

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """|sum x - 1|; inf where an entry is not positive."""
        check_real(self, x.dtype)
        check_axes(self, x.shape)
        off = (x.sum(-1) - 1).abs()
        return torch.where((x > 0).all(-1) | off.isnan(), off, torch.inf)

    def dim(self, shape: Sequence[int]) -> int:
        """n - 1 for each vector."""
        count, (n,) = check_ndim(self, shape, 1)
        return count * (n - 1)

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Points:
        """Uniform in the volume of R^n: Dirichlet(1, ..., 1)."""
        check_real(self, dtype)
        self.dim(shape := sizes(shape))
        x = torch.empty(shape, dtype=dtype, device=device).exponential_(generator=generator)
        x = x + torch.finfo(x.dtype).tiny
        return x / x.sum(-1, keepdim=True)

    def inner(self, x: Points, u: Points, v: Points) -> Float[Tensor, "*batch"]:
        """sum u v / x."""
        x, u, v = broadcast(self, x, u, v)
        s = x.sqrt()  # the product of two small numbers would underflow before it is divided
        return ((u / s) * (v / s)).sum(-1)

    def gradient(self, x: Points, g: Points) -> Points:
        """x (g - <x, g>)."""
        x, g = broadcast(self, x, g)
        return x * (g - (x * g).sum(-1, keepdim=True))

    def retract(self, x: Points, v: Points) -> Points:
        """(x + v + v^2 / (4 x)) / (1 + sum v^2 / (4 x)), second order: that of the sphere."""
        x, v = broadcast(self, x, v)
        s = x.sqrt()
        return squared(arcs.normalized(s + v / (2 * s), AXIS, 1))  # else near the boundary its square might overflow

    def transport(self, x: Points, y: Points, v: Points) -> Points:
        """t (w - <t, w> (s + t) / (1 + <s, t>)) with s = sqrt x, t = sqrt y, w = v / s: parallel along the geodesic."""
        x, y, v = broadcast(self, x, y, v)
        s, t = x.sqrt(), y.sqrt()
        return t * _carried(s, t, v / s)

    def exp(self, x: Points, v: Points) -> Points:
        """(cos(t) sqrt x + sin(t) w / t)^2 with w = v / (2 sqrt x), t = |w|; reflected where it meets the boundary."""
        x, v = broadcast(self, x, v)
        s = x.sqrt()
        return squared(arcs.exp(s, v / (2 * s), AXIS, 1))

    def log(self, x: Points, y: Points) -> Points:
        """2 sqrt(x) times the log of the unit sphere from sqrt x to sqrt y."""
        x, y = broadcast(self, x, y)
        s = x.sqrt()
        return 2 * s * arcs.log(s, y.sqrt(), AXIS, 1)

    def distance(self, x: Points, y: Points) -> Float[Tensor, "*batch"]:
        """2 arccos sum sqrt(x y), computed as 4 atan2(|s - t|, |s + t|), s = sqrt x, t = sqrt y: exact at y = x too.

        Its derivative is 0 there; for second derivatives of a squared distance take that of the norm of `log`.
        """
        x, y = broadcast(self, x, y)
        return 2 * arcs.angle(x.sqrt(), y.sqrt(), AXIS).squeeze(-1)

    def _engine(self) -> Engine:
        return _Roots(self)


class _Roots(Isometric):
    """Coordinates are w = v / sqrt(x), tangent to the sphere of radius 2 at 2 sqrt(x)."""

    def coordinates(self, x: Points, a: Points) -> Points:
        x, a = broadcast(self.manifold, x, a)
        return arcs.project(x.sqrt(), a, AXIS, 1)

    def frame(self, x: Points, v: Points) -> Points:
        """v / sqrt(x)."""
        x, v = broadcast(self.manifold, x, v)
        return v / x.sqrt()

    def lift(self, x: Points, g: Points) -> Points:
        """sqrt(x) (g - <x, g>)."""
        x, g = broadcast(self.manifold, x, g)
        return x.sqrt() * (g - (x * g).sum(-1, keepdim=True))

    def move(self, x: Points, c: Points) -> Points:
        """(sqrt x + w / 2)^2, divided by its sum: every point is reached."""
        x, c = broadcast(self.manifold, x, c)
        return squared(x.sqrt() + c / 2)

    def carry(self, x: Points, y: Points, c: Points) -> Points:
        x, y, c = broadcast(self.manifold, x, y, c)
        return _carried(x.sqrt(), y.sqrt(), c)

    def coordinate_inner(self, x: Points, c: Points, d: Points) -> Float[Tensor, "*batch"]:
        _, c, d = broadcast(self.manifold, x, c, d)
        return (c * d).sum(-1)

    def recenter(self, x: Points, y: Points, c: Points, m: Points) -> Points:
        """That of the sphere, with the signs of sqrt x + w / 2, which the square does not see."""
        s = x.sqrt()
        z = s + c / 2
        h = root((z * z).sum(-1, keepdim=True))
        t = y.sqrt() * torch.where(z < 0, -1, 1)
        pulled = arcs.project(t, h * (m - h * arcs.dot(t, m, AXIS) * s), AXIS, 1)
        return torch.where(z < 0, -pulled, pulled)

    def is_long(self, x: Points, c: Points) -> bool:
        """|w| > 1: half a radian of the sphere of radius 2."""
        return bool((torch.linalg.vector_norm(c, dim=-1) > 1).any())

    def polish(self, x: Points) -> Points:
        """x / sum x."""
        return x / x.sum(-1, keepdim=True)

    def renormalizes(self, x: Points) -> bool:
        """True: a step ends with a division by the sum."""
        return True


def squared(s: Points) -> Points:
    """s^2 / sum s^2, plus the least normal number: less than rounding, it keeps an entry that met 0 above it."""
    square = s * s
    return square / square.sum(-1, keepdim=True) + torch.finfo(s.dtype).tiny


def _carried(s: Points, t: Points, w: Points) -> Points:
    """w carried along the great circle from s to t, unit vectors less than half a turn apart."""
    by = arcs.dot(t, w, AXIS) / (1 + arcs.dot(s, t, AXIS))
    return w - by * (s + t)
