"""What a bucket is made of: stacks of equal factors of parameters, as rows of one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from manifolds import Manifold
from manifolds._tiny import batch_last, is_many_tiny


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
    part: int  # its number in manifold.split(parameter)
    source: int  # its number in plan.cut(parameters)
    shape: tuple[int, ...]  # of plan.cut(parameters)[source]
    batch: tuple[int, ...]  # of one number per point
    start: int
    stop: int


class Rows:
    """One tensor of (B, *point), and its views in the shapes of the leaves, into and out of which they are copied."""

    def __init__(self, rows: Tensor, leaves: Sequence[Leaf]) -> None:
        self.rows = rows
        self._slots = [rows[leaf.start : leaf.stop].view(leaf.shape) for leaf in leaves]
        # one kernel for all, where they can be stacked
        self._stack = rows.view(len(leaves), *leaves[0].shape) if len({leaf.shape for leaf in leaves}) == 1 else None

    @staticmethod
    def new(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, leaves: Sequence[Leaf]) -> Rows:
        """Rows with memory of their own."""
        rows = torch.empty(shape, dtype=dtype, device=device)
        return Rows(batch_last(rows) if is_batch_last(leaves, shape, device) else rows, leaves)

    def gather(self, sources: list[Tensor]) -> Tensor:
        """The rows, with a copy of every leaf in them."""
        if self._stack is not None and len(sources) > 1:
            torch.stack(sources, out=self._stack)
        else:
            torch._foreach_copy_(self._slots, sources)
        return self.rows

    def scatter(self, targets: list[Tensor]) -> None:
        """Copy the rows of every leaf out."""
        torch._foreach_copy_(targets, self._slots)


def is_batch_last(leaves: Sequence[Leaf], shape: tuple[int, ...], device: torch.device) -> bool:
    """Whether rows of this shape are kept batch last: where they are many and tiny, and leaves are views of them."""
    return is_many_tiny(shape, device) and all(leaf.shape[-2:] == shape[-2:] for leaf in leaves)
