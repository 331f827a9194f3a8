"""Sharded parameters in a step: a plain tensor stands in for each of them, with whole points in it.

Where every process has whole factors already, because the tensor is replicated, or cut along a batch axis or between
the blocks of a packed one, the stand-in is the memory of the shard, and a step sends nothing. Else it is the whole
tensor: point and gradient are gathered, every process makes the same step, and writes its own piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from operator import is_
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from manifolds import BlockSpec, Manifold, ProductManifold
from manifolds.engine import engine

from ...gathering import wholes
from ...sharding import is_sharded, local, put, somewhere, whole
from .plan import Member, Plan

T = TypeVar("T")
State = dict[Tensor, dict[str, Any]]


class Cut(NamedTuple):
    """What a process has of a tensor: whole factors of the manifold, (size of the axis, of this process) of it."""

    manifold: Manifold
    axis: int | None  # of the tensor and of its state; None where it is replicated
    blocks: int | None  # of the whole, where it is cut between blocks


class Shards:
    """The stand-ins of sharded parameters, the plan for them, and their state, which the plan keeps by stand-in."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._inner: State = {}
        self._stands: dict[Tensor, tuple[Tensor, Cut | None]] = {}
        self._given: dict[Tensor, Tensor] = {}
        self._published: dict[Tensor, tuple[dict[str, Any], dict[str, Any]]] = {}  # what was made of what

    def given(self, stand: Tensor) -> Tensor:
        """The parameter that a stand-in stands for, or any other tensor itself."""
        return self._given.get(stand, stand)

    def plans(self, members: Sequence[Member], options: Any, state: Any, numbers: frozenset[str]) -> list[Plan]:
        """The plan for these sharded parameters, if any, with their gradients read; a collective where they are
        gathered."""
        plan = self._plan
        if not members:
            self._plan = None
            return []
        taken = self._take(members, state)
        if plan is None or not plan.fits([stand for stand, _, _ in taken], options, self._inner):
            pairs = zip(members, taken, strict=True)
            inner = [
                each._replace(parameter=stand, manifold=manifold, table=each.parameter)
                for each, (stand, manifold, _) in pairs
            ]
            plan = self._plan = Plan(inner, options, self._inner, numbers)
        plan.read_gradients([gradient for _, _, gradient in taken])
        return [plan]

    def together(self, calls: Iterable[T]) -> list[T]:
        """The results of the calls; on all processes an error where there is one on any. Accelerators, where no values
        are looked at, are not asked."""
        if self._plan is None or not any(bucket.looks for bucket in self._plan.buckets):
            return list(calls)
        error, results = None, []
        try:
            results = list(calls)
        except ValueError as found:
            error = found
        if not somewhere(error is not None, self.given(self._plan.members[0].parameter)):
            return results
        raise error or ValueError(
            "another process refused this step, for a gradient or a value in its part of a sharded parameter; its "
            "error says which. No parameter was changed here either."
        )

    def finish(self, state: Any) -> None:
        """Put the points of gathered tensors into the shards, and make the state of all that of their stand-ins: of
        shards, DTensors, which checkpoints know."""
        if self._plan is None:
            return
        stands = [member.parameter for member in self._plan.members]
        for stand in stands:
            if self._stands[self._given[stand]][1] is None:
                put(self._given[stand], stand)
        self._plan.publish(self._inner)
        for stand in stands:
            p, entry = self._given[stand], self._inner[stand]
            known = self._published.get(p)
            if known is None or not _same(entry, known[0]) or state.get(p) is not known[1]:
                cut = self._stands[p][1]
                state[p] = {key: _outside(t, p, cut) for key, t in entry.items()}
                self._published[p] = dict(entry), state[p]

    def _take(self, members: Sequence[Member], state: Any) -> list[tuple[Tensor, Manifold, Tensor]]:
        """(stand-in, its manifold, its gradient) of each, with the present point and state."""
        stands = [self._stand(each.parameter, each.manifold) for each in members]
        gradients = [_gradient(each.parameter) for each in members]
        far = [i for i, (_, cut) in enumerate(stands) if cut is None]
        gathered = wholes([*(members[i].parameter for i in far), *(gradients[i] for i in far)])
        for k, i in enumerate(far):
            stands[i][0].copy_(gathered[k])
            gradients[i] = gathered[len(far) + k]
        taken = []
        for each, (stand, cut), gradient in zip(members, stands, gradients, strict=True):
            p = each.parameter
            entry, known = state.get(p), self._published.get(p)
            if not entry:
                self._inner.pop(stand, None)
            elif known is None or entry is not known[1]:  # loaded
                self._inner[stand] = {key: _inside(t, p, cut) for key, t in entry.items()}
            taken.append((stand, cut.manifold if cut else each.manifold, local(gradient) if cut else gradient))
        return taken

    def _stand(self, p: Tensor, manifold: Manifold) -> tuple[Tensor, Cut | None]:
        mine = local(p)
        found = self._stands.get(p)
        if found is not None and (found[1] is None or found[0].is_set_to(mine)):
            return found
        cut = cut_of(p, manifold)
        stand = torch.empty(p.shape, dtype=p.dtype, device=mine.device) if cut is None else mine
        if found is not None:
            self._inner.pop(found[0], None)
            self._published.pop(p, None)
            del self._given[found[0]]
        self._stands[p], self._given[stand] = (stand, cut), p
        return stand, cut


