"""M * N and M**k, as written on manifolds."""

from __future__ import annotations

from .base import Manifold
from .product import ProductManifold


def product(left: Manifold, right: Manifold | type[Manifold]) -> ProductManifold:
    """left * right: the factors of both, stacked on axis 0. A product with a layout of its own is one factor."""
    from .compositions.base import Composition  # which knows of manifolds

    other = right() if isinstance(right, type) else right
    if isinstance(other, Composition):  # whose product takes both
        return NotImplemented
    if not isinstance(other, Manifold):
        power_of = f" {left}**{right} is {right} of them." if type(right) is int and right > 0 else ""
        raise TypeError(f"{left} * {right!r}: a product is taken with a manifold, as in Stiefel * Euclidean.{power_of}")
    return ProductManifold((*_factors(left), *_factors(other)))


def power(manifold: Manifold, count: int) -> ProductManifold:
    """manifold**count: count copies of its factors, stacked on axis 0."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{manifold}**k needs a number of factors k >= 1; got {count!r}.")
    return ProductManifold(_factors(manifold) * count)


def _factors(manifold: Manifold) -> tuple[Manifold, ...]:
    if isinstance(manifold, ProductManifold) and manifold.stacked:
        return manifold.factors
    return (manifold,)
