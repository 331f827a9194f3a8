"""What engines (optimizers, trivializations) call, apart from `Manifold`, where mathematics stands alone.

An engine works in coordinates: tensors of the shape of the point, the tangent vector itself, or something cheaper, as
on O(n) the skew Omega of v = x Omega, which needs no transport. `engine(M)` has all of it for any manifold, derived
from the contract: an author of a manifold never has to know. For speed a family says by `_engine` which `Engine` serves
it, and a manifold that has a method of one of the names below is asked itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .base import Manifold, NearestPointManifold
from .kernels.chart import is_long, least_squares


class Engine:
    """The operations of engines on one manifold M. In the formulas c, d are coordinates, x, y points, a any ambient
    tensor, g a Euclidean gradient.

    >>> x = Orthogonal().random(3, 3)
    >>> c = engine(Orthogonal()).lift(x, torch.ones(3, 3))
    >>> torch.equal(c, -c.T)
    True
    """

    flat = False
    """Whether charts never bend, as those of a linear space."""

    def __init__(self, manifold: Manifold) -> None:
        self.manifold = manifold
        for name in NAMES:
            if callable(getattr(type(manifold), name, None)):
                setattr(self, name, getattr(manifold, name))

    def __repr__(self) -> str:
        return f"engine({self.manifold})"

    def __reduce__(self) -> tuple[Any, ...]:
        return engine, (self.manifold,)

    def of_shape(self, point: Sequence[int]) -> Engine:
        """The engine of points of this shape, which need not be told apart again at each call."""
        return self

    def coordinates(self, x: Inexact[Tensor, "..."], a: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """Coordinates at x made of any tensor a of the shape of x: linear in a, onto, the identity on coordinates."""
        return self.manifold.project(x, a)

    def lift(self, x: Inexact[Tensor, "..."], g: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """Coordinates of gradient(x, g)."""
        return self.manifold.gradient(x, g)

    def move(self, x: Inexact[Tensor, "..."], c: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """The point that a retraction reaches from x along the tangent vector with coordinates c."""
        return self.manifold.retract(x, c)

    def carry(
        self, x: Inexact[Tensor, "..."], y: Inexact[Tensor, "..."], c: Inexact[Tensor, "..."]
    ) -> Inexact[Tensor, "..."]:
        """Coordinates at y of the transport of the vector with coordinates c at x."""
        return self.manifold.transport(x, y, c)

    def coordinate_inner(
        self, x: Inexact[Tensor, "..."], c: Inexact[Tensor, "..."], d: Inexact[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """The metric between the tangent vectors with coordinates c and d, one number per point."""
        return self.manifold.inner(x, c, d)

    def recenter(
        self, x: Inexact[Tensor, "..."], y: Inexact[Tensor, "..."], c: Inexact[Tensor, "..."], m: Inexact[Tensor, "..."]
    ) -> Inexact[Tensor, "..."]:
        """A gradient m in the coordinates at x, taken at c, as it is in those at y = move(x, c), taken at 0.

        The chart at x is F(c) = move(x, coordinates(x, c)). A gradient in it, or a mean of gradients, is m = DF(c)^* t
        for one t in T_y; in the chart G at y, whose zero is y, the same one is DG(0)^* t. Here t is found by conjugate
        gradients, on any manifold that autograd differentiates.
        """
        with torch.enable_grad():
            c = c.detach().requires_grad_()
            at = self.coordinates(x, c)
            z = self.move(x, at)
            probe = torch.zeros_like(z, requires_grad=True)
            (pulled,) = torch.autograd.grad(z, c, probe, create_graph=True)  # linear in the probe
            zero = torch.zeros_like(c, requires_grad=True)
            there = self.move(y, self.coordinates(y, zero))

        def pull(t: Tensor) -> Tensor:
            return torch.autograd.grad(z, c, t, retain_graph=True)[0]

        def push(v: Tensor) -> Tensor:
            return torch.autograd.grad(pulled, probe, v, retain_graph=True)[0]

        (m,) = torch.autograd.grad(at, c, m, retain_graph=True)  # what of m is no covector of the chart is left out
        t = least_squares(pull, push, m, self.manifold.ndim)
        return torch.autograd.grad(there, zero, t)[0]

    def is_long(self, x: Inexact[Tensor, "..."], c: Inexact[Tensor, "..."]) -> bool:
        """Whether a point has coordinates with |C| > |X| / (3 k^(1/4)), from where its chart may bend. Looks at values.

        k is 1 for vectors and the shorter side of matrices: if C has all its length in one of k directions it is as
        long there as |C| sqrt(k) / |X|, which is |C| on Stiefel, and if it has it evenly, as |C| / |X|. Their geometric
        mean is compared with 1/3. Linear spaces have charts that never bend. False where c is NaN.
        """
        parts = zip(self.split(x), self.split(c), strict=True)
        curved = ((f.ndim, points, vectors) for (f, points), (_, vectors) in parts if not engine(f).flat)
        return any(is_long(vectors, points, ndim) for ndim, points, vectors in curved)

    def polish(self, x: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """x, within rounding of M, brought closer by something far cheaper than nearest; x itself by default."""
        return x

    @property
    def polishes(self) -> bool:
        """Whether `polish` does anything."""
        return getattr(self.polish, "__func__", None) is not Engine.polish

    # What optimizers call on top of that, on batches (B, *point) and without derivatives --------------------
    # A momentum is kept from step to step as `store` leaves it, so that a manifold may do the work of its
    # transport together with other work of the next step.

    def store(
        self, x: Inexact[Tensor, "..."], y: Inexact[Tensor, "..."], c: Inexact[Tensor, "..."]
    ) -> Inexact[Tensor, "..."]:
        """What is kept of c at x after a step to y: recall(y, store(x, y, c)) = carry(x, y, c)."""
        return self.carry(x, y, c)

    def recall(self, x: Inexact[Tensor, "..."], stored: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """Coordinates at x of what was stored: itself, unless `store` left work to do. May overwrite stored."""
        return stored

    def mix(
        self,
        x: Inexact[Tensor, "..."],
        stored: Inexact[Tensor, "..."],
        g: Inexact[Tensor, "..."],
        keep: float,
        add: float,
    ) -> tuple[Inexact[Tensor, "..."], Float[Tensor, "..."]]:
        """(keep recall(x, stored) + add lift(x, g), |lift(x, g)|^2). May overwrite stored."""
        c, m = self.lift(x, g), self.recall(x, stored)
        mixed = m.lerp_(c, add) if keep + add == 1 else m.mul_(keep).add_(c, alpha=add)
        return mixed, self.coordinate_inner(x, c, c)

    def advance(
        self, x: Inexact[Tensor, "..."], c: Inexact[Tensor, "..."], size: float | Float[Tensor, "..."]
    ) -> Inexact[Tensor, "..."]:
        """move(x, size c), size a number or one per point, shaped to multiply points."""
        return self.move(x, c * size)

    def travel(
        self, x: Inexact[Tensor, "..."], c: Inexact[Tensor, "..."], size: float | Float[Tensor, "..."]
    ) -> tuple[Inexact[Tensor, "..."], Inexact[Tensor, "..."]]:
        """(y, store(x, y, c)) with y = advance(x, c, size), where both are cheaper at once. May overwrite c."""
        y = self.advance(x, c, size)
        return y, self.store(x, y, c)

    @property
    def travels(self) -> bool:
        """Whether `travel` is cheaper than what it is made of."""
        return getattr(self.travel, "__func__", None) is not Engine.travel

    def reach(self, x: Inexact[Tensor, "..."], a: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """move(x, coordinates(x, a)), where that is cheaper at once. May overwrite a."""
        return self.advance(x, self.coordinates(x, a), 1.0)

    @property
    def reaches(self) -> bool:
        """Whether `reach` is cheaper than what it is made of."""
        return getattr(self.reach, "__func__", None) is not Engine.reach

    def renormalizes(self, x: Inexact[Tensor, "..."]) -> bool:
        """Whether `advance` leaves nothing of the rounding errors in x, so that they do not add up step by step."""
        return False

    def split(self, x: Inexact[Tensor, "..."]) -> list[tuple[Manifold, Inexact[Tensor, "..."]]]:
        """(factor, its points in x) for each batch of equal factors; [(M, x)] unless M is a product."""
        return [(self.manifold, x)]

    def join(self, parts: Sequence[Inexact[Tensor, "..."]], shape: Sequence[int]) -> Inexact[Tensor, "..."]:
        """The tensor of this shape whose `split` has these parts, in their order."""
        (part,) = parts
        return part.reshape(tuple(shape))


class Isometric(Engine, ABC):
    """One of a metric that is not that of the ambient space, in coordinates whose Euclidean inner product it is: those
    in an orthonormal basis of T_x.

    >>> isinstance(engine(Simplex()), Isometric), isinstance(engine(Stiefel()), Isometric)
    (True, False)
    """

    @abstractmethod
    def frame(self, x: Inexact[Tensor, "..."], v: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """Coordinates of the tangent vector v: |frame(x, v)| = norm(x, v)."""


NAMES = tuple(name for name, value in vars(Engine).items() if callable(value) and not name.startswith("_"))


def engine(manifold: Manifold) -> Engine:
    """The engine of a manifold, the same for equal ones."""
    try:
        return _made(manifold)
    except TypeError:  # a manifold with a list in it, which is not hashable as it should be
        return manifold._engine()


@lru_cache(maxsize=1024)
def _made(manifold: Manifold) -> Engine:
    return manifold._engine()


def settled(manifold: Manifold, x: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
    """The point of M that x is to rounding: the nearest one, or x polished where there is no nearest."""
    return manifold.nearest(x) if isinstance(manifold, NearestPointManifold) else engine(manifold).polish(x)
