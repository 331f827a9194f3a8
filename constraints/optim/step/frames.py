"""In which numbers an optimizer of torch's kind sees points: as they are, or in coordinates at the point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop

from manifolds import Euclidean, Manifold, Orthogonal, SpecialOrthogonal, Stiefel
from manifolds.kernels.tiny import batch_last, in_order_of, product

from .bucket import Bucket
from .limits import length

Gradient = Callable[[Manifold, Tensor, Tensor], Tensor]
Move = Callable[[Manifold, Tensor, Tensor, Any], Tensor]

ENTRYWISE = frozenset({SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop})
"""Optimizers that move an entry by what its gradients were, and see nothing else of the weight but for its decay."""


class Frame(Protocol):
    """How the points of a bucket and their gradients are shown to an optimizer, and what it did is understood."""

    def given(self, bucket: Bucket) -> Tensor:
        """What the optimizer is given in place of the gradient; nobody else's memory but for that of bucket.g."""

    def start(self, bucket: Bucket) -> Tensor:
        """What it is given in place of the points, in new memory or that of bucket.g, of which this is the last use."""

    def displacement(self, bucket: Bucket, end: Tensor) -> Tensor:
        """Where it has gone, from `start` to the end."""

    def reach(self, bucket: Bucket, d: Tensor, lr: Any) -> Tensor:
        """The points that this displacement means. May overwrite d."""

    def carried(self, bucket: Bucket, y: Tensor, m: Tensor, is_mean: bool) -> Tensor:
        """A moment at x, as it is at y; is_mean: it is a mean of what was given. May overwrite m."""

    def stays(self, bucket: Bucket) -> bool:
        """Whether `carried` is the moment itself."""


class Coordinates:
    """Coordinates at x: of the gradient, and of the step. Where all points have one norm the weight is 0, which decay
    leaves as it is, and of which no digit of the step is lost."""

    def given(self, bucket: Bucket) -> Tensor:
        c = bucket.engine.lift(bucket.x, bucket.g)
        return _own(c, bucket.g) if bucket.factor.constant_norm else c

    def start(self, bucket: Bucket) -> Tensor:
        if not bucket.factor.constant_norm:
            return _copied(bucket.x, bucket.shape)
        g = bucket.release_gradients()  # which the projection has left, and of several parameters are a copy
        if len(bucket.leaves) > 1 and g.shape == bucket.shape and g.is_contiguous():
            return g.zero_()
        return torch.zeros(bucket.shape, dtype=bucket.dtype, device=bucket.device)

    def displacement(self, bucket: Bucket, end: Tensor) -> Tensor:
        return end if bucket.factor.constant_norm else end - bucket.x

    def reach(self, bucket: Bucket, d: Tensor, lr: Any) -> Tensor:
        engine, x = bucket.engine, bucket.x
        at_once = engine.reaches and engine.renormalizes(x) and bucket.looks and bucket.moves is not False
        if at_once and length(d, 1.0, len(bucket.kind.point)) <= 1:  # longer steps are looked at more closely
            return bucket.settle(engine.reach(x, d))
        return bucket.advance(engine.coordinates(x, d), 1.0)

    def carried(self, bucket: Bucket, y: Tensor, m: Tensor, is_mean: bool) -> Tensor:
        c = m if is_mean else bucket.engine.coordinates(bucket.x, m)
        return bucket.engine.recall(y, bucket.engine.store(bucket.x, y, c))

    def stays(self, bucket: Bucket) -> bool:
        return _is_square(bucket) or isinstance(bucket.factor, Euclidean)


@dataclass(frozen=True)
class Ambient:
    """The points and tangent vectors themselves."""

    gradient: Gradient | None = None
    move: Move | None = None

    def given(self, bucket: Bucket) -> Tensor:
        if self.gradient is not None:
            g = self.gradient(bucket.factor, bucket.x, bucket.g)
        elif is_ambient(bucket.factor):
            g = _vector(bucket, bucket.x, bucket.engine.lift(bucket.x, bucket.g))
        else:
            g = bucket.factor.gradient(bucket.x, bucket.g)
        return _own(g, bucket.g)

    def start(self, bucket: Bucket) -> Tensor:
        return _copied(bucket.x, bucket.shape)

    def displacement(self, bucket: Bucket, end: Tensor) -> Tensor:
        return end - bucket.x

    def reach(self, bucket: Bucket, d: Tensor, lr: Any) -> Tensor:
        factor, x = bucket.factor, bucket.x
        if self.move is not None:
            return bucket.settle(bucket.engine.polish(self.move(factor, x, d, lr)))
        if is_ambient(factor):
            return bucket.advance(bucket.engine.lift(x, d), 1.0)
        return bucket.settle(bucket.engine.polish(factor.retract(x, factor.project(x, d))))

    def carried(self, bucket: Bucket, y: Tensor, m: Tensor, is_mean: bool) -> Tensor:
        factor, engine, x = bucket.factor, bucket.engine, bucket.x
        if is_ambient(factor):
            return _vector(bucket, y, engine.carry(x, y, engine.lift(x, m)))
        return factor.transport(x, y, factor.project(x, m))

    def stays(self, bucket: Bucket) -> bool:
        return False


class Frames:
    """The frame of each bucket. Coordinates are for `ENTRYWISE` optimizers on points whose gradient is a projection,
    where nothing else was asked for."""

    def __init__(self, optimizer: Optimizer, gradient: Gradient | None, move: Move | None, carry: bool) -> None:
        self._ambient, self._coordinates = Ambient(gradient, move), Coordinates()
        plain = gradient is None and move is None and carry
        self.sees = "coordinates" if plain and type(optimizer) in ENTRYWISE else "weights"

    def __call__(self, bucket: Bucket) -> Frame:
        return self._coordinates if self.sees == "coordinates" and is_ambient(bucket.factor) else self._ambient


def is_ambient(factor: Manifold) -> bool:
    """Whether the Riemannian gradient is the projection, so that `Engine.lift` gives coordinates of a projection."""
    if isinstance(factor, Stiefel):
        return factor.metric == "euclidean"
    return type(factor).gradient is Manifold.gradient


def _vector(bucket: Bucket, x: Tensor, c: Tensor) -> Tensor:
    """The tangent vector at x with coordinates c: X C on square matrices, else c."""
    return in_order_of(product(batch_last(x), batch_last(c)), x) if _is_square(bucket) else c


def _is_square(bucket: Bucket) -> bool:
    """Whether coordinates are skew matrices, the same at all points."""
    square = bucket.kind.point[-1:] == bucket.kind.point[-2:-1]
    return square and isinstance(bucket.factor, (Orthogonal, SpecialOrthogonal, Stiefel))


def _own(a: Tensor, g: Tensor) -> Tensor:
    """a, in memory that is not that of g."""
    return a.clone() if a.data_ptr() == g.data_ptr() else a


def _copied(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(shape).clone(memory_format=torch.contiguous_format)
