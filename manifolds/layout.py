"""Where the blocks of a packed tensor lie: packed tensor <-> blocks.

A layout is a frozen value that cuts one packed point into blocks. The packed point is the last `ndim` axes of a
tensor, all of them unless said otherwise; the axes before are batch axes and are kept.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ._pattern import parse

Shape = tuple[int, ...]


class Layout(ABC):
    """A rule that cuts a packed tensor into blocks, in a fixed order.

    >>> isinstance(BlockSpec(rows=3), Layout)
    True
    """

    @abstractmethod
    def ndim(self, point_ndim: int) -> int:
        """Axes of one packed point whose blocks hold points of point_ndim axes."""

    @abstractmethod
    def shapes(self, shape: Sequence[int]) -> tuple[Shape, ...]:
        """Shape of each block of a packed point of this shape. Raises ValueError where the layout does not fit."""

    @abstractmethod
    def unpack(self, x: Tensor, ndim: int | None = None) -> tuple[Tensor, ...]:
        """The blocks, each (*batch, *block); views wherever the layout allows them."""

    @abstractmethod
    def pack(self, blocks: Sequence[Tensor], shape: Sequence[int] | None = None) -> Tensor:
        """The packed tensor with these blocks, the inverse of `unpack`; shape is that of the packed point, which a
        layout that cannot derive it from the blocks asks for. Raises ValueError where the blocks do not fit."""

    @abstractmethod
    def gather(self, x: Tensor, indices: Sequence[int], ndim: int) -> Tensor:
        """Blocks of equal shape as (*batch, len(indices), *block); a view wherever the layout allows one."""

    @abstractmethod
    def scatter(self, parts: Sequence[tuple[Sequence[int], Tensor]], shape: Sequence[int]) -> Tensor:
        """The packed tensor whose `gather` at each of these indices is the tensor beside them."""


@dataclass(frozen=True)
class BlockSpec(Layout):
    """Blocks that follow one another along an axis.

    rows=3: three equal blocks. rows=(4096, 1024, 1024): blocks of these sizes.
    axis counts from the first axis of the packed point, or from the last one if negative; axis=0 stacks blocks,
    axis=1 puts matrices side by side. For a tensor with more axes than a packed point, write a negative axis.

    >>> [tuple(block.shape) for block in BlockSpec(rows=(4, 2, 2)).unpack(torch.zeros(8, 5))]
    [(4, 5), (2, 5), (2, 5)]
    """

    rows: int | tuple[int, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        rows = self.rows if isinstance(self.rows, int) else tuple(self.rows)
        object.__setattr__(self, "rows", rows)
        if not rows or min((rows,) if isinstance(rows, int) else rows) < 1:
            raise ValueError(f"rows of a BlockSpec is a number of blocks or their sizes, each at least 1; got {rows}.")

    @staticmethod
    def pattern(pattern: str, **sizes: int) -> Pattern:
        """Blocks laid out in any interleaved way, in einops notation: see `Pattern`."""
        return Pattern(pattern, tuple(sorted(sizes.items())))

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self.rows if isinstance(self.rows, int) else len(self.rows)

    def ndim(self, point_ndim: int) -> int:
        return max(point_ndim, self.axis + 1 if self.axis >= 0 else -self.axis)

    def shapes(self, shape: Sequence[int]) -> tuple[Shape, ...]:
        axis, sizes = self._cut(tuple(shape))
        return tuple((*shape[:axis], size, *shape[axis + 1 :]) for size in sizes)

    def unpack(self, x: Tensor, ndim: int | None = None) -> tuple[Tensor, ...]:
        shape = tuple(x.shape if ndim is None else x.shape[x.dim() - ndim :])
        axis, sizes = self._cut(shape)
        return tuple(x.split(list(sizes), axis - len(shape)))

    def pack(self, blocks: Sequence[Tensor], shape: Sequence[int] | None = None) -> Tensor:
        if len(blocks) != self.count:
            raise ValueError(f"{self} has {self.count} blocks; got {len(blocks)}. Pass one tensor for each block.")
        ndim = blocks[0].dim() if shape is None else len(shape)
        came = tuple(tuple(block.shape[block.dim() - ndim :]) for block in blocks)
        axis = self._axis(came[0])
        if shape is None:
            shape = (*came[0][:axis], sum(block[axis] for block in came), *came[0][axis + 1 :])
        if came != self.shapes(shape):
            raise ValueError(f"{self} has blocks {self.shapes(shape)} for shape {tuple(shape)}; got {came}.")
        return torch.cat(list(blocks), axis - ndim)

    def gather(self, x: Tensor, indices: Sequence[int], ndim: int) -> Tensor:
        batch = x.dim() - ndim
        axis, sizes = self._cut(tuple(x.shape[batch:]))
        size, first, count = sizes[indices[0]], indices[0], len(indices)
        if len(set(sizes)) == 1:
            stack = x.unflatten(batch + axis, (len(sizes), size)).movedim(batch + axis, batch)
            return _select(stack, indices, batch)
        if _consecutive(indices):
            run = x.narrow(batch + axis, sum(sizes[:first]), count * size)
            parts: Tensor = run.unflatten(batch + axis, (count, size))
            return parts.movedim(batch + axis, batch)
        blocks = self.unpack(x, ndim)
        return torch.stack([blocks[i] for i in indices], batch)

    def scatter(self, parts: Sequence[tuple[Sequence[int], Tensor]], shape: Sequence[int]) -> Tensor:
        axis, sizes = self._cut(tuple(shape))
        if len(parts) == 1 and _consecutive(parts[0][0]):
            stack = parts[0][1]
            batch = stack.dim() - len(shape) - 1
            return stack.movedim(batch, batch + axis).flatten(batch + axis, batch + axis + 1)
        blocks: dict[int, Tensor] = {}
        for indices, stack in parts:
            blocks.update(zip(indices, stack.unbind(stack.dim() - len(shape) - 1), strict=True))
        return torch.cat([blocks[i] for i in range(len(sizes))], axis - len(shape))

    def _axis(self, shape: Shape) -> int:
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"{self} cuts axis {self.axis}; got shape {shape}, which has {len(shape)} axes.")
        return self.axis % len(shape)

    def _cut(self, shape: Shape) -> tuple[int, Shape]:
        """(axis counted from the first, sizes of the blocks along it)."""
        axis = self._axis(shape)
        length = shape[axis]
        if isinstance(self.rows, int):
            if length % self.rows or not length:
                raise ValueError(
                    f"{self} needs axis {self.axis} to divide into {self.rows} equal blocks; got shape {shape}, where "
                    f"that axis has length {length}. Change rows, or give each size: BlockSpec(rows=(...))."
                )
            return axis, (length // self.rows,) * self.rows
        if sum(self.rows) != length:
            raise ValueError(
                f"{self} needs axis {self.axis} of length {sum(self.rows)}, the sum of its blocks; got shape {shape}, "
                f"where that axis has length {length}. Give sizes that add up to {length}."
            )
        return axis, self.rows


@dataclass(frozen=True)
class Pattern(Layout):
    """Blocks laid out in any interleaved way, in einops notation; written `BlockSpec.pattern(text, **sizes)`.

    The left side names the axes of the packed tensor, (a b) an axis that holds a x b entries, b the faster one.
    The right side names the axes of the stack of blocks: the first counts the blocks, the others are one block.

    "(head qkv d) e -> (head qkv) d e" with head=8, qkv=3: q, k, v interleaved head by head;
    "(g o) i h w -> g o (i h w)" with g=4: one matrix per group of a convolution;
    "o i h w -> (o i) h w": one matrix per kernel.

    >>> kernels = BlockSpec.pattern("o i h w -> (o i) h w")
    >>> len(kernels.unpack(torch.zeros(4, 2, 3, 3)))
    8
    """

    text: str
    sizes: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        names = [n for side in self._sides for group in side for n in group]
        if set(self.known) - set(names):
            raise ValueError(f"{self} gives sizes of {sorted(set(self.known) - set(names))}, which it does not name.")
        if any(size < 1 for size in self.known.values()):
            raise ValueError(f"{self} gives a size below 1; every axis of a pattern has a length of 1 or more.")

    def __repr__(self) -> str:
        return f"BlockSpec.pattern({', '.join([repr(self.text), *(f'{n}={s}' for n, s in self.sizes)])})"

    @property
    def known(self) -> dict[str, int]:
        """The sizes that were given, by name."""
        return dict(self.sizes)

    def ndim(self, point_ndim: int) -> int:
        return len(self._sides[0])

    def shapes(self, shape: Sequence[int]) -> tuple[Shape, ...]:
        sizes = self._solve(0, tuple(shape))
        count, *block = self._lengths(1, sizes)
        return (tuple(block),) * count

    def unpack(self, x: Tensor, ndim: int | None = None) -> tuple[Tensor, ...]:
        batch = 0 if ndim is None else x.dim() - ndim
        return self._stack(x, batch).unbind(batch)

    def pack(self, blocks: Sequence[Tensor], shape: Sequence[int] | None = None) -> Tensor:
        batch = blocks[0].dim() - (len(self._sides[1]) - 1)
        came = {tuple(block.shape) for block in blocks}
        if len(came) > 1:
            raise ValueError(f"{self} has blocks of one shape; got {sorted(came)}.")
        return self._unstack(torch.stack(list(blocks), batch), None if shape is None else tuple(shape))

    def gather(self, x: Tensor, indices: Sequence[int], ndim: int) -> Tensor:
        batch = x.dim() - ndim
        return _select(self._stack(x, batch), indices, batch)

    def scatter(self, parts: Sequence[tuple[Sequence[int], Tensor]], shape: Sequence[int]) -> Tensor:
        batch = parts[0][1].dim() - len(self._sides[1])
        order = [i for indices, _ in parts for i in indices]
        stack = parts[0][1] if len(parts) == 1 else torch.cat([part for _, part in parts], batch)
        if order != sorted(order):
            place = sorted(range(len(order)), key=order.__getitem__)
            stack = stack.index_select(batch, torch.tensor(place, device=stack.device))
        return self._unstack(stack, tuple(shape))

    def _stack(self, x: Tensor, batch: int) -> Tensor:
        left, right = ([n for group in side for n in group] for side in self._sides)
        sizes = self._solve(0, tuple(x.shape[batch:]))
        lead = x.shape[:batch]
        axes = x.reshape(*lead, *(sizes[n] for n in left))
        axes = axes.permute(*range(batch), *(batch + left.index(n) for n in right))
        return axes.reshape(*lead, *self._lengths(1, sizes))

    def _unstack(self, stack: Tensor, shape: Shape | None) -> Tensor:
        left, right = ([n for group in side for n in group] for side in self._sides)
        batch = stack.dim() - len(self._sides[1])
        stacked = tuple(stack.shape[batch:])
        sizes = self._solve(1, stacked) if shape is None else self._solve(0, shape)
        if tuple(self._lengths(1, sizes)) != stacked:
            raise ValueError(f"{self} has blocks {tuple(self._lengths(1, sizes))} for shape {shape}; got {stacked}.")
        lead = stack.shape[:batch]
        axes = stack.reshape(*lead, *(sizes[n] for n in right))
        axes = axes.permute(*range(batch), *(batch + right.index(n) for n in left))
        return axes.reshape(*lead, *self._lengths(0, sizes))

    @cached_property
    def _sides(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        return parse(self.text)

    def _lengths(self, side: int, sizes: dict[str, int]) -> list[int]:
        # lists: torch.compile does not trace math.prod of a generator
        return [math.prod([sizes[n] for n in group]) for group in self._sides[side]]

    def _solve(self, side: int, shape: Shape) -> dict[str, int]:
        """Size of every named axis, from the shape of one side and the sizes that were given."""
        groups, sizes = self._sides[side], self.known
        told = ", ".join(f"{n}={s}" for n, s in self.sizes) or "no sizes"
        if len(groups) != len(shape):
            raise ValueError(f"{self} names {len(groups)} axes; got shape {shape}, which has {len(shape)}.")
        for group, length in zip(groups, shape, strict=True):
            unknown = [n for n in group if n not in sizes]
            product = math.prod([sizes[n] for n in group if n not in unknown])
            text = "(" + " ".join(group) + ")" if len(group) != 1 else group[0]
            if len(unknown) > 1:
                raise ValueError(
                    f"{self}: the axis {text} of length {length} has unknown sizes {' and '.join(unknown)} with "
                    f"{told}; got shape {shape}. Give all but one of them, as {unknown[0]}=..."
                    + (", or pass shape= of the packed tensor." if side else ", after the pattern.")
                )
            if length == 0 or length % product or (not unknown and length != product):
                raise ValueError(f"{self}: {told} does not fit the axis {text} of length {length} of shape {shape}.")
            if unknown:
                sizes[unknown[0]] = length // product
        return sizes


def _consecutive(indices: Sequence[int]) -> bool:
    return list(indices) == list(range(indices[0], indices[0] + len(indices)))


def _select(stack: Tensor, indices: Sequence[int], axis: int) -> Tensor:
    """stack at these indices of the axis, as a view where they are consecutive."""
    if list(indices) == list(range(stack.shape[axis])):
        return stack  # a slice, even of all, copies its gradient into zeros
    if _consecutive(indices):
        return stack.narrow(axis, indices[0], len(indices))
    return stack.index_select(axis, torch.tensor(list(indices), device=stack.device))
