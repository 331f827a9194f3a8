"""One of each set of the library, for what is stated of all of them."""

from __future__ import annotations

import manifolds
from manifolds import (
    Correlation,
    DoublyStochastic,
    Euclidean,
    FixedRank,
    GeodesicManifold,
    Grassmann,
    Hyperboloid,
    Manifold,
    NearestPointManifold,
    Oblique,
    Orthogonal,
    PoincareBall,
    Positive,
    PositiveDefinite,
    ProductManifold,
    Simplex,
    Skew,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    Symmetric,
)
from manifolds.cone import METRICS

EVERY: list[Manifold] = [
    *(Positive(), Euclidean(), Sphere(), Simplex(), Hyperboloid(), PoincareBall(), Oblique()),
    *(Correlation(), DoublyStochastic(), FixedRank(2), Symmetric(), Skew()),
    *(PositiveDefinite(name) for name in METRICS),  # type: ignore[arg-type]
    *(Stiefel(), Grassmann(), Orthogonal(), SpecialOrthogonal()),
]
"""Each has points in square matrices, of which Grassmann has but one."""

GEODESIC = [manifold for manifold in EVERY if isinstance(manifold, GeodesicManifold)]


def public(kind: type[Manifold] = Manifold) -> set[type[Manifold]]:
    """The classes of sets of this kind that a user can import."""
    found = {each for name in manifolds.__all__ if isinstance(each := getattr(manifolds, name), type)}
    bases = {Manifold, NearestPointManifold, GeodesicManifold, ProductManifold}
    return {each for each in found if issubclass(each, kind)} - bases
