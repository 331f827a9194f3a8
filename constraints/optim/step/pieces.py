"""State of sharded parameters as checkpoints know it: pieces, wherever their memory is, that make a DTensor."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...sharding import is_sharded, local
from ...summing import Parts
from .cuts import mesh_axes


def assembled(piece: Tensor, shape: Sequence[int], p: Any, axis: int) -> Any:
    """The tensor of this shape, cut along this axis as p is cut, of which this process has the piece: its memory.

    Not by DTensor.from_local: under a CPUOffloadPolicy that would copy it to the device of the mesh, and be no view.
    """
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    meta = TensorMeta(torch.Size(shape), strides, piece.dtype)
    return DTensor(piece.contiguous(), DTensorSpec(p.device_mesh, _placements(p, axis), meta), requires_grad=False)


def cut_alike(t: Any, p: Any, axis: int) -> Any:
    """State that was loaded, whole or cut in another way, as it is kept; whole it needs no communication."""
    there = _placements(p, axis)
    if is_sharded(t):
        return t if t.placements == there else t.redistribute(p.device_mesh, there)
    (i,) = mesh_axes(p)
    parts, size = Parts(p.device_mesh, i), t.shape[axis]
    chunk = -(-size // parts.count)
    start = min(parts.rank * chunk, size)
    piece = t.narrow(axis, start, min(chunk, size - start))
    return assembled(piece.to(local(p).device, copy=True), t.shape, p, axis)


def gradient_of(p: Any) -> Tensor:
    """The gradient, placed as its parameter."""
    g: Any = p.grad
    return g if g.placements == p.placements else g.redistribute(p.device_mesh, p.placements)  # type: ignore[no-any-return]


def _placements(p: Any, axis: int) -> tuple[Any, ...]:
    """Those of p, for a tensor that is cut along this axis."""
    from torch.distributed.tensor import Shard

    return tuple(Shard(axis) if placement.is_shard() else placement for placement in p.placements)
