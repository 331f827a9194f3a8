"""The product of k manifolds whose points are packed in one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ._points import broadcast, check_map, root, sizes
from ._runs import Run, runs_of
from .base import GeodesicManifold, Manifold, NearestPointManifold, check_ndim
from .engine import Engine
from .layout import BlockSpec, Layout

Map = Callable[..., Tensor]


def _factor(run: Run) -> Manifold:
    return run.factor


@dataclass(frozen=True, repr=False)
class ProductManifold(Manifold):
    """M_1 x ... x M_k: a packed tensor whose i-th block, under the layout, is a point of the i-th factor.

    Projection, retraction and transport act block by block; the metric is the sum of the factors' metrics.
    Equal factors on equal blocks run as one batched call. Usually written `Stiefel**3` or `Stiefel * Euclidean**2`.

    factors: the k manifolds; a factor may be a product itself.
    layout: where the blocks lie; None means BlockSpec(rows=k, axis=0), k equal blocks stacked on the first axis.
    Raises ValueError where the layout does not fit a shape or does not have k blocks.
    Source: Boumal (2023), section 3.2 and exercise 3.67.

    >>> gates = Stiefel**3
    >>> weight = gates.random(12, 4)
    >>> [tuple(gate.shape) for gate in gates.unpack(weight)]
    [(4, 4), (4, 4), (4, 4)]
    """

    factors: tuple[Manifold, ...]
    layout: Layout | None = None

    def __new__(cls, factors: Any = None, layout: Layout | None = None) -> ProductManifold:
        """A product has the abilities that all its factors have."""
        if not isinstance(factors, tuple | list) or not factors:
            return object.__new__(cls)
        made = [f if isinstance(f, type) else type(f) for f in factors]
        abilities = tuple(all(issubclass(f, kind) for f in made) for kind in (NearestPointManifold, GeodesicManifold))
        kind = KINDS[abilities]
        return object.__new__(kind) if issubclass(kind, cls) else ProductManifold(tuple(factors), layout)

    def __reduce__(self) -> tuple[Any, ...]:
        return ProductManifold, (self.factors, self.layout)  # what is cached, a hash among it, stays behind

    def __post_init__(self) -> None:
        if not isinstance(self.factors, (tuple, list)):
            raise TypeError(
                f"the factors of ProductManifold are a tuple of manifolds; got {self.factors!r}. Write Stiefel * "
                f"Sphere, or ProductManifold((Stiefel, Sphere), layout)."
            )
        factors = tuple(f() if isinstance(f, type) else f for f in self.factors)
        if not factors or not all(isinstance(f, Manifold) for f in factors):
            raise TypeError(
                f"a product needs one or more manifolds; got {factors}. Write Stiefel**3 or Stiefel * Sphere."
            )
        object.__setattr__(self, "factors", factors)
        if not isinstance(self.layout, Layout | None):
            raise TypeError(
                f"the layout of ProductManifold is a BlockSpec or a BlockSpec.pattern(...); got {self.layout!r}."
            )
        if self.layout is None:
            object.__setattr__(self, "layout", BlockSpec(rows=len(factors), axis=0))

    def __len__(self) -> int:
        return len(self.factors)

    def __iter__(self) -> Iterator[Manifold]:
        return iter(self.factors)

    def __getitem__(self, i: int) -> Manifold:
        """The i-th factor, negative i from the end. TypeError for a slice, which would not say which layout it has."""
        if not hasattr(i, "__index__"):
            raise TypeError(
                f"{self}[i] is its factor i, a number; got {i!r}. For several write ProductManifold(M.factors[:2])."
            )
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self} has {len(self)} factors, from 0 to {len(self) - 1}; got index {i}.")
        return self.factors[i]

    def __repr__(self) -> str:
        """Python that makes an equal product, as far as the reprs of its factors do."""
        runs: list[tuple[Manifold, int]] = []
        for factor in self.factors:
            if runs and runs[-1][0] == factor:
                runs[-1] = (factor, runs[-1][1] + 1)
            else:
                runs.append((factor, 1))
        # an algebra of products would make one product of all their factors
        if self.stacked and len(self) > 1 and not any(isinstance(f, ProductManifold) and f.stacked for f, _ in runs):
            return " * ".join(f"{f}" if k == 1 else f"{f}**{k}" for f, k in runs)
        if all(k == 1 for _, k in runs):
            factors = f"({', '.join(map(str, self.factors))}{',' if len(self) == 1 else ''})"
        else:
            factors = " + ".join(f"({f},)" if k == 1 else f"({f},) * {k}" for f, k in runs)
        return f"ProductManifold({factors}{'' if self.stacked else f', {self.layout!r}'})"

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        """Without what was computed: the hash of a string is another one in another process."""
        return {"factors": self.factors, "layout": self.layout}

    @property
    def stacked(self) -> bool:
        """Whether the layout is the default one: k equal blocks stacked on axis 0."""
        return self.layout == BlockSpec(rows=len(self.factors), axis=0)

    @property
    def ndim(self) -> int:
        return self._where.ndim(max(f.ndim for f in self.factors))

    @property
    def constant_norm(self) -> bool:  # type: ignore[override]
        return all(f.constant_norm for f in self.factors)

    @property
    def is_quotient(self) -> bool:  # type: ignore[override]
        return any(f.is_quotient for f in self.factors)

    # Blocks ----------------------------------------------------------------------------------------------

    def unpack(self, x: Tensor) -> tuple[Tensor, ...]:
        """The k blocks of x, each (*batch, *block), in the order of the factors; views where the layout allows."""
        self._runs(self._point(x.shape))
        return self._where.unpack(x, self.ndim)

    def pack(self, blocks: Sequence[Tensor], shape: Sequence[int] | None = None) -> Tensor:
        """The packed tensor of k blocks, the inverse of `unpack`; shape only where the layout cannot derive it."""
        if len(blocks) != len(self):
            raise ValueError(f"{self} has {len(self)} factors; got {len(blocks)} blocks. Pass one block for each.")
        return self._where.pack(blocks, shape)

    def factor_residuals(self, x: Tensor) -> Tensor:
        """The worst residual of each factor, (*batch, k)."""
        return self._per_factor(lambda m, *t: m.residual(*t), torch.amax, x)

    # The contract, factor by factor ------------------------------------------------------------------------

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return self._map(lambda m, *t: m.project(*t), x, a)

    def dim(self, shape: Sequence[int]) -> int:
        return self._total(shape, lambda m, s: m.dim(s))

    def dim_of_complex(self, shape: Sequence[int]) -> int:
        return self._total(shape, lambda m, s: m.dim_of_complex(s))

    def residual(self, x: Tensor) -> Tensor:
        """The worst residual of the factors, one number per packed point."""
        return self.factor_residuals(x).amax(-1)

    def random_tangent(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self._map(lambda m, t: m.random_tangent(t, generator), x)

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return self._map(lambda m, *t: m.gradient(*t), x, g)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The sum of the factors' metrics, one number per packed point."""
        return self._per_factor(lambda m, *t: m.inner(*t), torch.sum, x, u, v).sum(-1)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self._map(lambda m, *t: m.retract(*t), x, v)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return self._map(lambda m, *t: m.transport(*t), x, y, v)

    def random(
        self,
        *shape: int | Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A packed tensor of independent random points of the factors."""
        self.dim(shape := sizes(shape))
        point = self._point(shape)
        batch, blocks, stacks = shape[: len(shape) - len(point)], self._where.shapes(point), []
        for factor, indices, _ in self._runs(point):
            part = (*batch, len(indices), *blocks[indices[0]])
            stacks.append((indices, factor.random(*part, generator=generator, dtype=dtype, device=device)))
        return self._where.scatter(stacks, point)

    def _engine(self) -> Engine:
        from ._product import ProductEngine  # which knows of this class

        return ProductEngine(self)

    # How ---------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> Layout:
        assert self.layout is not None
        return self.layout

    @cached_property
    def _hash(self) -> int:
        return hash((self.factors, self.layout))

    @cached_property
    def _run_cache(self) -> dict[tuple[int, ...], tuple[Run, ...]]:
        return {}

    def _point(self, shape: Sequence[int]) -> tuple[int, ...]:
        return check_ndim(self, shape, self.ndim)[1]

    def _runs(self, point: tuple[int, ...]) -> tuple[Run, ...]:
        """Equal factors on blocks of equal shape, in the order in which they first appear."""
        if point not in self._run_cache:
            self._run_cache[point] = runs_of(self, point, self._where.shapes(point))
        return self._run_cache[point]

    def _total(self, shape: Sequence[int], count_of: Callable[[Manifold, tuple[int, ...]], int]) -> int:
        """count_of every factor for its blocks, added up."""
        count, point = check_ndim(self, shape, self.ndim)
        blocks = self._where.shapes(point)
        runs = self._runs(point)
        return count * sum(count_of(factor, (len(indices), *blocks[indices[0]])) for factor, indices, _ in runs)

    def _gather(self, run: Run, tensors: Sequence[Tensor]) -> list[Tensor]:
        ndim = self.ndim
        return [self._where.gather(t, run.indices, ndim) for t in tensors]

    def _map(self, method: Map, *tensors: Tensor, of: Callable[[Run], Any] = _factor) -> Tensor:
        """method of every factor, or its engine, on its blocks, packed again."""
        tensors = broadcast(self, *tensors)
        point = self._point(tensors[0].shape)
        parts = [(run.indices, method(of(run), *self._gather(run, tensors))) for run in self._runs(point)]
        return self._where.scatter(parts, point)

    def _per_factor(self, method: Map, reduce: Map, *tensors: Tensor, of: Callable[[Run], Any] = _factor) -> Tensor:
        """method of every factor, or its engine, on its blocks, reduced to one number a factor: (*batch, k)."""
        tensors = broadcast(self, *tensors)
        batch = tensors[0].dim() - self.ndim
        columns: dict[int, Tensor] = {}
        for run in self._runs(self._point(tensors[0].shape)):
            numbers = method(of(run), *self._gather(run, tensors))
            if numbers.dim() > batch + 1:
                numbers = reduce(numbers.flatten(batch + 1), -1)
            columns.update(zip(run.indices, numbers.unbind(batch), strict=True))
        return torch.stack([columns[i] for i in range(len(self))], batch)


@dataclass(frozen=True, repr=False, eq=False)
class NearestProduct(ProductManifold, NearestPointManifold):
    """A product of closed sets."""

    def nearest(self, x: Tensor) -> Tensor:
        return self._map(lambda m, t: check_map(m, "nearest", t, m.nearest(t)), x)


@dataclass(frozen=True, repr=False, eq=False)
class GeodesicProduct(ProductManifold, GeodesicManifold):
    """A product of manifolds whose geodesics are known: they go factor by factor."""

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return self._map(lambda m, *t: m.exp(*t), x, v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self._map(lambda m, *t: m.log(*t), x, y)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """sqrt of the sum of the squares of the factors' distances, one number per packed point."""
        return root(self._per_factor(lambda m, *t: m.distance(*t).square(), torch.sum, x, y).sum(-1))


@dataclass(frozen=True, repr=False, eq=False)
class NearestGeodesicProduct(NearestProduct, GeodesicProduct):
    """A product of closed sets whose geodesics are known."""


KINDS: dict[tuple[bool, ...], type[ProductManifold]] = {
    (False, False): ProductManifold,
    (True, False): NearestProduct,
    (False, True): GeodesicProduct,
    (True, True): NearestGeodesicProduct,
}
