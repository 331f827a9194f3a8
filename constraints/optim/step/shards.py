"""Sharded parameters in a step: a plain tensor stands in for each of them, with what a process has of its points.

Where every process has whole factors already, because the tensor is replicated, or cut along a batch axis or between
the blocks of a packed one, the stand-in is the memory of the shard, and a step sends nothing. So it is where tall
matrices are cut by rows: a step adds up p x p matrices, see `sliced`. Else it is the whole tensor, on one process, see
`owned`; where two axes of a mesh cut it, on all: point and gradient are gathered, and each writes its own piece.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from operator import is_
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from manifolds import Manifold

from ...sharding import Sharing, local, put, whole
from ...summing import Parts
from .bucket import COUNTS
from .checks import Group, name_in
from .cuts import Cut, cut_of, filled, mesh_axes
from .limits import can_look
from .owned import Owned
from .pieces import assembled, cut_alike, gradient_of
from .plan import Member, Plan
from .together import agree_on_looking

T = TypeVar("T")
State = dict[Tensor, dict[str, Any]]
Way = Hashable
"""The parts of what has an owner; SLICED; or else the mesh and those of its axes that cut the tensor."""

SLICED = "sliced"


class Taken(NamedTuple):
    """What a plan is made of: a member whose parameter is a stand-in, and its gradient."""

    member: Member
    gradient: Tensor


class Shards:
    """The stand-ins of sharded parameters, the plans for them, and their state, which plans keep by stand-in.

    Slices have a plan of their own. In the others an error may stop one process, and it would miss what they add up.
    So has what is cut along the same axes: processes with equal points step them in equal batches, and to equal bits,
    whatever else each of them has.
    """

    def __init__(self, slices: bool, numbers: frozenset[str]) -> None:
        """slices: whether tall matrices may be cut by rows; numbers: the keys of state with one number per point."""
        self._slices, self._numbers = slices, numbers
        self._owned: dict[Parts, Owned] = {}
        self._plans: dict[Way, Plan] = {}
        self._inner: defaultdict[Way, State] = defaultdict(dict)
        self._ways: dict[Tensor, Way] = {}
        self._stands: dict[Tensor, tuple[Tensor, Cut | None]] = {}
        self._given: dict[Tensor, Tensor] = {}
        self._published: dict[Tensor, tuple[dict[str, Any], dict[str, Any]]] = {}  # what was made of what
        self._open: list[Parts] = []  # of the members of this step that have owners
        self._all: list[Tensor] = []

    def include(self, sharded: Sequence[Tensor]) -> None:
        """Parameters that may have a gradient; of one mesh the same on all its processes."""
        self._all += sharded
        self._sharing = Sharing(self._all)
        self._looks = can_look(self._sharing.device)

    def check_alike(self, groups: Sequence[Group]) -> None:
        """ValueError, on all processes, where one has a gradient that another has not, and would send what the other
        does not wait for; a collective. Accelerators, where nothing is looked at, are not asked."""
        have = [p.grad is not None for p in self._all]
        if not self._looks or self._sharing.agree(have) or self._are_alike_on_each_mesh():
            return
        missing = [p for p, has in zip(self._all, have, strict=True) if not has]
        missing.sort(key=lambda p: not p.requires_grad)  # those that are not meant to have one last
        here = f"none of {name_in(groups, missing[0])}" if missing else "one of each"
        raise ValueError(
            f"the processes have gradients of different sharded parameters; this one has {here}. Nothing was changed. "
            f"Before the step, on all processes, give each that is trained and has none p.grad = torch.zeros_like(p)."
        )

    def _are_alike_on_each_mesh(self) -> bool:
        """Whether those that share a mesh have gradients of the same parameters on it, as stages and experts may that
        are not of one number."""
        there: dict[Any, list[Any]] = {}
        for p in self._all:
            there.setdefault(p.device_mesh, []).append(p)  # type: ignore[attr-defined]
        alike = [Sharing(ps).agree([p.grad is not None for p in ps]) for ps in there.values()]
        return not self._sharing.somewhere(not all(alike))

    def plans(self, members: Sequence[Member], options: Any, kinds: Any, state: Any) -> list[Plan]:
        """The plans for these sharded parameters, with their gradients read; a collective where these are sent.
        options: see `Plan`; kinds: changes where other state may be kept."""
        mine: defaultdict[Way, list[Taken]] = defaultdict(list)
        owned: defaultdict[Parts, list[tuple[Member, Tensor]]] = defaultdict(list)
        for each in members:
            if isinstance(way := self._way(each), Parts):
                owned[way].append((each, gradient_of(each.parameter)))
        self._open = list(owned)
        for parts, some in owned.items():
            if parts not in self._owned:
                self._owned[parts] = Owned(parts, self._numbers)
                self._inner[parts] = self._owned[parts].inner
            mine[parts] = [Taken(*each) for each in self._owned[parts].take(some, state, kinds)]
        self._take([each for each in members if not isinstance(self._way(each), Parts)], state, mine)
        old, self._plans = self._plans, {}
        for way, each_of in mine.items():
            plan, inner = old.get(way), self._inner[way]
            if not each_of:
                continue
            if plan is None or not plan.fits([each.member.parameter for each in each_of], options, inner):
                plan = Plan([each.member for each in each_of], options, inner, self._numbers)
            plan.read_gradients([each.gradient for each in each_of])
            self._plans[way] = plan
        return list(self._plans.values())

    def together(self, call: Callable[[Plan], T], plans: Sequence[Plan]) -> list[T]:
        """The results of the calls; on all processes an error where there is one on any. Accelerators, where no values
        are looked at, are not asked."""
        if not self._looks:
            return list(map(call, plans))
        # also after an error, for the other processes wait in what is added up
        found = [_tried(call, plan) for plan in plans]
        errors = [each for each in found if isinstance(each, Exception)]
        if not self._sharing.somewhere(bool(errors)):
            return [each for each in found if not isinstance(each, Exception)]
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
            if isinstance(way, Parts):
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
        for parts in self._open:
            self._owned[parts].finish(self._plans.get(parts), state)

    def _way(self, member: Member) -> Way:
        p: Any = member.parameter
        if p not in self._ways:
            cut, axes = cut_of(p, member.manifold, self._slices), mesh_axes(p)
            is_owned, is_sliced = cut is None and len(axes) == 1, cut is not None and cut.sliced
            way = Parts(p.device_mesh, axes[0]) if is_owned else SLICED if is_sliced else (p.device_mesh, *axes)
            self._ways[p] = way
        return self._ways[p]

    def _take(self, members: Sequence[Member], state: Any, taken: dict[Way, list[Taken]]) -> None:
        """The stand-ins of the others, with the present points and state."""
        stands = [self._stand(each.parameter, each.manifold) for each in members]
        gradients = [gradient_of(each.parameter) for each in members]
        for each, (stand, cut), gradient in zip(members, stands, gradients, strict=True):
            p = each.parameter
            if cut is None:
                stand.copy_(whole(p))
            way = self._way(each)
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
        if found is not None and _still_stands(*found, mine):
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
        return filled(local(cut_alike(t, p, axis)), cut)

    def _outside(self, key: str, t: Any, p: Any, cut: Cut | None) -> Any:
        """State as a checkpoint needs it."""
        axis = self._axis(key, t, cut)
        if axis is None or cut is None:
            return t
        mine = local(p)
        if cut.sliced:
            if cut.blocks and t.dim() == 2:  # a single row, whose blocks follow one another in memory
                t, axis = t.view(cut.blocks, 1, -1), 1
            size, t = p.shape[axis - t.dim()], t if mine.numel() else t.narrow(axis, 0, 0)
        else:
            size = p.shape[axis] if cut.blocks is None or t.shape[0] == mine.shape[0] else cut.blocks
        return assembled(t, (*t.shape[:axis], size or 0, *t.shape[axis + 1 :]), p, axis)

    def _axis(self, key: str, t: Any, cut: Cut | None) -> int | None:
        """Along which axis this tensor of the state is cut; None where all processes have all of it."""
        if not isinstance(t, Tensor) or t.dim() == 0 or cut is None or cut.axis is None:
            return None
        is_number = key.partition(":")[0] in COUNTS | self._numbers
        return (None if is_number else cut.axis + t.dim()) if cut.sliced else cut.axis


def _still_stands(stand: Tensor, cut: Cut | None, mine: Tensor) -> bool:
    """Whether it is the memory of the shard, or memory of its own where there is none that it could be."""
    if cut is not None and mine.numel():
        return stand.is_set_to(mine)
    return (stand.dtype, stand.device) == (mine.dtype, mine.device)


def _tried(call: Callable[[Plan], T], plan: Plan) -> T | Exception:
    try:
        return call(plan)
    except Exception as error:
        return error


def _same(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    return entry.keys() == other.keys() and all(map(is_, entry.values(), (other[key] for key in entry)))
