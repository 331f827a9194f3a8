"""The public Hypothesis strategies draw what they say, and every kind of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import find, given

from manifolds import BlockSpec, Euclidean, Manifold, Orthogonal, ProductManifold, SpecialOrthogonal, Sphere, Stiefel
from manifolds._points import inner
from manifolds.testing import points, shapes, tangent_vectors

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
MANIFOLDS: list[Manifold] = [
    Euclidean(),
    Sphere(),
    Stiefel(),
    Orthogonal(),
    SpecialOrthogonal(),
    Stiefel**3,
    Orthogonal * Sphere,
    ProductManifold((Stiefel,) * 2, BlockSpec(rows=(4, 2))),
    ProductManifold((Stiefel,) * 4, BlockSpec.pattern("o i h w -> (o i) h w")),
]
every_manifold = pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)


@every_manifold
def test_shapes_are_shapes_of_points(manifold: Manifold) -> None:
    @given(shapes(manifold, max_side=6, max_batch=2))
    def check(shape: tuple[int, ...]) -> None:
        assert manifold.dim(shape) >= 0
        assert manifold.ndim <= len(shape) <= manifold.ndim + 2

    check()


def test_shapes_are_square_tall_and_wide_with_and_without_batch_axes() -> None:
    for wanted in (lambda s: s[-1] > s[-2], lambda s: s[-1] < s[-2], lambda s: s[-1] == s[-2], lambda s: len(s) == 4):
        find(shapes(Stiefel), wanted)


@every_manifold
def test_points_are_points(manifold: Manifold) -> None:
    @given(points(manifold, dtype=DTYPES))
    def check(x: torch.Tensor) -> None:
        assert x.dtype in DTYPES
        assert manifold.contains(x).all()

    check()


@every_manifold
def test_tangent_vectors_are_tangent(manifold: Manifold) -> None:
    @given(tangent_vectors(manifold, dtype=DTYPES))
    def check(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, v = pair
        assert v.shape == x.shape
        assert v.dtype == x.dtype
        error = (manifold.project(x, v) - v).abs().max()
        assert error <= 100 * torch.finfo(x.dtype).eps * max(1, float(v.abs().max()))
        size = inner(v, v, manifold.ndim).sqrt()
        assert size.isfinite().all()
        assert ((size < 1e-3) | ((size - 1).abs() < 1e-3) | ((size - 10).abs() < 1e-2)).all()

    check()


def test_every_dtype_and_length_is_drawn() -> None:
    for dtype in DTYPES:
        find(points(Sphere, (3,), dtype=DTYPES), lambda x, dtype=dtype: x.dtype == dtype)
    pairs = tangent_vectors(Stiefel, (4, 2))
    for low, high in ((0, 0), (0.9e-4, 1.1e-4), (0.9, 1.1), (9, 11)):
        find(pairs, lambda pair, low=low, high=high: low <= float(pair[1].norm()) <= high)


@given(points(Stiefel**2, (3, 6, 2)), tangent_vectors(Sphere, (5,), dtype=torch.float32))
def test_shape_and_dtype_may_be_given(x: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert (x.shape, x.dtype) == ((3, 6, 2), torch.float64)
    assert (pair[1].shape, pair[1].dtype) == ((5,), torch.float32)


def test_a_draw_is_a_function_of_its_seed() -> None:
    """What was drawn before from torch's generator has no influence."""
    torch.manual_seed(1)
    first = find(tangent_vectors(Stiefel, (3, 2)), lambda pair: bool(pair[1].any()))
    torch.manual_seed(2)
    second = find(tangent_vectors(Stiefel, (3, 2)), lambda pair: bool(pair[1].any()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_manifold_without_small_shapes_asks_for_larger_sides() -> None:
    large = ProductManifold((Stiefel,) * 2, BlockSpec(rows=(40, 20)))
    with pytest.raises(ValueError, match=r"no points of 2 axes with sides up to max_side=6. Pass a larger max_side"):
        shapes(large)
    assert find(shapes(large, max_side=60), lambda s: True)[-2] == 60
