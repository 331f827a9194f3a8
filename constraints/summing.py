"""Sums over processes that have parts of the same tensors, several in one round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """The processes along one axis of a mesh, each of which has a part of some tensors."""

    mesh: Any
    axis: int

    @property
    def count(self) -> int:
        """How many they are."""
        return int(self.mesh.size(self.axis))

    @property
    def rank(self) -> int:
        """Which of them this one is."""
        return int(self.mesh.get_local_rank(self.axis))

    @property
    def group(self) -> Any:
        """Their group."""
        return self.mesh.get_group(self.axis)

    def summed(self, *tensors: Tensor) -> list[Tensor]:
        """The sum of each over the processes, equal on all to the bit: one all-reduce. All have one precision."""
        from torch import distributed

        flat = torch.cat([_real(t).reshape(-1) for t in tensors])
        distributed.all_reduce(flat, group=self.group)
        pieces = flat.split([_real(t).numel() for t in tensors])
        return [
            # which may begin at an odd place
            torch.view_as_complex(piece.view(*t.shape, 2).clone()) if t.is_complex() else piece.view(t.shape)
            for t, piece in zip(tensors, pieces, strict=True)
        ]

    def anywhere(self, truths: Tensor) -> Tensor:
        """Which of these truth values are true on any of the processes: one all-reduce."""
        from torch import distributed

        found = truths.to(torch.uint8)
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self.group)
        return found.bool()


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t
