"""What engines call on a product: the engines of its factors, block by block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._runs import Run
from .base import Manifold
from .engine import Engine, engine
from .product import ProductManifold


class ProductEngine(Engine):
    """The engines of the factors. Equal factors on equal blocks run as one batched call."""

    manifold: ProductManifold

    def coordinates(self, x: Tensor, a: Tensor) -> Tensor:
        return self.manifold._map(lambda e, *t: e.coordinates(*t), x, a, of=_engine)

    def lift(self, x: Tensor, g: Tensor) -> Tensor:
        return self.manifold._map(lambda e, *t: e.lift(*t), x, g, of=_engine)

    def move(self, x: Tensor, c: Tensor) -> Tensor:
        return self.manifold._map(lambda e, *t: e.move(*t), x, c, of=_engine)

    def carry(self, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return self.manifold._map(lambda e, *t: e.carry(*t), x, y, c, of=_engine)

    def coordinate_inner(self, x: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return self.manifold._per_factor(lambda e, *t: e.coordinate_inner(*t), torch.sum, x, c, d, of=_engine).sum(-1)

    def recenter(self, x: Tensor, y: Tensor, c: Tensor, m: Tensor) -> Tensor:
        return self.manifold._map(lambda e, *t: e.recenter(*t), x, y, c, m, of=_engine)

    def is_long(self, x: Tensor, c: Tensor) -> bool:
        parts = zip(self.split(x), self.split(c), strict=True)
        return any(engine(f).is_long(points, vectors) for (f, points), (_, vectors) in parts)

    def polish(self, x: Tensor) -> Tensor:
        return self.manifold._map(lambda e, *t: e.polish(*t), x, of=_engine)

    def split(self, x: Tensor) -> list[tuple[Manifold, Tensor]]:
        m = self.manifold
        runs = m._runs(m._point(x.shape))
        return [leaf for run in runs for leaf in run.engine.split(m._where.gather(x, run.indices, m.ndim))]

    def join(self, parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        m = self.manifold
        point, rest, stacks = m._point(shape), list(parts), []
        batch = tuple(shape)[: len(shape) - len(point)]
        blocks = m._where.shapes(point)
        for run in m._runs(point):
            block = blocks[run.indices[0]]
            count = len(run.engine.split(torch.empty((1, *block), device="meta")))
            stacks.append((run.indices, run.engine.join(rest[:count], (*batch, len(run.indices), *block))))
            rest = rest[count:]
        return m._where.scatter(stacks, point)


def _engine(run: Run) -> Engine:
    return run.engine
