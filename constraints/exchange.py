"""Whole tensors on one process of those that have pieces of them, and back: all to all, many tensors in one round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from .summing import Parts

LIMIT = 2**28
"""Bytes that a process receives in one round, on average, or those of one tensor: memory beside the tensors."""


@dataclass(frozen=True)
class Deal:
    """A tensor of which one process has all and each has a piece; without an axis, a few numbers that all have."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    axis: int | None
    owner: int
    parts: Parts

    def piece(self, rank: int) -> tuple[int, ...]:
        """The shape of what this process has, by the rule of torch.chunk."""
        if self.axis is None:
            return self.shape
        size = self.shape[self.axis]
        chunk = -(-size // self.parts.count)
        return *self.shape[: self.axis], max(min(chunk, size - rank * chunk), 0), *self.shape[self.axis + 1 :]

    def bytes(self, rank: int) -> int:
        """Of this piece."""
        return prod(self.piece(rank)) * self.dtype.itemsize


def gathered(deals: Sequence[Deal], mine: Sequence[Tensor]) -> list[Tensor | None]:
    """What this process owns, whole, of the pieces that all have; a collective, in one order on all processes. All have
    an axis."""
    found: list[Tensor | None] = []
    for some in _limited(deals):
        here, rank, ranks = deals[some], deals[some][0].parts.rank, range(deals[some][0].parts.count)
        sent = [[_flat(t, d.axis) for d, t in zip(here, mine[some], strict=True) if d.owner == r] for r in ranks]
        owned = [d for d in here if d.owner == rank]
        came = _all_to_all(here[0], sent, [[d.bytes(r) for d in owned] for r in ranks])
        wholes = iter([_joined(d, [came[r][i] for r in ranks]) for i, d in enumerate(owned)])
        found += [next(wholes) if d.owner == rank else None for d in here]
    return found


def dealt(deals: Sequence[Deal], wholes: Sequence[Tensor | None]) -> list[Tensor]:
    """The pieces of this process, of tensors that are given by their owners; a collective like `gathered`."""
    found: list[Tensor] = []
    for some in _limited(deals):
        here, rank, ranks = deals[some], deals[some][0].parts.rank, range(deals[some][0].parts.count)
        owned = [_pieces(d, t) for d, t in zip(here, wholes[some], strict=True) if t is not None]
        sent = [[pieces[r] for pieces in owned] for r in ranks]
        came = _all_to_all(here[0], sent, [[d.bytes(rank) for d in here if d.owner == r] for r in ranks])
        mine = [iter(each) for each in came]
        found += [_read(next(mine[d.owner]), d, rank) for d in here]
    return found


def _all_to_all(one: Deal, sent: list[list[Tensor]], sizes: list[list[int]]) -> list[list[Tensor]]:
    """Bytes of these sizes from each process, for those that are sent to each."""
    from torch import distributed

    empty = torch.empty(0, dtype=torch.uint8, device=one.device)
    going = torch.cat([empty, *(t for some in sent for t in some)])
    coming = empty.new_empty(sum(map(sum, sizes)))
    splits = [sum(t.numel() for t in some) for some in sent]
    distributed.all_to_all_single(coming, going, [sum(some) for some in sizes], splits, group=one.parts.group)
    return [list(part.split(some)) for part, some in zip(coming.split([sum(s) for s in sizes]), sizes, strict=True)]


def _limited(deals: Sequence[Deal]) -> Iterator[slice]:
    """Those of equal parts that follow one another, up to LIMIT bytes a process on average."""
    cuts, size = [0], 0
    for i, d in enumerate(deals):
        more = prod(d.shape) * d.dtype.itemsize
        if i and (d.parts != deals[i - 1].parts or size + more > LIMIT * d.parts.count):
            cuts.append(i)
            size = 0
        size += more
    return (slice(a, b) for a, b in pairwise([*cuts, len(deals)]) if a < b)


def _flat(t: Tensor, axis: int | None) -> Tensor:
    """The bytes of t, along the axis first."""
    t = t if axis is None else t.movedim(axis, 0)
    t = torch.view_as_real(t) if t.is_complex() else t
    return t.reshape(-1).contiguous().view(torch.uint8)


def _pieces(d: Deal, t: Tensor) -> list[Tensor]:
    """The bytes of the piece of each process."""
    count = d.parts.count
    t = t.to(d.device, d.dtype, non_blocking=True)  # numbers on the host, for which nobody waits
    return (
        [_flat(t, None)] * count if d.axis is None else list(_flat(t, d.axis).split([d.bytes(r) for r in range(count)]))
    )


def _joined(d: Deal, pieces: list[Tensor]) -> Tensor:
    assert d.axis is not None
    rest = (*d.shape[: d.axis], *d.shape[d.axis + 1 :])
    return _typed(torch.cat(pieces), d.dtype).view(d.shape[d.axis], *rest).movedim(0, d.axis)


def _read(piece: Tensor, d: Deal, rank: int) -> Tensor:
    values, shape = _typed(piece.clone(), d.dtype), d.piece(rank)
    if d.axis is None:
        return values.view(shape)
    return values.view(shape[d.axis], *shape[: d.axis], *shape[d.axis + 1 :]).movedim(0, d.axis)


def _typed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers, complex ones too."""
    flat = values.view(dtype.to_real() if dtype.is_complex else dtype)
    return torch.view_as_complex(flat.view(-1, 2)) if dtype.is_complex else flat
