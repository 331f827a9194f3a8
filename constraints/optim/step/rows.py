"""What a bucket is made of: stacks of equal factors of parameters, as rows of one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from manifolds import Manifold, Orthogonal, SpecialOrthogonal, Stiefel
from manifolds.kernels.tiny import batch_last, is_many_tiny, tiled, tiles, untiled
from manifolds.retractions import cayley, exp, polar, qr


class Kind(NamedTuple):
    """What the factors of one bucket have in common."""

    factor: Manifold
    point: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    group: int
    capturable: bool
    steps: float | None  # None where they are not counted
    keys: frozenset[str]  # of the state that is there already


@dataclass(frozen=True)
class Leaf:
    """One stack of equal factors of one parameter, and its rows in a bucket."""

    member: int  # its number in the plan
    part: int  # its number in `Engine.split` of the parameter
    source: int  # its number in plan.cut(parameters)
    shape: tuple[int, ...]  # of plan.cut(parameters)[source]
    batch: tuple[int, ...]  # of one number per point
    start: int
    stop: int


class Held(Protocol):
    """Where the points of a bucket are, or their gradients, when they are read and written."""

    def read(self, cut: Sequence[Tensor]) -> Tensor:
        """The points of all leaves, (B, *point) or in tiles, out of plan.cut(...)."""

    def write(self, values: Tensor, cut: Sequence[Tensor]) -> None:
        """Put these in their place."""


class InPlace:
    """The memory of the only parameter is all of the bucket."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def read(self, cut: Sequence[Tensor]) -> Tensor:
        return self._rows

    def write(self, values: Tensor, cut: Sequence[Tensor]) -> None:
        self._rows.copy_(values)


class Rows:
    """One tensor of (B, *point), and its views in the shapes of the leaves, into and out of which they are copied."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, leaves: Sequence[Leaf]
    ) -> None:
        rows = torch.empty(shape, dtype=dtype, device=device)
        self._rows = batch_last(rows) if is_batch_last(leaves, shape, device) else rows
        self._slots = [self._rows[leaf.start : leaf.stop].view(leaf.shape) for leaf in leaves]
        self._sources = [leaf.source for leaf in leaves]
        # one kernel for all, where they can be stacked
        same = len({leaf.shape for leaf in leaves}) == 1
        self._stack = self._rows.view(len(leaves), *leaves[0].shape) if same else None

    def read(self, cut: Sequence[Tensor]) -> Tensor:
        sources = [cut[i] for i in self._sources]
        if self._stack is not None and len(sources) > 1:
            torch.stack(sources, out=self._stack)
        else:
            torch._foreach_copy_(self._slots, sources)
        return self._rows

    def write(self, values: Tensor, cut: Sequence[Tensor]) -> None:
        self._rows.copy_(values)
        torch._foreach_copy_([cut[i] for i in self._sources], self._slots)


class Tiles:
    """One real parameter of many tiny matrices, copied into tiles and back; and its gradient."""

    def __init__(self, count: int, source: int) -> None:
        self.count, self._source = count, source

    def read(self, cut: Sequence[Tensor]) -> Tensor:
        return tiled(cut[self._source], self.count)

    def write(self, values: Tensor, cut: Sequence[Tensor]) -> None:
        target = cut[self._source]
        target.copy_(untiled(values, target.shape))


def held(kind: Kind, leaves: Sequence[Leaf], home: Tensor | None, master: torch.dtype) -> Held:
    """How the points of these leaves are read and written. home: the memory of the parameter, where it is all of the
    bucket; master: the dtype that they move in."""
    shape = (leaves[-1].stop, *kind.point)
    if home is not None:
        return InPlace(home)
    alone = len(leaves) == 1 and kind.dtype == master and not kind.dtype.is_complex
    if alone and _takes_tiles(kind.factor) and is_batch_last(leaves, shape, kind.device):
        return Tiles(tiles(shape[0]), leaves[0].source)
    return Rows(shape, kind.dtype, kind.device, leaves)


def _takes_tiles(factor: Manifold) -> bool:
    """Whether `mix` and `advance` take two batch axes: those of this library do, others are promised one."""
    if type(factor) not in (Orthogonal, SpecialOrthogonal, Stiefel):
        return False
    return getattr(factor, "retraction", None) in (cayley, polar, exp, qr)


def is_batch_last(leaves: Sequence[Leaf], shape: tuple[int, ...], device: torch.device) -> bool:
    """Whether rows of this shape are kept batch last: where they are many and tiny, and leaves are views of them."""
    return is_many_tiny(shape, on_cpu=device.type == "cpu") and all(leaf.shape[-2:] == shape[-2:] for leaf in leaves)
