"""One tensor of a problem, and the coordinates in which solvers keep its tangent vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Inexact
from torch import Tensor

from manifolds import (
    Euclidean,
    FixedRank,
    Grassmann,
    Manifold,
    NearestPointManifold,
    Oblique,
    Orthogonal,
    ProductManifold,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)
from manifolds.engine import Engine, engine
from manifolds.kernels.linalg import sym
from manifolds.kernels.steps import is_wide
from manifolds.retractions import polar

Points = Inexact[Tensor, "*batch point"]


@dataclass(frozen=True)
class Piece:
    """One tensor of the problem: its name (None where there is only one), its manifold and its shape without B.

    Coordinates c of a tangent vector v are v itself; of square X with v = X Omega, where the metric is that of the
    ambient space, the skew Omega: as long, and carried nowhere. Engines keep these too, see `manifolds.engine`.
    """

    name: str | None
    manifold: Manifold
    shape: tuple[int, ...]
    dtype: torch.dtype

    @cached_property
    def width(self) -> int:
        """How many real numbers it takes in a row."""
        return math.prod(self.shape) * (2 if self.dtype.is_complex else 1)

    def __str__(self) -> str:
        return "x" if self.name is None else f"x[{self.name!r}]"

    @cached_property
    def turns(self) -> bool:
        """Whether coordinates are the Omega of v = X Omega."""
        return self._engine is not None and self.shape[-1] == self.shape[-2]

    @cached_property
    def is_ambient(self) -> bool:
        """Whether the metric is known to be Re<u, v> at every point."""
        return is_ambient(self.manifold)

    @cached_property
    def lies_still(self) -> bool:
        """Whether transport is nothing in coordinates, or the projection at the new point."""
        projects = type(self.manifold).transport in (Manifold.transport, Euclidean.transport)
        return self.is_ambient and (projects or self._engine is not None)

    @cached_property
    def takes_any(self) -> bool:
        """Whether `retract` goes to the point nearest to x + c for any c, tangent or not."""
        m = self.manifold
        if type(m) is Stiefel:
            return m.retraction is polar and not self.turns
        return type(m) in (Sphere, Oblique, Euclidean) or type(m).retract is NearestPointManifold.retract

    @cached_property
    def _engine(self) -> Engine | None:
        """Where coordinates of engines are those above, its engine, of points (B, n, p) and faster for them."""
        m = self.manifold
        known = m.metric == "euclidean" if type(m) is Stiefel else type(m) in (Orthogonal, SpecialOrthogonal)
        return engine(m).of_shape(self.shape[-2:]) if known else None

    def laid_out(self, lead: Sequence[int]) -> tuple[int, ...]:
        """The shape in which the methods below take so many points."""
        if self._engine is None:
            return (*lead, *self.shape)
        return (math.prod(lead) * math.prod(self.shape[:-2]), *self.shape[-2:])

    def project(self, x: Points, a: Points) -> Points:
        """Coordinates at x made of any a: linear in a, onto, the identity on coordinates."""
        return self.manifold.project(x, a) if self._engine is None else self._engine.coordinates(x, a)

    def gradient(self, x: Points, g: Points) -> Points:
        """Coordinates of the Riemannian gradient of what has Euclidean gradient g."""
        return self.manifold.gradient(x, g) if self._engine is None else self._engine.lift(x, g)

    def straightener(self, x: Points, g: Points) -> Points | None:
        """S = sym(X^H G) where Hess f(X)[V] = P_X(D g(X)[V] - V S), g(X) = G the Euclidean gradient; wide matrices have
        sym(G X^H), on their left. None on other manifolds.

        Of P_X(g(X)) = G - X S the derivative is D g[V] - V S - X D S[V], and P_X takes X times a Hermitian matrix away.
        Source: Absil, Mahony & Trumpf, An extrinsic look at the Riemannian Hessian (2013), (10).
        """
        if self._engine is None:
            return None
        return sym(g @ x.mH) if is_wide(x) else sym(x.mH @ g)

    def vector(self, x: Points, c: Points) -> Points:
        """The tangent vector with coordinates c, of the shape of x."""
        return x @ c if self.turns else c

    def coordinates(self, x: Points, v: Points) -> Points:
        """Coordinates of a tangent vector v; of the nearest one, for another."""
        return self.gradient(x, v) if self.turns else self.project(x, v)

    def retract(self, x: Points, c: Points, t: float = 1.0) -> Points:
        """The point that is reached from x along t times the tangent vector with coordinates c."""
        if self._engine is not None:
            return self._engine.advance(x, c, t)
        return self.manifold.retract(x, c if t == 1 else c * t)

    def own_retraction(self, x: Points, c: Points) -> Points:
        """The same by the manifold itself, whose `polar` of square matrices engines replace."""
        return self.manifold.retract(x, self.vector(x, c))

    def transport(self, x: Points, y: Points, c: Points) -> Points:
        """Coordinates at y of the transport of what has coordinates c at x."""
        return self.manifold.transport(x, y, c) if self._engine is None else self._engine.carry(x, y, c)

    def fasten(self, y: Points, c: Points) -> Points:
        """Where it `lies_still`, the transport to y of what has coordinates c, wherever that was."""
        return c if self.turns else self.project(y, c)


def is_ambient(manifold: Manifold) -> bool:
    """Whether the metric is known to be Re<u, v> at every point. Then Hess f(x)[v] = P_x D(P_x grad f(x))[v]."""
    if isinstance(manifold, ProductManifold):
        return all(map(is_ambient, manifold.factors))
    if isinstance(manifold, Stiefel):
        return manifold.metric == "euclidean"
    kind = type(manifold)
    return kind.inner is Manifold.inner and kind.gradient is Manifold.gradient


def is_curved(manifold: Manifold) -> bool:
    """Whether it is known to bend by one unit on a way of length |x|, for vectors, or less, in the ambient metric."""
    if isinstance(manifold, ProductManifold):
        return all(map(is_curved, manifold.factors))
    return type(manifold) in (FixedRank, Grassmann, Oblique, Orthogonal, SpecialOrthogonal, Sphere, Stiefel) and (
        is_ambient(manifold)
    )
