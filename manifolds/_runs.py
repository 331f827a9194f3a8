"""Which factors of a product run as one batched call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .base import Manifold
from .engine import Engine, engine

if TYPE_CHECKING:
    from .product import ProductManifold

Shape = tuple[int, ...]


class Run(NamedTuple):
    """A factor, the indices of its blocks of one shape, and its engine."""

    factor: Manifold
    indices: tuple[int, ...]
    engine: Engine


def runs_of(product: ProductManifold, point: Shape, blocks: Sequence[Shape]) -> tuple[Run, ...]:
    """Equal factors on blocks of equal shape, in the order in which they first appear. ValueError where the blocks
    into which the layout cuts a point of this shape do not fit the factors."""
    if len(blocks) != len(product):
        raise ValueError(
            f"{product} has {len(product)} factors, but {product.layout} cuts shape {point} into {len(blocks)} blocks. "
            f"Give as many factors as blocks: Manifold**{len(blocks)}."
        )
    for factor, block in zip(product.factors, blocks, strict=True):
        if len(block) < factor.ndim:
            raise ValueError(
                f"{factor} has points of {factor.ndim} axes, but {product.layout} cuts shape {point} into "
                f"{len(blocks)} blocks of shape {block}. The first axis of the right side counts the blocks."
            )
    runs: dict[tuple[Manifold, Shape], list[int]] = {}
    for i, key in enumerate(zip(product.factors, blocks, strict=True)):
        runs.setdefault(key, []).append(i)
    return tuple(
        Run(factor, tuple(indices), engine(factor).of_shape(block)) for (factor, block), indices in runs.items()
    )
