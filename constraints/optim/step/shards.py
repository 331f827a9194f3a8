"""Sharded parameters in a step: a plain tensor stands in for each of them, with what a process has of its points.

Where every process has whole factors already, because the tensor is replicated, or cut along a batch axis or between
the blocks of a packed one, the stand-in is the memory of the shard, and a step sends nothing. So it is where tall
matrices are cut by rows: a step adds up p x p matrices, see `sliced`. Else it is the whole tensor, on one process, see
`owned`; where two axes of a mesh cut it, on all: point and gradient are gathered, and each writes its own piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from operator import is_
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from manifolds import Manifold

from ...sharding import is_sharded, local, put, somewhere, whole
from .bucket import COUNTS
from .cuts import Cut, cut_of, filled, mesh_axes, placements
from .limits import can_look
from .owned import Owned
from .plan import Member, Plan
from .together import agree_on_looking

T = TypeVar("T")
State = dict[Tensor, dict[str, Any]]
Way = Literal["sliced", "local", "owned"]


class Taken(NamedTuple):
    """What a plan is made of: a member whose parameter is a stand-in, and its gradient."""

    member: Member
    gradient: Tensor


class Shards:
    """The stand-ins of sharded parameters, the plans for them, and their state, which plans keep by stand-in.

    Slices have a plan of their own. In the others an error may stop one process, and it would miss what they add up.
    """

    def __init__(self, slices: bool, numbers: frozenset[str]) -> None:
        """slices: whether tall matrices may be cut by rows; numbers: the keys of state with one number per point."""
        self._slices, self._numbers = slices, numbers
        self._owned = Owned(numbers)
        self._plans: dict[Way, Plan] = {}
        self._inner: dict[Way, State] = {"sliced": {}, "local": {}, "owned": self._owned.inner}
        self._has_owner: dict[Tensor, bool] = {}
        self._stands: dict[Tensor, tuple[Tensor, Cut | None]] = {}
        self._given: dict[Tensor, Tensor] = {}
        self._published: dict[Tensor, tuple[dict[str, Any], dict[str, Any]]] = {}  # what was made of what
        self._first: Tensor | None = None  # of the members of this step
        self._owns = False  # whether some of them have owners

    def plans(self, members: Sequence[Member], options: Any, kinds: Any, state: Any) -> list[Plan]:
        """The plans for these sharded parameters, with their gradients read; a collective where these are sent.
        options: see `Plan`; kinds: changes where other state may be kept."""
        self._first = members[0].parameter if members else None
        mine: dict[Way, list[Taken]] = {"sliced": [], "local": [], "owned": []}
        owned = [each for each in members if self._is_owned(each)]
        if owned:
            taken = self._owned.take([(each, _gradient(each.parameter)) for each in owned], state, kinds)
            mine["owned"] = [Taken(*each) for each in taken]
        self._take([each for each in members if not self._is_owned(each)], state, mine)
        for way, some in mine.items():
            plan, inner = self._plans.pop(way, None), self._inner[way]
            if not some:
                continue
            if plan is None or not plan.fits([each.member.parameter for each in some], options, inner):
                plan = Plan([each.member for each in some], options, inner, self._numbers)
            plan.read_gradients([each.gradient for each in some])
            self._plans[way] = plan
        self._owns = bool(owned)
        return list(self._plans.values())

    def together(self, call: Callable[[Plan], T], plans: Sequence[Plan]) -> list[T]:
        """The results of the calls; on all processes an error where there is one on any. Accelerators, where no values
        are looked at, are not asked."""
        if self._first is None or not can_look(local(self._first).device):
            return list(map(call, plans))
        # also after an error, for the other processes wait in what is added up
        found = [_tried(call, plan) for plan in plans]
        errors = [each for each in found if isinstance(each, ValueError)]
        if not somewhere(bool(errors), self._first):
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
        """Put the points of whole tensors into the shards, and make the state of all that of their stand-ins: of
        shards, DTensors, which checkpoints know."""
        for way, plan in self._plans.items():
            if way == "owned":
                continue
            inner, stands = self._inner[way], [member.parameter for member in plan.members]
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
        if self._owns:
            self._owned.finish(self._plans.get("owned"), state)

    def _is_owned(self, member: Member) -> bool:
        """Whether one process is to have all of it."""
        p = member.parameter
        if p not in self._has_owner:
            self._has_owner[p] = len(mesh_axes(p)) == 1 and cut_of(p, member.manifold, self._slices) is None
        return self._has_owner[p]

    def _take(self, members: Sequence[Member], state: Any, taken: dict[Way, list[Taken]]) -> None:
        """The stand-ins of the others, with the present points and state."""
        stands = [self._stand(each.parameter, each.manifold) for each in members]
        gradients = [_gradient(each.parameter) for each in members]
        for each, (stand, cut), gradient in zip(members, stands, gradients, strict=True):
            p = each.parameter
            if cut is None:
                stand.copy_(whole(p))
            way: Way = "sliced" if cut is not None and cut.sliced else "local"
            entry, known = state.get(p), self._published.get(p)
            if not entry:
                self._inner[way].pop(stand, None)
            elif known is None or entry is not known[1]:  # loaded
                self._inner[way][stand] = {key: self._inside(key, t, p, cut) for key, t in entry.items()}
            inner = each._replace(parameter=stand, manifold=cut.manifold if cut else each.manifold, table=p)
            taken[way].append(Taken(inner, filled(local(gradient), cut) if cut else whole(gradient)))

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

            t = distribute_tensor(t, p.device_mesh, placements(p, axis), src_data_rank=None)
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
        return DTensor.from_local(t, p.device_mesh, placements(p, axis), run_check=False, shape=shape, stride=stride)

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


def _gradient(p: Any) -> Tensor:
    """The gradient, placed as its parameter."""
    g: Any = p.grad
    return g if g.placements == p.placements else g.redistribute(p.device_mesh, p.placements)  # type: ignore[no-any-return]


def _same(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    return entry.keys() == other.keys() and all(map(is_, entry.values(), (other[key] for key in entry)))
