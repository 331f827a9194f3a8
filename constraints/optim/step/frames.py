"""In which numbers an optimizer of torch's kind sees points: as they are, or in coordinates at the point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop

from manifolds import Euclidean, Manifold, Orthogonal, ProductManifold, SpecialOrthogonal, Stiefel
from manifolds.engine import Isometric, engine
from manifolds.kernels.tiny import batch_last, in_order_of, product

from .bucket import Bucket
from .checks import Group, name_in, stacks_of
from .limits import length

Gradient = Callable[[Manifold, Tensor, Tensor], Tensor]
Move = Callable[[Manifold, Tensor, Tensor, Any], Tensor]

ENTRYWISE = frozenset({SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop})
"""Optimizers that move an entry by what its gradients were, and see nothing else of the weight but for its decay."""
MULTIPLES: tuple[type[Optimizer], ...] = (SGD, ASGD)
"""Those whose steps are sums of what they are given: of a length that is that of the gradient, in any numbers."""


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
        return _carried(bucket, y, m, is_mean)

    def stays(self, bucket: Bucket) -> bool:
        return _is_square(bucket) or isinstance(bucket.factor, Euclidean)


@dataclass(frozen=True)
class Orthonormal:
    """Coordinates in an orthonormal basis of T_x, where the metric is not that of entries: an entry of a step is as
    long as it says. The weight is 0 where nothing decays, and is seen as the tangent vector P_x(x) where it does.

    A momentum that second moments divide entry by entry stays with its entries as they do: where transport turns it, as
    along an edge, what is large would be divided by what is small. Only that of SGD is transported."""

    optimizer: Optimizer

    def given(self, bucket: Bucket) -> Tensor:
        return bucket.engine.lift(bucket.x, bucket.g)

    def start(self, bucket: Bucket) -> Tensor:
        if not self._decays(bucket):
            return torch.zeros(bucket.shape, dtype=bucket.dtype, device=bucket.device)
        return _copied(self._weight(bucket), bucket.shape)

    def displacement(self, bucket: Bucket, end: Tensor) -> Tensor:
        return end - self._weight(bucket) if self._decays(bucket) else end

    def reach(self, bucket: Bucket, d: Tensor, lr: Any) -> Tensor:
        return bucket.advance(bucket.engine.coordinates(bucket.x, d), 1.0)

    def carried(self, bucket: Bucket, y: Tensor, m: Tensor, is_mean: bool) -> Tensor:
        return _carried(bucket, y, m, is_mean)

    def stays(self, bucket: Bucket) -> bool:
        return type(self.optimizer) is not SGD

    def _weight(self, bucket: Bucket) -> Tensor:
        assert isinstance(bucket.engine, Isometric)
        return bucket.engine.frame(bucket.x, bucket.factor.project(bucket.x, bucket.x))

    def _decays(self, bucket: Bucket) -> bool:
        return bool(self.optimizer.param_groups[bucket.kind.group].get("weight_decay", 0) != 0)


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
    """The frame of each bucket. Coordinates are for `ENTRYWISE` optimizers where nothing else was asked for, on points
    whose gradient is a projection, and on those of an `Isometric` engine."""

    def __init__(self, optimizer: Optimizer, gradient: Gradient | None, move: Move | None, carry: bool) -> None:
        self._ambient, self._coordinates, self._orthonormal = (
            Ambient(gradient, move),
            Coordinates(),
            Orthonormal(optimizer),
        )
        self._kind, self._plain = type(optimizer), gradient is None and move is None
        self._knows = self._plain and self._kind in ENTRYWISE
        self._carries = carry

    def __call__(self, bucket: Bucket) -> Frame:
        if self._knows and isinstance(bucket.engine, Isometric):
            return self._orthonormal
        return self._coordinates if self._knows and self._carries and is_ambient(bucket.factor) else self._ambient

    def sees(self, group: Group) -> str:
        """What the optimizer sees of the parameters of this group."""
        stacks = (stack for p in group["params"] if self._knows for stack in stacks_of(p, group["manifold"]))
        if any(isinstance(engine(factor), Isometric) for factor, _ in stacks):
            return "orthonormal coordinates"
        return "coordinates" if self._knows and self._carries else "weights"

    def check_metric(self, groups: Sequence[Group], group: Group) -> None:
        """ValueError where entries are shown whose lengths are not those of the metric, to who may choose theirs."""
        if not self._plain:
            return
        for p in group["params"]:
            for factor, _ in stacks_of(p, group["manifold"]):
                if not sees_other_lengths(self._kind, factor):
                    continue
                ways = isinstance(engine(factor), Isometric)
                others = "torch.optim.AdamW or its kin, which see coordinates in it" if ways else "torch.optim.SGD"
                raise ValueError(
                    f"{name_in(groups, p)} of shape {tuple(p.shape)} is on {factor}, whose metric is not that of its "
                    f"entries: {self._kind.__name__} may move them by lr, however far that is here. Write "
                    f"RiemannianAdam(model), or Retracted of {others}; or, if a smaller gradient means a smaller step "
                    f"to it, pass gradient=lambda manifold, x, g: manifold.gradient(x, g)."
                )


def _carried(bucket: Bucket, y: Tensor, m: Tensor, is_mean: bool) -> Tensor:
    c = m if is_mean else bucket.engine.coordinates(bucket.x, m)
    return bucket.engine.recall(y, bucket.engine.store(bucket.x, y, c))


def sees_other_lengths(kind: type[Optimizer], manifold: Manifold) -> bool:
    """Whether an optimizer of this kind is shown entries whose lengths are not those of the metric, and may choose the
    length of its step. The canonical metric of Stiefel is that of entries within a factor of 2."""
    if isinstance(manifold, ProductManifold):
        return any(sees_other_lengths(kind, factor) for factor in manifold.factors)
    own = not isinstance(manifold, Stiefel) and type(manifold).inner is not Manifold.inner
    return own and kind not in MULTIPLES and not (kind in ENTRYWISE and isinstance(engine(manifold), Isometric))


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
