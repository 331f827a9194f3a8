"""Many sharded tensors made whole with few collectives: a round costs as much as what a small tensor has to send."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .sharding import is_sharded, local, whole

LIMIT = 2**28
"""Bytes that one collective receives at most, or those of one tensor: memory beside the tensors themselves."""


class Line(NamedTuple):
    """What tensors have in common that are gathered together."""

    mesh: Any
    axis: int  # of the mesh, the only one along which they are cut
    dtype: torch.dtype


@torch.no_grad()
def wholes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`whole` of each, without a gradient: a collective, in one order on all processes."""
    found: list[Tensor | None] = [None] * len(tensors)
    lines: dict[Line, list[int]] = {}
    for i, t in enumerate(tensors):
        line = _line(t)
        if line is None:
            found[i] = whole(t)
        else:
            lines.setdefault(line, []).append(i)
    for line, members in lines.items():
        for some in _limited(tensors, members):
            for i, t in zip(some, _gathered(line, [tensors[i] for i in some]), strict=True):
                found[i] = t
    return [t for t in found if t is not None]


def _line(t: Any) -> Line | None:
    if not is_sharded(t):
        return None
    placed = [i for i, placement in enumerate(t.placements) if not placement.is_replicate()]
    return Line(t.device_mesh, placed[0], t.dtype) if len(placed) == 1 and t.placements[placed[0]].is_shard() else None


def _limited(tensors: Sequence[Tensor], members: Sequence[int]) -> Iterator[list[int]]:
    some: list[int] = []
    size = 0
    for i in members:
        more = tensors[i].numel() * tensors[i].element_size()
        if some and size + more > LIMIT:
            yield some
            some, size = [], 0
        some.append(i)
        size += more
    yield some


def _gathered(line: Line, tensors: Sequence[Any]) -> Iterator[Tensor]:
    """One all-gather of pieces that are filled up to equal sizes."""
    from torch import distributed

    count = line.mesh.size(line.axis)
    cuts = [t.placements[line.axis].dim % t.dim() for t in tensors]
    chunks = [-(-t.shape[dim] // count) for t, dim in zip(tensors, cuts, strict=True)]
    sizes = [t.numel() // max(t.shape[dim], 1) * chunk for t, dim, chunk in zip(tensors, cuts, chunks, strict=True)]
    first = local(tensors[0])
    mine, places = first.new_zeros(sum(sizes)), first.new_empty(count * sum(sizes))
    for t, dim, place in zip(tensors, cuts, mine.split(sizes), strict=True):
        piece = local(t)
        place[: piece.numel()].copy_(piece.movedim(dim, 0).reshape(-1))
    distributed.all_gather_into_tensor(places, mine, group=line.mesh.get_group(line.axis))
    for t, dim, chunk, part in zip(tensors, cuts, chunks, places.view(count, -1).split(sizes, 1), strict=True):
        rest = (*t.shape[:dim], *t.shape[dim + 1 :])
        yield part.reshape(count * chunk, *rest)[: t.shape[dim]].movedim(0, dim).contiguous()
