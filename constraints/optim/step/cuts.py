"""How a tensor is cut over processes, and what of a step each of them can make by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifolds import BlockSpec, Manifold, ProductManifold
from manifolds.engine import engine

from ...sharding import local
from ...summing import Parts
from .sliced import Sliced, takes_slices


class Cut(NamedTuple):
    """What a process has of a tensor: whole factors of the manifold, (size of the axis, of this process) of it, or
    slices of all of them."""

    manifold: Manifold
    axis: int | None  # of the tensor and of its state; None where it is replicated
    blocks: int | None = None  # of the whole, where it is cut between blocks, or where blocks lie side by side
    sliced: bool = False  # then the axis is counted from the last, for state has other axes before it


def cut_of(p: Any, manifold: Manifold, slices: bool) -> Cut | None:
    """How the processes share the factors of p; None where a factor is not whole on one of them, or one has none, and
    it cannot be sliced. slices: whether it may be. The same on all processes."""
    axes = mesh_axes(p)
    if not axes:
        return Cut(manifold, None)
    if len(axes) > 1:
        return None
    axis, count, shape = p.placements[axes[0]].dim % p.dim(), p.device_mesh.size(axes[0]), tuple(p.shape)
    if slices and (cut := _sliced(manifold, shape, axis, Parts(p.device_mesh, axes[0]))) is not None:
        return cut
    chunk = -(-shape[axis] // count)
    if chunk * (count - 1) >= shape[axis]:
        return None
    if axis < len(shape) - manifold.ndim:
        piece = (*shape[:axis], chunk, *shape[axis + 1 :])
        return Cut(manifold, axis) if _leads(manifold, axis, shape) and _leads(manifold, axis, piece) else None
    blocks = _blocks(manifold, shape, 0)
    if axis != 0 or blocks is None or chunk % (rows := shape[0] // blocks):
        return None
    mine = local(p).shape[0] // rows
    return Cut(ProductManifold(manifold.factors[:mine], BlockSpec(rows=mine, axis=0)), 0, blocks)  # type: ignore[attr-defined]


def filled(mine: Tensor, cut: Cut | None) -> Tensor:
    """The slices of this process; zeros where it has none, which add nothing to what is added up."""
    if mine.numel() or cut is None or not cut.sliced or cut.axis is None:
        return mine
    shape = list(mine.shape)
    shape[cut.axis] = 1
    return mine.new_zeros(shape)


def mesh_axes(p: Any) -> list[int]:
    """The axes of its mesh along which p is cut."""
    return [i for i in range(p.device_mesh.ndim) if is_cut(p, i)]


def is_cut(p: Any, mesh_axis: int) -> bool:
    """Whether p is cut along this axis of its mesh."""
    return bool(p.placements[mesh_axis].is_shard()) and p.device_mesh.size(mesh_axis) > 1


def _sliced(manifold: Manifold, shape: tuple[int, ...], axis: int, parts: Parts) -> Cut | None:
    """Where the longer sides of all points are cut: rows of tall ones, columns of wide ones, also of equal blocks that
    lie along the other axis."""
    long, other = axis - len(shape), -3 - (axis - len(shape))
    factors = manifold.factors if isinstance(manifold, ProductManifold) else (manifold,)
    blocks = _blocks(manifold, shape, other) if isinstance(manifold, ProductManifold) else 1
    if long not in (-1, -2) or not all(map(takes_slices, factors)) or blocks is None:
        return None
    if shape[long] <= shape[other] // blocks:
        return None
    slices = tuple(Sliced(factor, shape[long], long == -1, parts) for factor in factors)  # type: ignore[arg-type]
    whole = ProductManifold(slices, manifold.layout) if isinstance(manifold, ProductManifold) else slices[0]
    return Cut(whole, long, blocks if long == -2 and blocks > 1 else None, sliced=True)


def _leads(manifold: Manifold, axis: int, shape: tuple[int, ...]) -> bool:
    """Whether this batch axis is that of all stacks of factors, too."""
    stacks = engine(manifold).split(torch.empty(shape, device="meta"))
    return all(tuple(stack.shape[: axis + 1]) == shape[: axis + 1] for _, stack in stacks)


def _blocks(manifold: Manifold, shape: Sequence[int], axis: int) -> int | None:
    """How many equal blocks of a matrix are stacked on this axis; None for other layouts."""
    if not isinstance(manifold, ProductManifold) or len(shape) != manifold.ndim or len(set(manifold.factors)) > 1:
        return None
    layout, count = manifold.layout, len(manifold)
    if not isinstance(layout, BlockSpec) or layout.rows != count or layout.axis % len(shape) != axis % len(shape):
        return None
    return count if shape[axis] % count == 0 else None
