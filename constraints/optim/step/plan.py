"""Which factors of which parameters move together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, MutableMapping, Sequence
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifolds import Manifold
from manifolds.engine import engine

from .bucket import COUNTS, Bucket, Points
from .parts import key_of, part_of
from .rows import Kind, Leaf, is_batch_last
from .sliced import Sliced
from .together import SlicedBucket

State = MutableMapping[Tensor, dict[str, Any]]


class Member(NamedTuple):
    """A parameter that has a gradient, as a plan needs it."""

    parameter: Tensor
    manifold: Manifold
    group: int  # the first parameter group with the options of its own
    capturable: bool
    table: Tensor | None = None  # of which the parameter is some rows

    @property
    def named(self) -> Tensor:
        """The tensor that messages are about."""
        return self.parameter if self.table is None else self.table


class Plan:
    """Which factors of which parameters make which bucket, for parameters that have a gradient.

    It is made once and used until `fits` says otherwise: when other parameters have a gradient, when the memory of a
    parameter or the grouping of options has changed, or when the optimizer's state is not the one it published.
    """

    def __init__(self, members: Sequence[Member], options: Hashable, state: State, numbers: frozenset[str]) -> None:
        """options: changes with the grouping of options; numbers: the keys of state with one number per point."""
        self.members, self._options = members, options
        self._homes = [m.parameter.detach() for m in members]
        splits = [engine(m.manifold).split(home) for m, home in zip(members, self._homes, strict=True)]
        # a parameter whose memory is one stack of points, in their order, is read and written whole
        whole = [len(s) == 1 and _same_memory(home, s[0][1]) for home, s in zip(self._homes, splits, strict=True)]
        self._packed = [i for i, is_whole in enumerate(whole) if not is_whole]
        self._copied = [i for i in self._packed if not all(_shares(part, self._homes[i]) for _, part in splits[i])]
        self._places = self.cut(self._homes)
        self._published: list[Any] | None = None  # the objects that the state consisted of after `publish`
        self._keys = 0
        self._lasts = True
        self._leaves: list[dict[int, tuple[Bucket, Leaf]]] = [{} for _ in members]
        self.buckets = self._fill(splits, state, numbers)
        self.devices = {bucket.device.type for bucket in self.buckets}

    def fits(self, parameters: Sequence[Tensor], options: Hashable, state: State) -> bool:
        """Whether the plan is still the one for these parameters with gradients, these options and this state."""
        published = self._published
        return (
            self._lasts
            and self._options == options
            and published is not None
            and len(published) == len(state) + sum(map(len, state.values()))
            and all(map(is_, _objects(state), published))
            and len(parameters) == len(self._homes)
            and all(map(Tensor.is_set_to, parameters, self._homes))
        )

    def cut(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors, one for each parameter, and after them the stacks of those that are not read whole."""
        if not self._packed:
            return tensors
        parts = [part for i in self._packed for _, part in engine(self.members[i].manifold).split(tensors[i])]
        return [*tensors, *parts]

    def read_gradients(self, gradients: list[Tensor]) -> None:
        """Gather the gradients of every bucket."""
        cut = self.cut(gradients)
        for bucket in self.buckets:
            bucket.read_gradients(cut)

    def read_points(self) -> None:
        """Gather the points of every bucket."""
        if self._copied:
            self._places = self.cut(self._homes)
        for bucket in self.buckets:
            bucket.read_points(self._places)

    def write_points(self, points: Iterable[Points]) -> None:
        """Move every bucket, in their order, and the parameters with them."""
        for bucket, y in zip(self.buckets, points, strict=True):
            bucket.write_points(y, self._places)
        for i in self._copied:
            parts = [self._places[leaf.source] for _, leaf in self._in_order(i)]
            self._homes[i].copy_(engine(self.members[i].manifold).join(parts, self._homes[i].shape))

    def gather(self, tensors: list[Tensor], out: Sequence[Tensor] | None = None) -> list[Points]:
        """Tensors of the shapes of the parameters, bucket by bucket in the shape of its points. May be views; are out
        where the tensors are all views of that, as after `spread(out)`."""
        cut, gathered = self.cut(tensors), []
        for i, bucket in enumerate(self.buckets):
            if out is not None and all(leaf.source < len(self.members) for leaf in bucket.leaves):
                gathered.append(out[i].view(bucket.x.shape))
                continue
            rows = [cut[leaf.source].reshape(-1, *bucket.kind.point) for leaf in bucket.leaves]
            gathered.append((rows[0] if len(rows) == 1 else torch.cat(rows)).to(bucket.dtype).view(bucket.x.shape))
        return gathered

    def spread(self, points: Iterable[Points]) -> list[Tensor]:
        """The inverse of `gather`; contiguous points that are whole parameters are given as views."""
        parts: dict[int, Tensor] = {}
        for bucket, values in zip(self.buckets, points, strict=True):
            rows = values.reshape(bucket.shape).contiguous()
            pieces = rows.split([leaf.stop - leaf.start for leaf in bucket.leaves])
            parts.update({leaf.source: r.view(leaf.shape) for leaf, r in zip(bucket.leaves, pieces, strict=True)})
        for i in self._packed:
            home, manifold = self._homes[i], engine(self.members[i].manifold)
            mine = [parts[leaf.source] for _, leaf in self._in_order(i)]
            parts[i] = whole = torch.empty_like(home)
            if i in self._copied:
                whole.copy_(manifold.join(mine, home.shape))
            else:
                for (_, target), part in zip(manifold.split(whole), mine, strict=True):
                    target.copy_(part)
        return [parts[i] for i in range(len(self.members))]

    def publish(self, state: State) -> None:
        """Make the state of each parameter views of the buckets: a tensor for each key and stack, see `parts`."""
        keys = sum([len(bucket.state) for bucket in self.buckets])
        if self._published is not None and keys == self._keys:
            return
        for i, member in enumerate(self.members):
            leaves = self._in_order(i)
            first, _ = leaves[0]
            entry: dict[str, Any] = {} if first.steps is None else {"step": first.steps}
            for part, (bucket, leaf) in enumerate(leaves):
                for key in bucket.state:
                    entry[key_of(key, part, len(leaves))] = bucket.leaf_state(key, leaf)
                if bucket.drift is not None:
                    entry[key_of("drift", part, len(leaves))] = bucket.drift
            state[member.parameter] = entry
        self._keys, self._published = keys, list(_objects(state))
        # buckets that differ in what state they had may now be one: the plan is that of the state, as after loading it
        self._lasts = len(self.buckets) == 1 or all(b.state.keys() == b.kind.keys for b in self.buckets)

    def _in_order(self, member: int) -> list[tuple[Bucket, Leaf]]:
        return [self._leaves[member][part] for part in sorted(self._leaves[member])]

    def _fill(
        self, splits: Sequence[Sequence[tuple[Manifold, Tensor]]], state: State, numbers: frozenset[str]
    ) -> list[Bucket]:
        kinds: dict[Kind, list[Leaf]] = {}
        source = len(self.members)
        for i, (member, split) in enumerate(zip(self.members, splits, strict=True)):
            entry = state.get(member.parameter, {})
            steps = float(entry["step"]) if "step" in entry else None
            for part, (factor, stack) in enumerate(split):
                keys = frozenset(part_of(entry, part, len(split))) - COUNTS
                cut = stack.dim() - factor.ndim
                batch, point = tuple(stack.shape[:cut]), tuple(stack.shape[cut:])
                kind = Kind(factor, point, stack.dtype, stack.device, member.group, member.capturable, steps, keys)
                leaves = kinds.setdefault(kind, [])
                start = leaves[-1].stop if leaves else 0
                at = source if i in self._packed else i
                shape = tuple(self._places[at].shape)
                leaves.append(Leaf(i, part, at, shape, batch, start, start + math.prod(batch)))
                source += i in self._packed
        return [self._bucket(kind, leaves, splits, state, numbers) for kind, leaves in kinds.items()]

    def _bucket(
        self,
        kind: Kind,
        leaves: list[Leaf],
        splits: Sequence[Sequence[tuple[Manifold, Tensor]]],
        state: State,
        numbers: frozenset[str],
    ) -> Bucket:
        place, only = self._places[leaves[0].source], leaves[0].member
        whole = len(leaves) == 1 and place.is_contiguous() and only not in self._copied
        direct = whole and not is_batch_last(leaves, (leaves[0].stop, *kind.point), kind.device)
        made = SlicedBucket if isinstance(kind.factor, Sliced) else Bucket
        bucket = made(kind, leaves, place.view(-1, *kind.point) if direct else None, numbers)
        entries = [state.get(self.members[leaf.member].parameter, {}) for leaf in leaves]
        bucket.load([part_of(e, leaf.part, len(splits[leaf.member])) for e, leaf in zip(entries, leaves, strict=True)])
        for leaf in leaves:
            self._leaves[leaf.member][leaf.part] = bucket, leaf
        return bucket


def _objects(state: State) -> Iterable[Any]:
    """The entries of the state and what is in them."""
    return chain(state.values(), chain.from_iterable(map(dict.values, state.values())))


def _same_memory(whole: Tensor, stack: Tensor) -> bool:
    return whole.is_contiguous() and stack.is_contiguous() and stack.data_ptr() == whole.data_ptr()


def _shares(part: Tensor, whole: Tensor) -> bool:
    return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
