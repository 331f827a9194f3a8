"""Every manifold of the library keeps every theorem of the contract, in all four dtypes."""

from __future__ import annotations

from functools import partial

import pytest
from torch import Tensor

from manifolds import (
    BlockSpec,
    Euclidean,
    Grassmann,
    Manifold,
    Oblique,
    Orthogonal,
    ProductManifold,
    Skew,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    Symmetric,
    retractions,
)
from manifolds.testing import check_manifold

RETRACTIONS = (retractions.polar, retractions.qr, retractions.cayley, retractions.exp)


def polar_of_twice_half(x: Tensor, v: Tensor) -> Tensor:
    """A retraction of a user's own: polar, then Cayley from there, each half the way."""
    y = retractions.polar(x, v / 2)
    half = v / 2
    gram = half @ y.mH if x.shape[-2] < x.shape[-1] else y.mH @ half
    rest = half - (gram + gram.mH) @ y / 2 if x.shape[-2] < x.shape[-1] else half - y @ (gram + gram.mH) / 2
    return retractions.cayley(y, rest)


STIEFEL = [
    (Stiefel(metric, retraction), shape)
    for metric in ("euclidean", "canonical")
    for retraction in RETRACTIONS
    for shape in ((4, 4), (6, 3), (3, 6))
]
DEGENERATE = [
    (Stiefel(metric, retraction), shape)
    for metric, retraction in zip(("canonical", "euclidean") * 2, RETRACTIONS, strict=True)
    for shape in ((1, 1), (5, 1), (1, 5), (2, 2), (3, 3), (4, 3))
]
GROUPS = [
    (group(retraction), (n, n))
    for group in (Orthogonal, SpecialOrthogonal)
    for retraction in RETRACTIONS
    for n in (1, 2, 3, 4)
]
VECTORS: list[tuple[Manifold, tuple[int, ...]]] = [
    (Euclidean(), (4, 3)),
    (Euclidean(), ()),
    (Sphere(), (5,)),
    (Sphere(), (2, 3)),
    (Sphere(), (1,)),
    (Sphere(2.0), (4,)),
    (Sphere(0.5, 2), (2, 3)),
    (Sphere(ndim=2), (2, 1, 2)),
    (Euclidean(1), (4,)),
    (Euclidean(2), (2, 3)),
    (Oblique(), (3, 2)),
    (Oblique(-1), (2, 2, 3)),
    (Oblique(), (1, 3)),
    (Symmetric(), (3, 3)),
    (Symmetric(), (1, 1)),
    (Skew(), (3, 3)),
    (Skew(), (2, 1, 1)),
    *((Grassmann(), shape) for shape in ((5, 2), (3, 2), (2, 5), (4, 4), (5, 1), (2, 4, 3), (1, 1))),
]
OWN = [
    (kind(retraction=polar_of_twice_half), shape)
    for kind, shape in (
        (Stiefel, (4, 4)),
        (partial(Stiefel, "canonical"), (5, 2)),
        (Stiefel, (2, 5)),
        (Orthogonal, (3, 3)),
        (SpecialOrthogonal, (3, 3)),
    )
]
PRODUCTS: list[tuple[Manifold, tuple[int, ...]]] = [
    (Stiefel**3, (9, 3)),
    (Stiefel**3, (6, 4)),
    (Stiefel**1, (4, 3)),
    (Stiefel * Euclidean**2, (9, 3)),
    (Stiefel("canonical", retractions.exp) ** 2, (8, 3)),
    (Stiefel * Orthogonal * Stiefel * Sphere, (8, 2)),  # equal factors that do not follow one another
    (Sphere * Euclidean, (6,)),
    (ProductManifold((Stiefel,) * 2, BlockSpec(rows=2, axis=1)), (3, 6)),
    (ProductManifold((Sphere, Sphere), BlockSpec(rows=2, axis=-1)), (2, 6)),
    (ProductManifold((Stiefel, SpecialOrthogonal, Stiefel), BlockSpec(rows=(4, 2, 4))), (10, 2)),  # grouped-query rows
    (ProductManifold((Stiefel,) * 6, BlockSpec.pattern("(head qkv d) e -> (head qkv) d e", head=2, qkv=3)), (12, 3)),
    (ProductManifold((Stiefel, Sphere) * 2, BlockSpec.pattern("o (g i) h -> g o (i h)", g=4)), (3, 8, 2)),
    (ProductManifold((Orthogonal,) * 4, BlockSpec.pattern("o i h w -> (o i) h w")), (2, 2, 2, 2)),
    (ProductManifold((Stiefel**2, SpecialOrthogonal**4)), (16, 2)),  # products of products
    (ProductManifold((Stiefel**2, Stiefel**2), BlockSpec(rows=2, axis=1)), (6, 4)),
    (Oblique * Symmetric * Skew, (9, 3)),
    (Grassmann * Sphere * Grassmann, (15, 2)),
    (Sphere(2.0, 2) * Euclidean(2), (4, 3)),
]


def cases(pairs: list[tuple[Manifold, tuple[int, ...]]]) -> object:
    return pytest.mark.parametrize(("manifold", "shape"), pairs, ids=[f"{m}-{s}" for m, s in pairs])


@cases(VECTORS)
def test_vectors(manifold: Manifold, shape: tuple[int, ...]) -> None:
    check_manifold(manifold, shape)


@cases(STIEFEL)
def test_stiefel(manifold: Manifold, shape: tuple[int, ...]) -> None:
    check_manifold(manifold, shape)


@cases(DEGENERATE)
def test_stiefel_of_one_row_or_column_and_nearly_square(manifold: Manifold, shape: tuple[int, ...]) -> None:
    check_manifold(manifold, shape)


@cases(GROUPS)
def test_groups(manifold: Manifold, shape: tuple[int, ...]) -> None:
    check_manifold(manifold, shape)


@cases(OWN)
def test_a_retraction_of_a_users_own(manifold: Manifold, shape: tuple[int, ...]) -> None:
    check_manifold(manifold, shape)


@cases(PRODUCTS)
def test_products(manifold: Manifold, shape: tuple[int, ...]) -> None:
    check_manifold(manifold, shape)


@pytest.mark.parametrize("shape", [(2, 1, 3, 4, 2), (1, 6, 3)])
def test_any_number_of_batch_axes(shape: tuple[int, ...]) -> None:
    check_manifold(Stiefel, shape)


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(Stiefel("canonical", retractions.qr), (5, 3)), (SpecialOrthogonal(), (4, 4)), (Sphere(), (3,))],
)
def test_other_seeds(manifold: Manifold, shape: tuple[int, ...], seed: int) -> None:
    check_manifold(manifold, shape, seed=seed)
