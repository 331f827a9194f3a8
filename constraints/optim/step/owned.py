"""Sharded parameters none of whose processes has whole factors: each is stepped by one process, its owner.

In a step the pieces of points, gradients and state go to the owners, all to all, and those of points and state back.
What a process keeps is pieces, of state too, so that checkpoints are of one kind; numbers of the state, one for each
point, all processes have.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...exchange import Deal, dealt, gathered
from ...sharding import local, whole
from ...summing import Parts
from .bucket import COUNTS
from .checks import stacks_of
from .pieces import assembled, cut_alike
from .plan import Member, Plan

Entry = dict[str, Any]


class Kept(NamedTuple):
    """How a tensor of the state is kept."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int | None  # along which it is cut; None where all have it


class Owned:
    """The parameters that these processes share and that have owners, and what this one owns: whole tensors."""

    def __init__(self, parts: Parts, numbers: frozenset[str]) -> None:
        self._parts, self._whole = parts, numbers | COUNTS
        self.inner: dict[Tensor, Entry] = {}
        self._owners: dict[Tensor, int] = {}
        self._loads = [0] * parts.count
        self._stands: dict[Tensor, Tensor] = {}  # of those that are owned here
        self._known: dict[Tensor, tuple[Entry, list[Kept]]] = {}  # the state of each as it was left
        self._members: list[tuple[Member, int]] = []  # with the axis that is cut
        self._options: Any = None
        self._is_open = False  # whether a step has begun and not come to its end

    def take(self, members: Sequence[tuple[Member, Tensor]], state: Any, options: Any) -> list[tuple[Member, Tensor]]:
        """Members whose parameters are whole, with their gradients, of those that are owned here; a collective.
        options: changes where other state may be kept."""
        if self._is_open or options != self._options:
            self._known.clear()
        self._is_open, self._options = True, options
        self._members = [(member, self._axis(member.parameter)) for member, _ in members]
        self._assign()
        deals, pieces, kept = [], [], []
        for (member, gradient), (_, axis) in zip(members, self._members, strict=True):
            p = member.parameter
            known, entry = self._known.get(p), state.get(p) or {}
            if known is None or known[0] is not entry:
                self._known.pop(p, None)
                layout = [self._layout(key, tuple(t.shape), t.dtype, p, axis) for key, t in entry.items()]
                if entry:
                    state[p] = entry = {
                        k.key: whole(entry[k.key]) if k.axis is None else cut_alike(entry[k.key], p, k.axis)
                        for k in layout
                    }
            else:
                layout = known[1]
            cut = [k for k in layout if k.axis is not None]
            kept.append((entry, cut))
            deals += [self._deal(p, t.shape, t.dtype, axis) for t in (p, gradient)]
            deals += [self._deal(p, k.shape, k.dtype, k.axis) for k in cut]
            pieces += [local(p), local(gradient), *(local(entry[k.key]) for k in cut)]
        arrived = iter(gathered(deals, pieces))
        return [
            taken
            for (member, _), (entry, cut) in zip(members, kept, strict=True)
            if (taken := self._taken(member, entry, cut, [next(arrived) for _ in range(2 + len(cut))])) is not None
        ]

    def finish(self, plan: Plan | None, state: Any) -> None:
        """Give the points that are reached, and the state, back to who has the pieces; a collective."""
        if plan is not None:
            plan.publish(self.inner)
        layouts = self._layouts()
        deals, wholes = [], []
        for member, axis in self._members:
            p = member.parameter
            deals += [self._deal(p, p.shape, p.dtype, axis)]
            deals += [self._deal(p, k.shape, k.dtype, k.axis) for k in layouts[p]]
            stand = self._stands.get(p)
            mine = {} if stand is None else self.inner[stand]
            if stand is not None and mine.keys() != {k.key for k in layouts[p]}:
                raise RuntimeError(
                    f"the state of a sharded parameter, shape {tuple(p.shape)}, has other keys after this step, which "
                    f"other processes cannot know of: {sorted(mine)}. A step may keep other state only where an option "
                    f"of its group is switched."
                )
            wholes += [stand, *(mine.get(k.key) for k in layouts[p])]
        pieces = iter(dealt(deals, wholes))
        for member, _ in self._members:
            p = member.parameter
            local(p).copy_(next(pieces))
            values = {k.key: next(pieces) for k in layouts[p]}
            if p in self._known:
                for key, value in values.items():
                    local(state[p][key]).copy_(value)
            else:
                state[p] = {
                    k.key: values[k.key] if k.axis is None else assembled(values[k.key], k.shape, p, k.axis)
                    for k in layouts[p]
                }
                self._known[p] = state[p], layouts[p]
        self._is_open = False

    def _assign(self) -> None:
        """Who has least to do gets what costs most; in one order on all processes."""
        new = [(_cost(member), member.parameter) for member, _ in self._members if member.parameter not in self._owners]
        for cost, p in sorted(new, key=lambda each: -each[0]):
            self._owners[p] = owner = self._loads.index(min(self._loads))
            self._loads[owner] += cost

    def _axis(self, p: Any) -> int:
        """That is cut."""
        return p.placements[self._parts.axis].dim % p.dim()  # type: ignore[no-any-return]

    def _deal(self, p: Tensor, shape: Sequence[int], dtype: torch.dtype, axis: int | None) -> Deal:
        return Deal(tuple(shape), dtype, local(p).device, axis, self._owners[p], self._parts)

    def _taken(
        self, member: Member, entry: Entry, cut: list[Kept], arrived: list[Tensor | None]
    ) -> tuple[Member, Tensor] | None:
        """What is owned here, its stand-in and state up to date."""
        p, (point, gradient, *values) = member.parameter, arrived
        if point is None or gradient is None:
            return None
        stand = self._stands.get(p)
        if stand is None or stand.dtype != p.dtype or stand.device != point.device:
            stand = self._stands[p] = torch.empty(p.shape, dtype=p.dtype, device=point.device)
        stand.copy_(point)
        now = {**entry, **{k.key: value for k, value in zip(cut, values, strict=True)}}
        if p in self._known and now.keys() == self.inner.get(stand, {}).keys():
            for key, value in now.items():
                mine = self.inner[stand][key]
                if mine.device == value.device:  # the number of a step is on the host here, which would have to wait
                    mine.copy_(value)
        else:
            self.inner[stand] = {key: t.clone() if isinstance(t, Tensor) else t for key, t in now.items()}
        return member._replace(parameter=stand, table=p), gradient.contiguous()

    def _layouts(self) -> dict[Tensor, list[Kept]]:
        """What state there is of each; told by the owners where it is new."""
        from torch import distributed

        found = {p: self._known[p][1] for (p, *_), _ in self._members if p in self._known}
        new = [(member.parameter, axis) for member, axis in self._members if member.parameter not in found]
        if new:
            told: list[Any] = [None] * self._parts.count
            distributed.all_gather_object(told, [self._own_layout(*each) for each in new], group=self._parts.group)
            found.update({p: told[self._owners[p]][i] for i, (p, _) in enumerate(new)})
        return found

    def _own_layout(self, p: Tensor, axis: int) -> list[Kept]:
        entry = self.inner[self._stands[p]] if p in self._stands else {}
        return [self._layout(key, tuple(t.shape), t.dtype, p, axis) for key, t in entry.items()]

    def _layout(self, key: str, shape: tuple[int, ...], dtype: torch.dtype, p: Tensor, axis: int) -> Kept:
        is_whole = not prod(shape) or not shape or key.partition(":")[0] in self._whole
        return Kept(key, shape, dtype, None if is_whole else axis if shape == tuple(p.shape) else 0)


def _cost(member: Member) -> int:
    """Flops of a step, about: n p^2 of matrices."""
    stacks = stacks_of(member.parameter, member.manifold)
    return sum(stack.numel() * (min(stack.shape[-2:]) if f.ndim == 2 else 1) for f, stack in stacks)
