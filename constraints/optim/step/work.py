"""What moves in a step, sorted by how."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ...sharding import is_sharded
from .checks import Group
from .options import same_options
from .plan import Member


class Part(NamedTuple):
    """Those parameters of one group that move in one way."""

    place: int  # of the group
    group: Group
    params: list[Tensor]


class Work(NamedTuple):
    """The parameters that have a gradient. held: on manifolds; sparse: constrained or free, of which rows move."""

    free: list[Part]
    held: list[Part]
    sharded: list[Part]
    sparse: list[Part]


def sort(groups: Sequence[Group], takes_sparse: bool, has_shards: bool) -> Work:
    """takes_sparse: whether free parameters with a sparse gradient are free; has_shards: whether to look for shards."""
    work = Work([], [], [], [])
    for i, group in enumerate(groups):
        given: list[Tensor] = []
        sparse: list[Tensor] = []
        is_free = group["manifold"] is None
        apart = given if is_free and takes_sparse else sparse
        for p in group["params"]:
            if (g := p.grad) is not None:
                (apart if g.is_sparse else given).append(p)
        if sparse:
            work.sparse.append(Part(i, group, sparse))
        if is_free:
            if given:
                work.free.append(Part(i, group, given))
            continue
        if has_shards:
            work.sharded.append(Part(i, group, [p for p in given if is_sharded(p)]))
            given = [p for p in given if not is_sharded(p)]
        work.held.append(Part(i, group, given))
    return work


class Options:
    """Which held groups have equal options, and move as one."""

    def __init__(self, names: Iterable[str], held: Sequence[Part]) -> None:
        self._places = same_options(names, [(part.place, part.group) for part in held])
        self._parts = held
        manifolds = (held[0].group["manifold"],) if len(held) == 1 else tuple([part.group["manifold"] for part in held])
        self.key: Hashable = self._places, manifolds

    def members(self, parts: Sequence[Part]) -> Iterator[Member]:
        """The members of a plan, each with the first group that has the options of its own."""
        first = dict(zip((part.place for part in self._parts), self._places, strict=True))
        for place, group, params in parts:
            for p in params:
                yield Member(p, group["manifold"], first[place], group.get("capturable", False))
