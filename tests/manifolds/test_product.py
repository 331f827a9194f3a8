"""A product does to each block what its factor does, in one call for equal factors; it is written M * N and M**k."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from manifolds import (
    BlockSpec,
    Euclidean,
    Manifold,
    Orthogonal,
    PositiveDefinite,
    ProductManifold,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    retractions,
)
from manifolds._tall import StiefelEngine
from manifolds.engine import Engine, engine

CANONICAL = Stiefel("canonical", retractions.cayley)
HEADS = BlockSpec.pattern("(head qkv d) e -> (head qkv) d e", head=2, qkv=3)
PRODUCTS = [
    (Stiefel**3, (9, 3)),
    (Stiefel * Euclidean**2, (9, 2)),
    (Stiefel * CANONICAL * Stiefel * Sphere, (12, 2)),
    (ProductManifold((Stiefel, CANONICAL), BlockSpec(rows=2, axis=1)), (4, 6)),
    (ProductManifold((Stiefel, Orthogonal, Stiefel), BlockSpec(rows=(4, 2, 4))), (10, 2)),
    (ProductManifold((Stiefel, Sphere, Euclidean) * 2, HEADS), (12, 3)),
    (ProductManifold((Stiefel**2, SpecialOrthogonal**4)), (16, 2)),
]
every_product = pytest.mark.parametrize(("product", "shape"), PRODUCTS, ids=[str(p) for p, _ in PRODUCTS])

POINTS = {
    "project": "xa",
    "nearest": "z",
    "gradient": "xa",
    "retract": "xv",
    "transport": "xyv",
}
ENGINE_POINTS = {
    "coordinates": "xa",
    "lift": "xa",
    "move": "xc",
    "carry": "xyc",
    "polish": "x",
}


def arguments(product: ProductManifold, shape: tuple[int, ...]) -> dict[str, Tensor]:
    x, y = (product.random(2, *shape, dtype=torch.float64) for _ in range(2))
    a, b, z = (torch.randn(2, *shape, dtype=torch.float64) for _ in range(3))
    return {
        "x": x,
        "y": y,
        "z": x + 0.1 * z,
        "a": a,
        "v": product.project(x, a),
        "u": product.project(x, b),
        "c": engine(product).coordinates(x, a),
        "d": engine(product).coordinates(x, b),
    }


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


# A loop over the factors is the oracle -----------------------------------------------------------------------


@every_product
@pytest.mark.parametrize("method", [*POINTS, *ENGINE_POINTS])
def test_methods_equal_a_loop_over_the_factors(product: ProductManifold, shape: tuple[int, ...], method: str) -> None:
    given, letters = arguments(product, shape), {**POINTS, **ENGINE_POINTS}[method]
    of: Any = engine if method in ENGINE_POINTS else lambda m: m
    whole = getattr(of(product), method)(*(given[k] for k in letters))
    blocks = zip(*(product.unpack(given[k]) for k in letters), strict=True)
    alone = [getattr(of(f), method)(*block) for f, block in zip(product.factors, blocks, strict=True)]
    close(whole, product.pack(alone, shape))


@every_product
def test_the_metric_is_the_sum_of_the_factors(product: ProductManifold, shape: tuple[int, ...]) -> None:
    given = arguments(product, shape)
    for method, letters, of in (("inner", "xuv", lambda m: m), ("coordinate_inner", "xcd", engine)):
        whole = getattr(of(product), method)(*(given[k] for k in letters))
        blocks = zip(*(product.unpack(given[k]) for k in letters), strict=True)
        factors = map(of, product.factors)
        alone = [getattr(f, method)(*b).reshape(2, -1).sum(-1) for f, b in zip(factors, blocks, strict=True)]
        close(whole, torch.stack(alone).sum(0))


@every_product
def test_the_residual_is_the_worst_of_the_factors(product: ProductManifold, shape: tuple[int, ...]) -> None:
    z = arguments(product, shape)["z"]
    alone = [f.residual(b).reshape(2, -1).amax(-1) for f, b in zip(product.factors, product.unpack(z), strict=True)]
    close(product.factor_residuals(z), torch.stack(alone, -1))
    close(product.residual(z), torch.stack(alone, -1).amax(-1))


@every_product
def test_nan_in_any_factor_shows(product: ProductManifold, shape: tuple[int, ...]) -> None:
    x = product.random(*shape)
    for number, block in enumerate(product.unpack(x)):
        saved = block.clone()
        block.view_as(block)[(0,) * block.dim()] = torch.nan  # blocks are views of x
        assert product.residual(x).isnan()
        assert product.factor_residuals(x).isnan().nonzero().flatten().tolist() == [number]
        assert not product.contains(x)
        block.copy_(saved)
    assert product.contains(x)


@every_product
def test_degrees_of_freedom_add_up(product: ProductManifold, shape: tuple[int, ...]) -> None:
    blocks = product.unpack(torch.zeros(shape))
    assert product.dim(shape) == sum(f.dim(b.shape) for f, b in zip(product.factors, blocks, strict=True))
    assert product.dim((5, *shape)) == 5 * product.dim(shape)


@every_product
def test_random_blocks_are_points_of_their_factors(product: ProductManifold, shape: tuple[int, ...]) -> None:
    x = product.random(4, *shape, dtype=torch.float64)
    for factor, block in zip(product.factors, product.unpack(x), strict=True):
        assert factor.contains(block).all()
        if factor.dim(block.shape[1:]):
            assert (block[0] - block[1]).norm() > 1e-3


# One batched call --------------------------------------------------------------------------------------------

CALLS: Counter[str] = Counter()


class Counts:
    """Counts its calls."""

    def __getattribute__(self, name: str):
        if name in {*POINTS, *ENGINE_POINTS, "inner", "coordinate_inner", "residual", "random"}:
            CALLS[name] += 1
        return object.__getattribute__(self, name)


@dataclass(frozen=True)
class Counted(Counts, Stiefel):
    def _engine(self) -> Engine:
        return CountedEngine(self, self.metric, self.retraction)


class CountedEngine(Counts, StiefelEngine):
    def of_shape(self, point: Sequence[int]) -> Engine:
        return self


def counted(product: ProductManifold, shape: tuple[int, ...]) -> None:
    given = arguments(product, shape)
    calls: list[Any] = [
        (product, method, letters) for method, letters in {**POINTS, "inner": "xuv", "residual": "z"}.items()
    ]
    engines = {**ENGINE_POINTS, "coordinate_inner": "xcd"}
    calls += [(engine(product), method, letters) for method, letters in engines.items()]
    for of, method, letters in calls:
        CALLS.clear()
        getattr(of, method)(*(given[k] for k in letters))
        # what a method calls in turn (a transport its projection) is batched in the same way
        assert method in CALLS
        assert set(CALLS.values()) == {1}, (method, CALLS)
    CALLS.clear()
    product.random(*shape)
    assert CALLS["random"] == 1


@pytest.mark.parametrize(
    ("product", "shape"),
    [
        (Counted**7, (21, 2)),
        (Counted * Euclidean * Counted * Euclidean, (12, 2)),  # equal factors that do not follow one another
        (ProductManifold((Counted,) * 6, HEADS), (12, 3)),
        (ProductManifold((Counted,) * 3, BlockSpec(rows=3, axis=1)), (4, 9)),
    ],
    ids=str,
)
def test_equal_factors_on_equal_blocks_are_one_call(product: ProductManifold, shape: tuple[int, ...]) -> None:
    counted(product, shape)


def test_unequal_blocks_are_one_call_for_each_shape() -> None:
    product = ProductManifold((Counted(),) * 4, BlockSpec(rows=(4, 2, 4, 2)))
    x = product.random(12, 2)
    CALLS.clear()
    product.project(x, x)
    assert CALLS["project"] == 2


def test_split_has_one_part_for_each_kind_of_factor_however_deep() -> None:
    product = ProductManifold((Stiefel**2, Sphere * Stiefel), BlockSpec(rows=2))
    x = product.random(5, 8, 3)
    assert [(f, tuple(p.shape)) for f, p in engine(product).split(x)] == [
        (Stiefel(), (5, 1, 2, 2, 3)),
        (Sphere(), (5, 1, 1, 2, 3)),
        (Stiefel(), (5, 1, 1, 2, 3)),
    ]
    assert torch.equal(engine(product).join([p for _, p in engine(product).split(x)], x.shape), x)


def test_stacked_equal_blocks_are_worked_on_in_place_of_copies() -> None:
    x = (Stiefel**3).random(9, 3)
    ((_, part),) = engine(Stiefel**3).split(x)
    assert part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


# The algebra -------------------------------------------------------------------------------------------------


def test_the_algebra_is_the_same_on_classes_and_instances() -> None:
    assert Stiefel**3 == Stiefel() ** 3 == ProductManifold((Stiefel(),) * 3) == ProductManifold((Stiefel,) * 3)
    assert Stiefel * Sphere == Stiefel() * Sphere == Stiefel * Sphere() == ProductManifold((Stiefel(), Sphere()))
    assert (Stiefel * Euclidean**2).factors == (Stiefel(), Euclidean(), Euclidean())
    assert (CANONICAL**2).factors == (CANONICAL, CANONICAL)
    assert Stiefel * Stiefel * Stiefel == Stiefel**3 == Stiefel * (Stiefel * Stiefel)
    assert (Stiefel * Sphere) ** 2 == Stiefel * Sphere * Stiefel * Sphere
    assert Stiefel**1 == ProductManifold((Stiefel(),))
    assert Stiefel**1 != Stiefel()


def test_a_product_with_its_own_layout_is_one_factor() -> None:
    side = ProductManifold((Stiefel, Stiefel), BlockSpec(rows=2, axis=1))
    assert (side * Sphere).factors == (side, Sphere())
    assert (side**2).factors == (side, side)


def test_products_are_values() -> None:
    a, b = Stiefel * Euclidean**2, Stiefel() * Euclidean() * Euclidean()
    assert a == b
    assert hash(a) == hash(b)
    assert {a: 1}[b] == 1
    assert pickle.loads(pickle.dumps(a)) == a
    a.project(torch.eye(3), torch.eye(3))  # what is remembered of a shape is no part of the value
    assert a == b
    assert pickle.loads(pickle.dumps(a)) == b
    different = [Stiefel**3, Stiefel * Euclidean, Euclidean**2 * Stiefel, CANONICAL * Euclidean**2]
    different.append(ProductManifold(a.factors, BlockSpec(rows=3, axis=1)))
    assert len({a, *different}) == 1 + len(different)


@pytest.mark.parametrize(
    ("product", "text"),
    [
        (Stiefel**3, "Stiefel**3"),
        (Stiefel * Euclidean**2, "Stiefel * Euclidean**2"),
        (Stiefel**1, "ProductManifold((Stiefel,))"),
        (Stiefel("canonical") ** 3, "Stiefel(metric='canonical')**3"),
        (
            Stiefel(retraction=retractions.cayley) * Sphere,
            "Stiefel(retraction=cayley) * Sphere",
        ),
        (ProductManifold((Stiefel**2, Sphere)), "ProductManifold((Stiefel**2, Sphere))"),
        (ProductManifold((Stiefel**2,) * 2 + (Sphere,)), "ProductManifold((Stiefel**2,) * 2 + (Sphere,))"),
        (
            ProductManifold((Stiefel, Stiefel), BlockSpec(rows=2, axis=1)),
            "ProductManifold((Stiefel,) * 2, BlockSpec(rows=2, axis=1))",
        ),
        (
            ProductManifold((Stiefel, Sphere), BlockSpec(rows=(2, 3))) ** 2,
            "ProductManifold((Stiefel, Sphere), BlockSpec(rows=(2, 3), axis=0))**2",
        ),
        (
            ProductManifold((Stiefel,), BlockSpec.pattern("(g o) i -> g o i", g=1)),
            "ProductManifold((Stiefel,), BlockSpec.pattern('(g o) i -> g o i', g=1))",
        ),
    ],
)
def test_repr_is_what_one_writes(product: ProductManifold, text: str) -> None:
    assert repr(product) == text
    names = [Stiefel, Euclidean, Sphere, ProductManifold, BlockSpec, retractions.cayley]
    assert eval(text, {each.__name__: each for each in names}) == product


def test_len_layout_pack_and_unpack() -> None:
    product = Stiefel * Euclidean**2
    assert len(product) == 3
    assert product.layout == BlockSpec(rows=3, axis=0)
    x = torch.arange(18.0).reshape(9, 2)
    blocks = product.unpack(x)
    assert [b.tolist() for b in blocks] == [x[:3].tolist(), x[3:6].tolist(), x[6:].tolist()]
    assert torch.equal(product.pack(blocks), x)
    assert all(b.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for b in blocks)


def test_batch_axes_come_before_the_packed_point() -> None:
    product = ProductManifold((Stiefel, Stiefel), BlockSpec(rows=2, axis=0))
    x = product.random(5, 6, 2)
    assert [tuple(b.shape) for b in product.unpack(x)] == [(5, 3, 2)] * 2
    assert product.residual(x).shape == (5,)
    convolution = ProductManifold((Stiefel,) * 4, BlockSpec.pattern("o i h w -> (o i) h w"))
    assert convolution.ndim == 4
    assert convolution.residual(convolution.random(7, 2, 2, 3, 3)).shape == (7,)


def test_axes_of_a_block_before_its_points_are_batch_axes() -> None:
    """A block of shape (2, 3) is two points of the sphere in R^3."""
    x = (Sphere * Stiefel).random(4, 3)
    torch.testing.assert_close(x[:2].norm(dim=-1), torch.ones(2))
    assert (Sphere**3).dim((9,)) == 6
    assert (Sphere * Stiefel).dim((4, 3)) == 2 * 2 + 3


ERRORS = {
    "a layout that does not fit": (
        lambda: (Stiefel**3).random(10, 3),
        ValueError,
        "needs axis 0 to divide into 3 equal blocks; got shape (10, 3)",
    ),
    "more blocks than factors": (
        lambda: ProductManifold((Stiefel, Sphere), BlockSpec(rows=3)).random(9, 3),
        ValueError,
        "has 2 factors, but BlockSpec(rows=3, axis=0) cuts shape (9, 3) into 3 blocks. Give as many factors as blocks",
    ),
    "a factor that refuses its block": (
        lambda: (Orthogonal**2).random(6, 2),
        ValueError,
        "Orthogonal holds square matrices; got shape (2, 3, 2)",
    ),
    "too few axes": (
        lambda: (Stiefel**3).unpack(torch.zeros(9)),
        ValueError,
        "has 2 axes of size 1 or more; got shape (9,)",
    ),
    "no factors": (lambda: ProductManifold(()), TypeError, "a product needs one or more manifolds; got ()."),
    "factors without a tuple": (
        lambda: ProductManifold(Stiefel, Euclidean),
        TypeError,
        "Write Stiefel * Sphere, or ProductManifold((Stiefel, Sphere), layout).",
    ),
    "a layout that is none": (lambda: ProductManifold((Stiefel, Sphere), Sphere), TypeError, "is a BlockSpec or a"),
    "a factor that is no manifold": (lambda: ProductManifold((Stiefel, 3)), TypeError, "one or more manifolds"),
    "a class that is no manifold": (lambda: ProductManifold((Stiefel, int)), TypeError, "one or more manifolds"),
    "times a number": (lambda: Stiefel * 3, TypeError, "Stiefel * 3: a product is taken with a manifold"),
    "times a number, as a power": (lambda: Stiefel * 3, TypeError, "Stiefel**3 is 3 of them"),
    "sizes": (lambda: Stiefel(4, 2), ValueError, "Write Stiefel(): sizes are those of the tensor"),
    "a size": (lambda: PositiveDefinite(4), ValueError, "Write PositiveDefinite(): sizes are those of the tensor"),
    "a power of zero": (lambda: Stiefel**0, ValueError, "Stiefel**k needs a number of factors k >= 1; got 0."),
    "a negative power": (lambda: Stiefel() ** -1, ValueError, "k >= 1; got -1."),
    "a fractional power": (lambda: Stiefel**1.5, ValueError, "k >= 1; got 1.5."),
    "a power that is true": (lambda: Stiefel**True, ValueError, "k >= 1; got True."),
    "too few blocks to pack": (
        lambda: (Stiefel**3).pack([torch.eye(2)] * 2),
        ValueError,
        "Stiefel**3 has 3 factors; got 2 blocks. Pass one block for each.",
    ),
    "an abstract class": (lambda: Manifold**2, TypeError, "abstract"),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=list(ERRORS))
def test_errors_say_the_rule_what_came_and_the_way_out(call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_blocks_of_too_few_axes_are_an_error_that_says_which_axis_counts() -> None:
    layout = BlockSpec.pattern("o i h w -> o (i h w)")
    manifold = ProductManifold((Stiefel(),) * 6, layout)
    with pytest.raises(ValueError, match=r"points of 2 axes.*6 blocks of shape \(36,\).*counts the blocks"):
        manifold.residual(torch.ones(6, 4, 3, 3))


@pytest.mark.parametrize("number", [0, -1, True, 2.0])
def test_a_power_that_there_is_not_is_not_offered(number: Any) -> None:
    with pytest.raises(TypeError, match=r"as in Stiefel \* Euclidean\.$"):
        Stiefel * number
