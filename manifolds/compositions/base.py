"""Weights that are maps of several points, as U diag(s) V^H, and packed weights of those."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .._points import length, sizes
from ..base import Manifold, ManifoldMeta, check_ndim
from ..layout import BlockSpec, Layout

Parts = dict[str, tuple[Manifold | None, tuple[int, ...]]]


class Composition(ABC, metaclass=ManifoldMeta):
    """How a tensor is made of points of manifolds, each of which is held by an engine.

    A subclass is a frozen dataclass that defines `parts`, `compose` and `decompose`; `ndim` axes make one tensor, and
    the axes before are batch axes, in the parts too. A composition is a factor of a product like a manifold:
    `LowRank(8)**3`, `LowRank(8) * Stiefel`.

    >>> (LowRank(2) ** 3).parts((12, 5))["u"]
    (Stiefel, (3, 4, 2))
    """

    ndim: int = 2

    @abstractmethod
    def parts(self, shape: Sequence[int]) -> Parts:
        """name -> (manifold, shape) of each part of a tensor of this shape; manifold None for a constant.

        Raises ValueError where no tensor of this shape is made so.
        """

    @abstractmethod
    def compose(self, **points: Inexact[Tensor, "..."]) -> Inexact[Tensor, "..."]:
        """The tensor that these points make, differentiable in each."""

    @abstractmethod
    def decompose(self, x: Inexact[Tensor, "..."]) -> dict[str, Inexact[Tensor, "..."]]:
        """Points with compose(**points) = x where there are such, else those of the nearest tensor that can be told.

        Raises ValueError where there are none. Need not be differentiable, nor unique.
        """

    def dim(self, shape: Sequence[int]) -> int:
        """Degrees of freedom of the parts together, which may be more than those of the tensor."""
        return sum(manifold.dim(part) for manifold, part in self.parts(shape).values() if manifold is not None)

    def residual(self, x: Inexact[Tensor, "..."]) -> Float[Tensor, "..."]:
        """|x - compose(**decompose(x))| / max(1, |x|), one number per tensor; NaN where x is not finite."""
        check_ndim(self, x.shape, self.ndim)
        sound = x.detach().isfinite().all(tuple(range(-self.ndim, 0)))
        if not bool(sound.all()):
            numbers = torch.full(sound.shape, torch.nan, dtype=x.dtype.to_real(), device=x.device)
            return numbers.masked_scatter(sound, self.residual(x[sound]))
        back = self.made(self.decompose(x), x.shape)
        return length(x - back, self.ndim) / length(x, self.ndim).clamp_min(1)

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Inexact[Tensor, "..."]:
        """compose of random points, with the constants of a Gaussian."""
        shape = sizes(shape)
        return self.made(self.random_points(shape, generator, dtype, device), shape)

    def random_points(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Inexact[Tensor, "..."]]:
        """A random point for each part, and for the constants those of a Gaussian."""
        parts = self.parts(shape)
        points = {
            name: manifold.random(*part, generator=generator, dtype=dtype, device=device)
            for name, (manifold, part) in parts.items()
            if manifold is not None
        }
        if len(points) < len(parts):
            drawn = self.decompose(torch.randn(tuple(shape), generator=generator, dtype=dtype, device=device))
            points = {name: points.get(name, drawn[name]) for name in parts}
        return points

    def made(self, points: dict[str, Inexact[Tensor, "..."]], shape: Sequence[int]) -> Inexact[Tensor, "..."]:
        """compose(**points), a tensor of this shape."""
        return self.compose(**points)

    def __mul__(self, other: Any) -> ComposedProduct:
        """M * N: the tensors of both stacked on axis 0."""
        return ComposedProduct((*factors_of(self), *factors_of(other)))

    def __rmul__(self, other: Any) -> ComposedProduct:
        return ComposedProduct((*factors_of(other), *factors_of(self)))

    def __pow__(self, count: int) -> ComposedProduct:
        """M**k: k tensors of M stacked on axis 0."""
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{self}**k needs a number of factors k >= 1; got {count!r}.")
        return ComposedProduct(factors_of(self) * count)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # @dataclass writes a repr with every default; it leaves alone one that is there already
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        values = [(f, getattr(self, f.name)) for f in fields(self)]  # type: ignore[arg-type]
        shown = [f"{f.name}={v!r}" for f, v in values if f.default is MISSING or v != f.default]
        return type(self).__name__ + (f"({', '.join(shown)})" if shown else "")


class Run(NamedTuple):
    """A factor, the indices of its blocks of one shape, and what is added to the names of its parts."""

    factor: Manifold | Composition
    indices: tuple[int, ...]
    suffix: str


@dataclass(frozen=True, repr=False)
class ComposedProduct(Composition):
    """A packed tensor whose i-th block, under the layout, is made as the i-th factor says; a manifold is its own part.

    Equal factors on equal blocks are one batch: their parts have an axis of k. Usually written `LowRank(8)**3`.
    Names of parts are those of the factor, with a number where there are several kinds of blocks; the part of a
    manifold is `point`.

    factors: compositions and manifolds. layout: None means k equal blocks stacked on the first axis.
    Raises ValueError where the layout does not fit a shape or does not have k blocks.

    >>> [name for name in (LowRank(2) * Stiefel).parts((8, 4))]
    ['u0', 's0', 'v0', 'point1']
    """

    factors: tuple[Manifold | Composition, ...]
    layout: Layout | None = None

    def __post_init__(self) -> None:
        factors = tuple(f() if isinstance(f, type) else f for f in self.factors)
        if not factors or not all(isinstance(f, Manifold | Composition) for f in factors):
            raise TypeError(f"a product needs one or more manifolds or compositions; got {self.factors!r}.")
        object.__setattr__(self, "factors", factors)
        if self.layout is None:
            object.__setattr__(self, "layout", BlockSpec(rows=len(factors), axis=0))

    @property
    def stacked(self) -> bool:
        """Whether the layout is the default one: k equal blocks stacked on axis 0."""
        return self.layout == BlockSpec(rows=len(self.factors), axis=0)

    @property
    def ndim(self) -> int:  # type: ignore[override]
        return self._where.ndim(max(f.ndim for f in self.factors))

    def __len__(self) -> int:
        return len(self.factors)

    def __repr__(self) -> str:
        if self.stacked and len(set(self.factors)) == 1:
            return f"{self.factors[0]}**{len(self)}"
        if self.stacked:
            return " * ".join(map(repr, self.factors))
        return f"ComposedProduct({self.factors!r}, {self.layout!r})"

    def parts(self, shape: Sequence[int]) -> Parts:
        batch, runs, blocks = self._cut(shape)
        found: Parts = {}
        for run in runs:
            whole = (*batch, len(run.indices), *blocks[run.indices[0]])
            if isinstance(run.factor, Composition):
                found.update({name + run.suffix: part for name, part in run.factor.parts(whole).items()})
            else:
                run.factor.dim(whole)
                found["point" + run.suffix] = run.factor, whole
        return found

    def compose(  # type: ignore[override]
        self, *, shape: Sequence[int] | None = None, **points: Inexact[Tensor, "..."]
    ) -> Inexact[Tensor, "..."]:
        """The packed tensor; shape is its own, batch axes included, which equal blocks on an axis do without."""
        if shape is None:
            shape = self._shape(points)
        _, runs, blocks = self._cut(shape)
        stacks = []
        for run in runs:
            count = (*self._batch(shape), len(run.indices), *blocks[run.indices[0]])
            stacks.append((run.indices, _made(run, points, count)))
        return self._where.scatter(stacks, tuple(shape)[len(shape) - self.ndim :])

    def made(self, points: dict[str, Inexact[Tensor, "..."]], shape: Sequence[int]) -> Inexact[Tensor, "..."]:
        return self.compose(shape=shape, **points)

    def decompose(self, x: Inexact[Tensor, "..."]) -> dict[str, Inexact[Tensor, "..."]]:
        _, runs, _ = self._cut(x.shape)
        points: dict[str, Tensor] = {}
        for run in runs:
            stack = self._where.gather(x, run.indices, self.ndim)
            if isinstance(run.factor, Composition):
                points.update({name + run.suffix: point for name, point in run.factor.decompose(stack).items()})
            else:
                points["point" + run.suffix] = nearest_point(run.factor, stack)
        return points

    @property
    def _where(self) -> Layout:
        assert self.layout is not None
        return self.layout

    def _batch(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape)[: len(shape) - self.ndim]

    def _cut(self, shape: Sequence[int]) -> tuple[tuple[int, ...], list[Run], tuple[tuple[int, ...], ...]]:
        """(batch axes, runs of equal factors on equal blocks, shapes of the blocks)."""
        _, point = check_ndim(self, shape, self.ndim)
        blocks = self._where.shapes(point)
        if len(blocks) != len(self):
            raise ValueError(
                f"{self} has {len(self)} factors, but {self.layout} cuts shape {point} into {len(blocks)} blocks. "
                f"Give as many factors as blocks."
            )
        runs: dict[Any, list[int]] = {}
        for i, key in enumerate(zip(self.factors, blocks, strict=True)):
            runs.setdefault(key, []).append(i)
        many = len(runs) > 1
        found = [Run(key[0], tuple(run), str(i) if many else "") for i, (key, run) in enumerate(runs.items())]
        return self._batch(shape), found, blocks

    def _shape(self, points: dict[str, Tensor]) -> tuple[int, ...]:
        """That of the tensor, where all factors and blocks are equal."""
        if len(set(self.factors)) > 1 or not self.stacked:
            raise ValueError(f"compose of {self} needs shape=, that of the tensor, as its blocks may differ.")
        made = _made(Run(self.factors[0], tuple(range(len(self))), ""), points, None)
        batch = made.dim() - self.ndim - 1
        return (*made.shape[:batch], made.shape[batch] * made.shape[batch + 1], *made.shape[batch + 2 :])


def factors_of(factor: Any) -> tuple[Manifold | Composition, ...]:
    """The factors that the algebra of products sees in a composition or manifold, or its class."""
    factor = factor() if isinstance(factor, type) else factor
    if not isinstance(factor, Manifold | Composition):
        raise TypeError(
            f"a product is taken with a manifold or a composition, as in LowRank(8) * Stiefel; got {factor!r}."
        )
    return factor.factors if getattr(factor, "stacked", False) else (factor,)  # type: ignore[union-attr]


def _made(run: Run, points: dict[str, Tensor], shape: tuple[int, ...] | None) -> Tensor:
    if not isinstance(run.factor, Composition):
        return points["point" + run.suffix]
    end = len(run.suffix)
    own = {name[: len(name) - end]: point for name, point in points.items() if name.endswith(run.suffix)}
    return run.factor.compose(**own) if shape is None else run.factor.made(own, shape)


def nearest_point(manifold: Manifold, x: Tensor) -> Tensor:
    """The nearest point of a manifold, or the tensor itself where it is one."""
    nearest = getattr(manifold, "nearest", None)
    if nearest is not None:
        return nearest(x)  # type: ignore[no-any-return]
    if not bool(manifold.contains(x).all()):
        raise ValueError(f"a block of shape {tuple(x.shape)} is not on {manifold}, which has no nearest point.")
    return x
