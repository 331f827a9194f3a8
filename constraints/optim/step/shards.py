"""Sharded parameters in a step: a plain tensor stands in for each of them, with what a process has of its points.

Where every process has whole factors already, because the tensor is replicated, or cut along a batch axis or between
the blocks of a packed one, the stand-in is the memory of the shard, and a step sends nothing. So it is where tall
matrices are cut by rows: a step adds up p x p matrices, see `sliced`. Else it is the whole tensor: point and gradient
are gathered, every process makes the same step, and writes its own piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from operator import is_
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from manifolds import Manifold

from ...gathering import wholes
from ...sharding import is_sharded, local, put, somewhere, whole
from .bucket import COUNTS
from .cuts import Cut, cut_of, filled
from .plan import Member, Plan
from .together import agree_on_looking

T = TypeVar("T")
State = dict[Tensor, dict[str, Any]]


class Taken(NamedTuple):
    """What a plan is made of: a member whose parameter is a stand-in, its gradient, whether it is sliced."""

    member: Member
    gradient: Tensor
    sliced: bool


class Shards:
    """The stand-ins of sharded parameters, the plans for them, and their state, which plans keep by stand-in.

    Slices have a plan of their own. In the others an error may stop one process, and it would miss what they add up.
    """

    def __init__(self, slices: bool, numbers: frozenset[str]) -> None:
        """slices: whether tall matrices may be cut by rows; numbers: the keys of state with one number per point."""
        self._slices, self._numbers = slices, numbers
        self._plans: dict[bool, Plan] = {}  # of slices or not, as the state
        self._inner: dict[bool, State] = {True: {}, False: {}}
        self._stands: dict[Tensor, tuple[Tensor, Cut | None]] = {}
        self._given: dict[Tensor, Tensor] = {}
        self._published: dict[Tensor, tuple[dict[str, Any], dict[str, Any]]] = {}  # what was made of what

    def given(self, stand: Tensor) -> Tensor:
        """The parameter that a stand-in stands for, or any other tensor itself."""
        return self._given.get(stand, stand)

    def plans(self, members: Sequence[Member], options: Any, state: Any) -> list[Plan]:
        """The plans for these sharded parameters, with their gradients read; a collective where they are gathered."""
        taken = self._take(members, state)
        for sliced in (True, False):
            mine = [each for each in taken if each.sliced == sliced]
            plan, inner = self._plans.pop(sliced, None), self._inner[sliced]
            if not mine:
                continue
            if plan is None or not plan.fits([each.member.parameter for each in mine], options, inner):
                plan = Plan([each.member for each in mine], options, inner, self._numbers)
            plan.read_gradients([each.gradient for each in mine])
            self._plans[sliced] = plan
        return list(self._plans.values())

    def together(self, call: Callable[[Plan], T], plans: Sequence[Plan]) -> list[T]:
        """The results of the calls; on all processes an error where there is one on any. Accelerators, where no values
        are looked at, are not asked."""
        mine = list(self._plans.values())
        if not any(bucket.looks for plan in mine for bucket in plan.buckets):
            return list(map(call, plans))
        # also after an error, for the other processes wait in what is added up
        found = [_tried(call, plan) for plan in plans]
        errors = [each for each in found if isinstance(each, ValueError)]
        if not somewhere(bool(errors), self.given(mine[0].members[0].parameter)):
            return [each for each in found if not isinstance(each, ValueError)]
        raise next(iter(errors), None) or ValueError(
            "another process refused this step, for a gradient or a value in its part of a sharded parameter; its "
            "error says which. No parameter was changed here either."
        )

    def agree(self) -> None:
        """Let all processes look at the slices of which one has changed; a collective on CPU, where there are any."""
        for plan in self._plans.values():
            agree_on_looking(plan.buckets)

    def finish(self, state: Any) -> None:
        """Put the points of gathered tensors into the shards, and make the state of all that of their stand-ins: of
        shards, DTensors, which checkpoints know."""
        for sliced, plan in self._plans.items():
            inner, stands = self._inner[sliced], [member.parameter for member in plan.members]
            for stand in stands:
                if self._stands[self._given[stand]][1] is None:
                    put(self._given[stand], stand)
            plan.publish(inner)
            for stand in stands:
                p, entry = self._given[stand], inner[stand]
                known = self._published.get(p)
                if known is None or not _same(entry, known[0]) or state.get(p) is not known[1]:
                    cut = self._stands[p][1]
                    state[p] = {key: self._outside(key, t, p, cut) for key, t in entry.items()}
                    self._published[p] = dict(entry), state[p]

    def _take(self, members: Sequence[Member], state: Any) -> list[Taken]:
        """The stand-ins, with the present points and state."""
        stands = [self._stand(each.parameter, each.manifold) for each in members]
        gradients = [_gradient(each.parameter) for each in members]
        far = [i for i, (_, cut) in enumerate(stands) if cut is None]
        gathered = wholes([*(members[i].parameter for i in far), *(gradients[i] for i in far)])
        for k, i in enumerate(far):
            stands[i][0].copy_(gathered[k])
            gradients[i] = gathered[len(far) + k]
        taken = []
        for each, (stand, cut), gradient in zip(members, stands, gradients, strict=True):
            p, sliced = each.parameter, cut is not None and cut.sliced
            entry, known = state.get(p), self._published.get(p)
            if not entry:
                self._inner[sliced].pop(stand, None)
            elif known is None or entry is not known[1]:  # loaded
                self._inner[sliced][stand] = {key: self._inside(key, t, p, cut) for key, t in entry.items()}
            inner = each._replace(parameter=stand, manifold=cut.manifold if cut else each.manifold, table=p)
            taken.append(Taken(inner, filled(local(gradient), cut) if cut else gradient, sliced))
        return taken

    def _stand(self, p: Tensor, manifold: Manifold) -> tuple[Tensor, Cut | None]:
        mine = local(p)
        found = self._stands.get(p)
        if found is not None and (found[1] is None or not mine.numel() or found[0].is_set_to(mine)):
            return found
        cut = cut_of(p, manifold, self._slices)
        stand = torch.empty(p.shape, dtype=p.dtype, device=mine.device) if cut is None else filled(mine, cut)
        if found is not None:
            for inner in self._inner.values():
                inner.pop(found[0], None)
            self._published.pop(p, None)
            del self._given[found[0]]
        self._stands[p], self._given[stand] = (stand, cut), p
        return stand, cut

    def _inside(self, key: str, t: Any, p: Any, cut: Cut | None) -> Any:
        """Saved state as a stand-in needs it."""
        axis = self._axis(key, t, cut)
        if axis is None or cut is None:
            return whole(t) if isinstance(t, Tensor) else t
        if not is_sharded(t):
            from torch.distributed.tensor import distribute_tensor

            t = distribute_tensor(t, p.device_mesh, _placements(p, axis), src_data_rank=None)
        return filled(local(t), cut)

    def _outside(self, key: str, t: Any, p: Any, cut: Cut | None) -> Any:
        """State as a checkpoint needs it."""
        axis = self._axis(key, t, cut)
        if axis is None or cut is None:
            return t
        from torch.distributed.tensor import DTensor

        mine = local(p)
        if cut.sliced:
            if cut.blocks and t.dim() == 2:  # a single row, whose blocks follow one another in memory
                t, axis = t.view(cut.blocks, 1, -1), 1
            size, t = p.shape[axis - t.dim()], t if mine.numel() else t.narrow(axis, 0, 0)
        else:
            size = p.shape[axis] if cut.blocks is None or t.shape[0] == mine.shape[0] else cut.blocks
        shape = torch.Size([*t.shape[:axis], size or 0, *t.shape[axis + 1 :]])
        stride = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
        return DTensor.from_local(t, p.device_mesh, _placements(p, axis), run_check=False, shape=shape, stride=stride)

    def _axis(self, key: str, t: Any, cut: Cut | None) -> int | None:
        """Along which axis this tensor of the state is cut; None where all processes have all of it."""
        if not isinstance(t, Tensor) or t.dim() == 0 or cut is None or cut.axis is None:
            return None
        is_number = key.partition(":")[0] in COUNTS | self._numbers
        return (None if is_number else cut.axis + t.dim()) if cut.sliced else cut.axis


def _tried(call: Callable[[Plan], T], plan: Plan) -> T | ValueError:
    try:
        return call(plan)
    except ValueError as error:
        return error


def _placements(p: Any, axis: int) -> list[Any]:
    """Those of p, for a tensor that is cut along this axis."""
    from torch.distributed.tensor import Shard

    return [Shard(axis) if placement.is_shard() else placement for placement in p.placements]


def _gradient(p: Any) -> Tensor:
    """The gradient, placed as its parameter."""
    g: Any = p.grad
    return g if g.placements == p.placements else g.redistribute(p.device_mesh, p.placements)  # type: ignore[no-any-return]


def _same(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    return entry.keys() == other.keys() and all(map(is_, entry.values(), (other[key] for key in entry)))