def _gradient(p: Any) -> Tensor:
    """The gradient, placed as its parameter."""
    g: Any = p.grad
    return g if g.placements == p.placements else g.redistribute(p.device_mesh, p.placements)  # type: ignore[no-any-return]


def cut_of(p: Any, manifold: Manifold) -> Cut | None:
    """How the processes share the factors of p; None where a factor is not whole on one of them, or one has none. The
    same on all processes."""
    cuts = [(placement.dim % p.dim(), size) for placement, size in _placed(p) if placement.is_shard() and size > 1]
    if not cuts:
        return Cut(manifold, None, None)
    (axis, count), shape = cuts[0], tuple(p.shape)
    chunk = -(-shape[axis] // count)
    if len(cuts) > 1 or chunk * (count - 1) >= shape[axis]:
        return None
    if axis < len(shape) - manifold.ndim:
        piece = (*shape[:axis], chunk, *shape[axis + 1 :])
        return Cut(manifold, axis, None) if _leads(manifold, axis, shape) and _leads(manifold, axis, piece) else None
    blocks = _blocks(manifold, shape)
    if axis != 0 or blocks is None or chunk % (rows := shape[0] // blocks):
        return None
    mine = local(p).shape[0] // rows
    return Cut(ProductManifold(manifold.factors[:mine], BlockSpec(rows=mine, axis=0)), 0, blocks)  # type: ignore[attr-defined]


def _placed(p: Any) -> Sequence[tuple[Any, int]]:
    return [(placement, p.device_mesh.size(i)) for i, placement in enumerate(p.placements)]


def _leads(manifold: Manifold, axis: int, shape: tuple[int, ...]) -> bool:
    """Whether this batch axis is that of all stacks of factors, too."""
    stacks = engine(manifold).split(torch.empty(shape, device="meta"))
    return all(tuple(stack.shape[: axis + 1]) == shape[: axis + 1] for _, stack in stacks)


def _blocks(manifold: Manifold, shape: tuple[int, ...]) -> int | None:
    """How many equal blocks are stacked on axis 0; None for other layouts."""
    if not isinstance(manifold, ProductManifold) or len(shape) != manifold.ndim or len(set(manifold.factors)) > 1:
        return None
    layout, count = manifold.layout, len(manifold)
    plain = layout is None or (
        isinstance(layout, BlockSpec) and layout.rows == count and layout.axis in (0, -len(shape))
    )
    return count if plain and shape[0] % count == 0 else None


def _inside(t: Any, p: Any, cut: Cut | None) -> Any:
    """Saved state as a stand-in needs it."""
    if not isinstance(t, Tensor) or t.dim() == 0 or cut is None or cut.axis is None:
        return whole(t) if isinstance(t, Tensor) else t
    if is_sharded(t):
        return local(t)
    from torch.distributed.tensor import distribute_tensor

    return local(distribute_tensor(t, p.device_mesh, p.placements, src_data_rank=None))


def _outside(t: Any, p: Any, cut: Cut | None) -> Any:
    """State as a checkpoint needs it."""
    if not isinstance(t, Tensor) or t.dim() == 0 or cut is None or cut.axis is None:
        return t
    from torch.distributed.tensor import DTensor

    is_cut_alike = cut.blocks is None or t.shape[0] == local(p).shape[0]
    size = p.shape[cut.axis] if is_cut_alike else cut.blocks
    shape = torch.Size([*t.shape[: cut.axis], size or 0, *t.shape[cut.axis + 1 :]])
    stride = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    return DTensor.from_local(t, p.device_mesh, p.placements, run_check=False, shape=shape, stride=stride)


def _same(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    return entry.keys() == other.keys() and all(map(is_, entry.values(), (other[key] for key in entry)))
