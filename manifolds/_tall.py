"""Engines of matrices with orthonormal columns: tall ones, wide ones, whose rows are orthonormal, and square ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ._group import SquareEngine
from ._group import log as log_of_group
from .engine import Engine
from .kernels import arcs, chart, steps
from .kernels.linalg import may_look, may_overwrite, may_wait, newton_schulz
from .kernels.steps import is_wide as is_wide
from .kernels.stiefel_log import are_finite, logarithm
from .kernels.transforms import whole
from .retractions import Metric, Retraction, exp, polar, qr

if TYPE_CHECKING:
    from .base import Manifold

Points = Inexact[Tensor, "*batch n p"]


class TallEngine(Engine):
    """n x p for n != p: coordinates are the tangent vector."""

    def __init__(self, manifold: Manifold, metric: Metric, retraction: Retraction) -> None:
        super().__init__(manifold)
        self._canonical, self._retraction = metric == "canonical", retraction

    def coordinates(self, x: Points, a: Points) -> Points:
        """The projection of A."""
        return self._projected(x, a)

    def lift(self, x: Points, g: Points) -> Points:
        """The gradient."""
        return self.manifold.gradient(x, g) if self._canonical else self._projected(x, g)

    def carry(self, x: Points, y: Points, c: Points) -> Points:
        """The projection of C at Y."""
        return self._projected(y, c)

    def _projected(self, x: Points, a: Points) -> Points:
        if x.dim() != 3 or x.shape != a.shape:
            return self.manifold.project(x, a)
        # two passes over A less than as written there
        if is_wide(x):
            n = torch.bmm(a, x.mH)
            return torch.baddbmm(a, n + n.mH, x, alpha=-0.5)
        n = torch.bmm(x.mH, a)
        return torch.baddbmm(a, x, n + n.mH, alpha=-0.5)

    def recenter(self, x: Points, y: Points, c: Points, m: Points) -> Points:
        """As defined; in closed form for polar."""
        return chart.polar(x, y, c, m) if self._retraction is polar else super().recenter(x, y, c, m)

    def polish(self, x: Points) -> Points:
        """X (3I - X^H X) / 2."""
        return newton_schulz(x)

    def store(self, x: Points, y: Points, c: Points) -> Points:
        """C itself: the transport is the projection at Y, which `recall` does."""
        return c

    def recall(self, x: Points, stored: Points) -> Points:
        """The projection of C, in its memory."""
        if stored.dim() != 3 or not may_overwrite(stored):
            return self._projected(x, stored)
        return steps.straightened(x, stored)

    def mix(self, x: Points, stored: Points, g: Points, keep: float, add: float) -> tuple[Points, Tensor]:
        """As defined; where it is as exact with three products or four."""
        mixed = steps.mix_tall(x, stored, g, keep, add, self._canonical)
        return super().mix(x, stored, g, keep, add) if mixed is None else mixed

    def advance(self, x: Points, c: Points, size: float | Tensor) -> Points:
        """As defined; for short steps by series, where the retraction is polar."""
        if self._retraction is polar:
            y = steps.polar_step(x, c, size)
            return super().advance(x, c, size) if y is None else y
        y = super().advance(x, c, size)
        # torch.matrix_exp is off by up to 100 eps in float32
        return newton_schulz(y) if self._retraction is exp else y

    def reach(self, x: Points, a: Points) -> Points:
        """As defined; for polar in the memory of A."""
        if not (self._retraction is polar and x.dim() == 3 and may_look(x) and may_overwrite(a)):
            return super().reach(x, a)
        there = steps.straightened(x, a).add_(x)
        y = steps.polar_factor(there)
        return super().advance(x, there.sub_(x), 1.0) if y is None else y

    def renormalizes(self, x: Points) -> bool:
        """Whether the retraction is polar, qr or exp."""
        return self._retraction in (polar, qr, exp)


class StiefelEngine(Engine):
    """That of the shape: `SquareEngine` where n = p, `TallEngine` elsewhere."""

    def __init__(self, manifold: Manifold, metric: Metric, retraction: Retraction) -> None:
        super().__init__(manifold)
        self._square = SquareEngine(manifold, retraction, canonical=metric == "canonical")
        self._tall = TallEngine(manifold, metric, retraction)

    def of_shape(self, point: Sequence[int]) -> Engine:
        return self._square if point[-2] == point[-1] else self._tall

    def _of(self, x: Points) -> Engine:
        return StiefelEngine.of_shape(self, x.shape)  # whatever a subclass says of itself

    def coordinates(self, x: Points, a: Points) -> Points:
        return self._of(x).coordinates(x, a)

    def lift(self, x: Points, g: Points) -> Points:
        return self._of(x).lift(x, g)

    def move(self, x: Points, c: Points) -> Points:
        return self._of(x).move(x, c)

    def carry(self, x: Points, y: Points, c: Points) -> Points:
        return self._of(x).carry(x, y, c)

    def coordinate_inner(self, x: Points, c: Points, d: Points) -> Float[Tensor, "*batch"]:
        return self._of(x).coordinate_inner(x, c, d)

    def recenter(self, x: Points, y: Points, c: Points, m: Points) -> Points:
        return self._of(x).recenter(x, y, c, m)

    def polish(self, x: Points) -> Points:
        return self._of(x).polish(x)

    def store(self, x: Points, y: Points, c: Points) -> Points:
        return self._of(x).store(x, y, c)

    def recall(self, x: Points, stored: Points) -> Points:
        return self._of(x).recall(x, stored)

    def mix(self, x: Points, stored: Points, g: Points, keep: float, add: float) -> tuple[Points, Tensor]:
        return self._of(x).mix(x, stored, g, keep, add)

    def advance(self, x: Points, c: Points, size: float | Tensor) -> Points:
        return self._of(x).advance(x, c, size)

    def renormalizes(self, x: Points) -> bool:
        return self._of(x).renormalizes(x)


def log(name: object, x: Points, y: Points, metric: Metric) -> Points:
    """V with exp(X, V) = Y. Raises ValueError where none is found; NaN in a graph that is recorded."""
    if is_square(x):
        return log_of_group(name, x, y)
    if is_wide(x):
        return log(name, x.mH, y.mH, metric).mH
    if x.shape[-1] == 1 and (metric == "euclidean" or not x.is_complex()):
        return arcs.log(x, y, (-2, -1), 1.0)
    v = logarithm(x, y, 1 if metric == "canonical" else 2, partial(exp, metric=metric))
    if may_wait(v) and bool(whole(v.detach().isnan() & are_finite(x, y)).any()):
        raise ValueError(
            f"the logarithm on {name} is found by an iteration, which did not settle for a pair; got x of shape "
            f"{tuple(x.shape)} and y of shape {tuple(y.shape)} with such a pair, farther apart than the injectivity "
            f"radius. Go by a point between them, z = nearest(x + y): log(x, z) leads there, and log(z, y) on."
        )
    return v


def is_square(x: Tensor) -> bool:
    """Whether n = p."""
    return x.shape[-2] == x.shape[-1]
