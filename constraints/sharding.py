"""Tensors that are sharded over processes: a DTensor of torch, as `fully_shard` makes of every Parameter.

A point is whole or it is none, so whoever needs one gathers it, and all processes have to ask for it together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def is_sharded(t: Any) -> bool:
    """Whether t is a DTensor, which takes a second to import."""
    return hasattr(t, "placements") and hasattr(t, "to_local")


def whole(t: Tensor) -> Tensor:
    """The tensor itself, or all of a sharded one, equal on all processes: a collective.

    A gradient that comes back through it is averaged over the processes, as `fully_shard` does it in a forward pass.
    """
    if not is_sharded(t):
        return t
    sharded: Any = t
    if not (t.requires_grad and torch.is_grad_enabled()):
        return sharded.detach().full_tensor()  # type: ignore[no-any-return]
    from torch.distributed.tensor import Partial

    mesh = sharded.device_mesh
    gathered: Tensor = sharded.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    gathered.register_hook(lambda g: g / mesh.size())
    return gathered


def local(t: Tensor) -> Tensor:
    """The memory of t on this process, which is all of it where nothing is sharded."""
    if not is_sharded(t):
        return t.detach()
    sharded: Any = t.detach() if torch.is_grad_enabled() else t  # without gradients it is given away as it is
    return sharded.to_local()  # type: ignore[no-any-return]


def like(value: Tensor, t: Tensor) -> Tensor:
    """A whole value, equal on all processes, sharded as t is; no communication."""
    if not is_sharded(t) or is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    sharded: Any = t
    mesh = sharded.device_mesh
    everywhere = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(mesh, sharded.placements)


@torch.no_grad()
def put(t: Tensor, value: Tensor, where: Tensor | None = None) -> None:
    """Write a whole value into t in place, each process its part; only if `where`, one truth value, says so."""
    mine, new = local(t), local(like(value.to(t.dtype), t))
    mine.copy_(new if where is None else torch.where(where, new, mine))


class Sharing:
    """All processes that share any of some sharded tensors, also where those lie on different meshes.

    One all-reduce for each axis of a mesh, in one order on all processes, so that all hear of all.
    """

    def __init__(self, sharded: Iterable[Any]) -> None:
        """At least one of them; all processes name those that they share in the same order."""
        tensors = list(sharded)
        self.device = local(tensors[0]).device
        meshes = dict.fromkeys(t.device_mesh for t in tensors)
        groups = (group for mesh in meshes for group in mesh.get_all_groups() if group.size() > 1)
        self._groups = list({group.group_name: group for group in groups}.values())

    def agree(self, numbers: Sequence[int]) -> bool:
        """Whether all have the same numbers, and as many: by a hash, which is one number on all."""
        number = hash(tuple(numbers)) >> 1
        extremes = torch.tensor([number, -number], dtype=torch.int64, device=self.device)
        high, minus_low = self._largest(extremes)
        return bool((high == -minus_low).all())

    def somewhere(self, truth: bool) -> bool:
        """Whether it is true on any of them."""
        return bool(self._largest(torch.full((), int(truth), dtype=torch.int32, device=self.device)))

    def _largest(self, numbers: Tensor) -> Tensor:
        from torch import distributed

        for group in self._groups:
            distributed.all_reduce(numbers, distributed.ReduceOp.MAX, group=group)
        return numbers


def check_not_sharded(t: Tensor, who: str, way: str) -> None:
    """ValueError where t is sharded, which cannot be undone from here; with the way out."""
    if is_sharded(t):
        raise ValueError(f"{who}, shape {tuple(t.shape)}, is sharded over processes, as by fully_shard. {way}")
