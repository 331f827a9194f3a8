"""What of the state of an optimizer follows the points that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from manifolds import Manifold

from .bucket import Bucket
from .checks import Group, name_in
from .frames import Frame
from .plan import Member, Plan

MOMENTA = ("exp_avg", "momentum_buffer")
"""Keys under which optimizers keep means of gradients: tangent vectors, where the gradients are."""

POINTS = ("z", "ax")
"""Keys under which they keep a second point, as Schedule-Free and ASGD do."""

State = Mapping[Tensor, Mapping[str, Any]]


def check_moments(groups: Sequence[Group], p: Tensor, entry: Mapping[str, Any]) -> None:
    """ValueError where the first moments of a parameter have another shape or dtype than it has now."""
    for key in MOMENTA:
        m = entry.get(key)
        if isinstance(m, Tensor) and (m.shape, m.dtype) != (p.shape, p.dtype):
            way = (
                "Convert all state, optimizer.load_state_dict(optimizer.state_dict())"
                if m.shape == p.shape
                else "Drop its state, optimizer.state.pop(parameter), to start again"
            )
            raise ValueError(
                f"{name_in(groups, p)} has the shape {tuple(p.shape)} and {p.dtype} now, and its {key!r} "
                f"{tuple(m.shape)} and {m.dtype}. Nothing was changed. {way}, or make a new optimizer."
            )


def entries(state: State, plan: Plan, key: str) -> Iterator[tuple[Tensor | None, Member]]:
    """The state under this key, where it is a tensor like the parameter, member by member."""
    for member in plan.members:
        value = state[member.parameter].get(key) if member.parameter in state else None
        fits = isinstance(value, Tensor) and value.shape == member.parameter.shape and not value.is_sparse
        yield (value if fits else None), member


def carry(
    state: State, plan: Plan, means: frozenset[str], by: Callable[[Bucket], Frame], reached: Sequence[Tensor]
) -> None:
    """Take first moments to the points that are reached. means: the keys of means of what the optimizer was given."""
    if all(by(bucket).stays(bucket) or bucket.moves is False for bucket in plan.buckets):
        return
    for key in MOMENTA:
        values = list(entries(state, plan, key))
        if all(value is None for value, _ in values):
            continue
        rows = plan.gather([torch.zeros_like(m.parameter) if v is None else v for v, m in values])
        there = [_carried(b, y, m, key in means, by(b)) for b, y, m in zip(plan.buckets, reached, rows, strict=True)]
        for (value, _), new in zip(values, plan.spread(there), strict=True):
            if value is not None and not value.is_set_to(new):
                value.copy_(new)


def second_points(state: State, plan: Plan, first: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Second points, by key and parameter; the first ones where there are none yet."""
    return {
        key: [x if z is None else z.clone() for (z, _), x in zip(entries(state, plan, key), first, strict=True)]
        for key in POINTS
    }


def back(manifold: Manifold, x: Tensor, a: Tensor) -> Tensor:
    """R_x(P_x(a - x))."""
    return manifold.retract(x, manifold.project(x, a - x))


def _carried(bucket: Bucket, y: Tensor, m: Tensor, is_mean: bool, frame: Frame) -> Tensor:
    """The moment at y; m of points that stay."""
    if bucket.moves is False or frame.stays(bucket):
        return m
    if bucket.ok is None:
        return frame.carried(bucket, y, m, is_mean)
    return torch.where(bucket.per_point(bucket.ok), frame.carried(bucket, y, m.clone(), is_mean), m)
