"""What of the state of an optimizer follows the points that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from manifolds import Manifold, Orthogonal, SpecialOrthogonal, Stiefel
from manifolds.kernels.tiny import batch_last, in_order_of, product

from .bucket import Bucket
from .plan import Member, Plan

MOMENTA = ("exp_avg", "momentum_buffer")
"""Keys under which optimizers keep means of gradients: tangent vectors, where the gradients are."""

POINTS = ("z", "ax")
"""Keys under which they keep a second point, as Schedule-Free and ASGD do."""

State = Mapping[Tensor, Mapping[str, Any]]


def entries(state: State, plan: Plan, key: str) -> Iterator[tuple[Tensor | None, Member]]:
    """The state under this key, where it is a tensor like the parameter, member by member."""
    for member in plan.members:
        value = state[member.parameter].get(key) if member.parameter in state else None
        fits = isinstance(value, Tensor) and value.shape == member.parameter.shape and not value.is_sparse
        yield (value if fits else None), member


def momenta(state: State, plan: Plan) -> dict[str, list[Tensor]]:
    """First moments, by key and bucket; zero for parameters that have none."""
    rows = {}
    for key in MOMENTA:
        values = list(entries(state, plan, key))
        if any(value is not None for value, _ in values):
            rows[key] = plan.gather([torch.zeros_like(m.parameter) if v is None else v for v, m in values])
    return rows


def second_points(state: State, plan: Plan, first: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Second points, by key and parameter; the first ones where there are none yet."""
    return {
        key: [x if z is None else z.clone() for (z, _), x in zip(entries(state, plan, key), first, strict=True)]
        for key in POINTS
    }


def carried(bucket: Bucket, y: Tensor, m: Tensor) -> Tensor:
    """The tangent part of m at x, transported to y; m of points that stay."""
    if bucket.moves is False:
        return m
    factor, engine, x = bucket.factor, bucket.engine, bucket.x
    if is_ambient(factor):
        there = vector(bucket, y, engine.carry(x, y, engine.lift(x, m)))
    else:
        there = factor.transport(x, y, factor.project(x, m))
    return there if bucket.ok is None else torch.where(bucket.per_point(bucket.ok), there, m)


def vector(bucket: Bucket, x: Tensor, c: Tensor) -> Tensor:
    """The tangent vector at x with coordinates c: X C on square matrices, else c."""
    square = isinstance(bucket.factor, (Orthogonal, SpecialOrthogonal, Stiefel)) and x.shape[-1] == x.shape[-2]
    return in_order_of(product(batch_last(x), batch_last(c)), x) if square else c


def back(manifold: Manifold, x: Tensor, a: Tensor) -> Tensor:
    """R_x(P_x(a - x))."""
    return manifold.retract(x, manifold.project(x, a - x))


def is_ambient(factor: Manifold) -> bool:
    """Whether the Riemannian gradient is the projection, so that `Engine.lift` gives coordinates of a projection."""
    if isinstance(factor, Stiefel):
        return factor.metric == "euclidean"
    return type(factor).gradient is Manifold.gradient
