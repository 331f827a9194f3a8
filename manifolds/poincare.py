"""Hyperbolic space of constant curvature in a ball."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ._hyperbolic import asinhc, check_curvature
from ._points import broadcast, check_axes, check_real, sizes
from .base import GeodesicManifold, check_ndim
from .engine import Engine, Isometric
from .kernels import arcs, ball

Points = Float[Tensor, "*batch n"]
Numbers = Float[Tensor, "*batch 1"]
AXIS = (-1,)
NOTHING = (lambda: None), 0, None


@dataclass(frozen=True)
class PoincareBall(GeodesicManifold):
    """{x in R^n : |x| < R} for curvature -1 / R^2, with the metric h^2 <u, v>, h = 2 / (1 - |x|^2 / R^2).

    Points and tangent vectors are (..., n), real; T_x is R^n. The set is open, its boundary infinitely far. Distances
    are computed without acosh and without clamping: within d of the boundary they have a relative error of eps / d.
    curvature: a negative number.
    Raises ValueError for another curvature, and for complex tensors.
    Source: Ungar, A Gyrovector Space Approach to Hyperbolic Geometry (2009), chapters 1 and 2; Nickel & Kiela, Poincare
    embeddings (2017).

    >>> x = torch.tensor([0.5, 0.0]).tanh()
    >>> PoincareBall().distance(x, -x)
    tensor(2.)
    """

    curvature: float = -1.0

    ndim = 1

    def __post_init__(self) -> None:
        check_curvature(self, self.curvature)

    def project(self, x: Points, a: Points) -> Points:
        """a."""
        return broadcast(self, x, a)[1]

    def residual(self, x: Points) -> Float[Tensor, "*batch"]:
        """0 for |x| < R, else inf; NaN where x has a NaN."""
        check_real(self, x.dtype)
        check_axes(self, x.shape)
        square = (x * x).sum(-1)
        return torch.where(-self.curvature * square < 1, 0 * square, torch.where(square.isnan(), square, torch.inf))

    def dim(self, shape: Sequence[int]) -> int:
        """n for each vector."""
        count, (n,) = check_ndim(self, shape, 1)
        return count * n

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Points:
        """exp at 0 of a Gaussian vector of length about R."""
        check_real(self, dtype)
        self.dim(shape := sizes(shape))
        gaussian = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        zero = torch.zeros_like(gaussian)
        return self.exp(zero, gaussian / (2 * math.sqrt(-self.curvature * shape[-1])))

    def inner(self, x: Points, u: Points, v: Points) -> Float[Tensor, "*batch"]:
        """h^2 <u, v>."""
        x, u, v = broadcast(self, x, u, v)
        h = 2 / self._depth(x)
        return ((h * u) * (h * v)).sum(-1)

    def gradient(self, x: Points, g: Points) -> Points:
        """g / h^2."""
        x, g = broadcast(self, x, g)
        return g * (self._depth(x) / 2) ** 2

    def retract(self, x: Points, v: Points) -> Points:
        """x + z, Mobius addition, with z = h v / (1 + (1 + |h v / R|^2)^1/2): `Hyperboloid.retract`, second order.

        It ends where 1 - |x|^2 / R^2 is 16 eps, as near to the boundary as numbers of this dtype can be told from it.
        """
        x, v = broadcast(self, x, v)
        return self._moved(x, v * (2 / self._depth(x)))

    def transport(self, x: Points, y: Points, v: Points) -> Points:
        """Parallel along the geodesic: h(x) / h(y) gyr[y, -x] v."""
        x, y, v = broadcast(self, x, y, v)
        return self._carried(x, y, v) * (self._depth(y) / self._depth(x))

    def exp(self, x: Points, v: Points) -> Points:
        """x + R tanh(t / 2) v / |v|, Mobius addition, with t = |h v / R|; not on the boundary, as for `retract`."""
        x, v = broadcast(self, x, v)
        c = v * (2 / self._depth(x))
        square = -self.curvature * arcs.dot(c, c, AXIS)
        # tanh(t / 2) / t is smooth in t^2, but sqrt is not at 0: below 1e-4 its series there
        small = square < 1e-4
        t = torch.where(small, 1, _finite(square)).sqrt()
        by = torch.where(small, 0.5 - square / 24 + square**2 / 240 - 17 * square**3 / 40320, (t / 2).tanh() / t)
        left = torch.where(small, 1 - square * by**2, (t / 2).cosh() ** -2)
        return self._within(self._sum(x, by * c, left)[0])

    def log(self, x: Points, y: Points) -> Points:
        """The v = t R w / (h |w|) with w = -x + y, Mobius addition, and t = 2 artanh(|w| / R)."""
        x, y = broadcast(self, x, y)
        k, d = -self.curvature, y - x
        far = k * arcs.dot(d, d, AXIS)
        here, there = self._depth(x), self._depth(y)
        both = here * there
        return asinhc(far / both) * here * (here * d - far * x) * ((both + far) * both).rsqrt()

    def distance(self, x: Points, y: Points) -> Float[Tensor, "*batch"]:
        """2 R asinh(|x - y| / R / ((1 - |x|^2 / R^2) (1 - |y|^2 / R^2))^1/2). Its derivative at y = x is 0."""
        x, y = broadcast(self, x, y)
        size = math.sqrt(-self.curvature)
        s = size * arcs.size(y - x, AXIS) * (self._depth(x) * self._depth(y)).rsqrt()
        return (2 / size) * s.asinh().squeeze(-1)

    def _engine(self) -> Engine:
        return _Conformal(self)

    def _depth(self, x: Points) -> Numbers:
        """1 - |x|^2 / R^2 = 2 / h."""
        return 1 + self.curvature * (x * x).sum(-1, keepdim=True)

    def _moved(self, x: Points, c: Points) -> Points:
        """The retraction of c = h v."""
        q = _finite(1 - self.curvature * (c * c).sum(-1, keepdim=True)).sqrt()
        y, left = self._sum(x, c / (1 + q), 2 / (1 + q))
        least = 16 * torch.finfo(y.dtype).eps
        beyond = left < least
        return y * torch.where(beyond, (1 - least) / torch.where(beyond, 1 - left, 1), 1).sqrt()

    def _within(self, y: Points) -> Points:
        """y; where rounding has taken it to the boundary, it ends where `retract` does."""
        square = -self.curvature * (y * y).sum(-1, keepdim=True)
        out = square >= 1
        return y * torch.where(out, (1 - 16 * torch.finfo(y.dtype).eps) / torch.where(out, square, 1), 1).sqrt()

    def _sum(self, x: Points, z: Points, left: Numbers) -> tuple[Points, Numbers]:
        """x + z, Mobius addition, and 1 - |x + z|^2 / R^2; left is that of z. Sums of positive numbers only, else
        most digits were lost on the way from the boundary to the center."""
        s, depth = x + z, self._depth(x)
        k = -self.curvature * (s * s).sum(-1, keepdim=True)
        both = depth * left
        return (k * x + depth * s) / (both + k), both / (both + k)

    def _carried(self, x: Points, y: Points, w: Points) -> Points:
        """gyr[y, -x] w, a rotation; every term has a factor y - x, so that nothing cancels near the boundary."""
        k, d, depth = -self.curvature, y - x, self._depth(x)
        p, q, xd = ((a * b).sum(-1, keepdim=True) for a, b in ((x, w), (d, w), (x, d)))
        far = k * (d * d).sum(-1, keepdim=True)
        along = depth * q - far * p
        back = (2 * k * xd - depth) * p + (depth - 1) * q
        return w + (along * x + back * d) * (2 * k / (depth * self._depth(y) + far))


def _finite(square: Numbers) -> Numbers:
    """The square; NaN where it overflows, for a vector divided by its length would be none."""
    return square + (square - square)


class _Conformal(Isometric):
    """Coordinates are h v, whose Euclidean inner product is the metric."""

    manifold: PoincareBall
    _known: tuple[Callable[[], Tensor | None], int, Numbers | None] = NOTHING
    """The points of the last `mix`, whose step is still to come, how often they were written to, and k |x|^2."""

    def coordinates(self, x: Points, a: Points) -> Points:
        return broadcast(self.manifold, x, a)[1]

    def frame(self, x: Points, v: Points) -> Points:
        """h v."""
        x, v = broadcast(self.manifold, x, v)
        return v * (2 / self.manifold._depth(x))

    def lift(self, x: Points, g: Points) -> Points:
        """g / h."""
        x, g = broadcast(self.manifold, x, g)
        return g * (self.manifold._depth(x) / 2)

    def move(self, x: Points, c: Points) -> Points:
        return self.manifold._moved(*broadcast(self.manifold, x, c))

    def carry(self, x: Points, y: Points, c: Points) -> Points:
        return self.manifold._carried(*broadcast(self.manifold, x, y, c))

    def coordinate_inner(self, x: Points, c: Points, d: Points) -> Float[Tensor, "*batch"]:
        _, c, d = broadcast(self.manifold, x, c, d)
        return (c * d).sum(-1)

    def mix(self, x: Points, stored: Points, g: Points, keep: float, add: float) -> tuple[Points, Tensor]:
        """As defined, in one pass."""
        mixed, square, far = ball.mix(x, stored, g, keep, add, -self.manifold.curvature)
        if not x.is_inference():  # whose tensors do not count how often they are written to
            self._known = weakref.ref(x), x._version, far
        return mixed, square

    def travel(self, x: Points, c: Points, size: float | Tensor) -> tuple[Points, Points]:
        """As defined; on CPU in one pass."""
        (of, version, far), self._known = self._known, NOTHING
        far = far if of() is x and version == x._version else None
        at = ball.travel(x, c, size, -self.manifold.curvature, far, super().travel)
        return super().travel(x, c, size) if at is None else at

    def is_long(self, x: Points, c: Points) -> bool:
        """|c| > R: where asinh has bent."""
        return bool((math.sqrt(-self.manifold.curvature) * torch.linalg.vector_norm(c, dim=-1) > 1).any())
