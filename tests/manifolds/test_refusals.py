"""What is no point, no retraction and no nearest point is refused where it is given, by the name of the manifold."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain
from manifolds import (
    BlockSpec,
    Euclidean,
    Manifold,
    NearestPointManifold,
    Orthogonal,
    ProductManifold,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    retractions,
)


@dataclass(frozen=True)
class Oblique(NearestPointManifold):
    """Columns of length 1: a user's manifold, with all that the base class gives."""

    ndim = 2

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a - x * (x * a).sum(-2, keepdim=True)

    def nearest(self, x: Tensor) -> Tensor:
        return x / x.square().sum(-2, keepdim=True).sqrt()

    def dim(self, shape: Sequence[int]) -> int:
        *batch, n, p = shape
        return torch.Size(batch).numel() * (n - 1) * p


PRODUCTS: list[Manifold] = [
    Stiefel**2,
    Stiefel * Euclidean,
    Sphere * Sphere,
    ProductManifold((Orthogonal, Stiefel), BlockSpec(rows=2, axis=1)),
    ProductManifold((Oblique, Oblique)),
]
MANIFOLDS: list[Manifold] = [Stiefel(), Stiefel("canonical"), Orthogonal(), SpecialOrthogonal(), Sphere(), Euclidean()]
ALL = pytest.mark.parametrize("manifold", [*MANIFOLDS, Oblique(), *PRODUCTS], ids=str)

CALLS: dict[str, int] = {
    "contains": 1,
    "residual": 1,
    "nearest": 1,
    "project": 2,
    "gradient": 2,
    "retract": 2,
    "norm": 2,
    "inner": 3,
    "transport": 3,
    "exp": 2,
    "log": 2,
    "distance": 2,
}
THEIRS = {"nearest", "project", "gradient"}  # what a user writes is the user's


@pytest.mark.parametrize(
    ("manifold", "call"),
    [
        (m, call)
        for m in [*MANIFOLDS, Oblique(), *PRODUCTS]
        for call in CALLS
        if hasattr(m, call) and not (isinstance(m, Oblique) and call in THEIRS)
    ],
    ids=str,
)
def test_a_tensor_with_too_few_axes_is_refused(manifold: Manifold, call: str) -> None:
    if manifold.ndim == 0:
        assert getattr(manifold, call)(*[torch.tensor(1.0)] * CALLS[call]).shape == ()
        return
    shape = (7,) * (manifold.ndim - 1)
    with pytest.raises(ValueError, match=re.escape(str(shape))) as refusal:
        getattr(manifold, call)(*[torch.ones(shape)] * CALLS[call])
    assert (repr(manifold) if isinstance(manifold, ProductManifold) else type(manifold).__name__) in str(refusal.value)


@ALL
def test_a_shape_is_numbers_or_one_tuple(manifold: Manifold) -> None:
    shape = (4, 8) if "axis=1" in str(manifold) else (6, 4) if isinstance(manifold, ProductManifold) else (3, 3)

    def draw(*given: Any) -> Tensor:
        return manifold.random(*given, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    x = draw(*shape)
    assert x.shape == shape
    for one in (shape, list(shape), torch.Size(shape)):
        assert torch.equal(draw(one), x)
    for wrong in ((shape, 2), (2, shape), ("ab",), (3.0, 3.0)):
        with pytest.raises(TypeError, match=re.escape("random((4, 3))")):
            draw(*wrong)


@ALL
def test_too_few_sizes_are_refused_with_a_way_out_for_sizes(manifold: Manifold) -> None:
    """random(7) of a set of matrices: there is no tensor that could be reshaped."""
    if manifold.ndim < 2 or isinstance(manifold, Oblique):  # whose dim is the user's
        return
    with pytest.raises(ValueError, match=re.escape("(7,)")) as refusal:
        manifold.random(7)
    assert "write every axis" in str(refusal.value)


@pytest.mark.parametrize("wrong", ["qr", 10, None, torch.ones(2), retractions], ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("family", [Stiefel, Orthogonal, SpecialOrthogonal])
def test_what_is_no_function_is_no_retraction(family: type, wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"retraction of {family.__name__} .*manifolds.retractions.polar, qr, cayley"):
        family(retraction=wrong)


@dataclass(frozen=True)
class Wrong(Oblique):
    """Its nearest forgets to return, or returns something else."""

    answer: Callable[[Tensor], Any] = lambda x: None

    def nearest(self, x: Tensor) -> Any:
        return self.answer(x)


@dataclass(frozen=True)
class WrongNearestOnly(Wrong):
    """With a residual of its own, which does not ask nearest."""

    def residual(self, x: Tensor) -> Tensor:
        return torch.ones(x.shape[:-2])


@pytest.mark.parametrize("init", [None, "haar"])
@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=str)
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: m * Stiefel], ids=["alone", "factor"])
@pytest.mark.parametrize("family", [Wrong, WrongNearestOnly])
@pytest.mark.parametrize(
    ("answer", "got"),
    [(lambda x: None, "NoneType"), (lambda x: x[..., :1], "1) of"), (lambda x: x.to(torch.int64), "torch.int64")],
    ids=["None", "shape", "dtype"],
)
def test_a_nearest_that_returns_something_else_is_named(
    answer: Any, got: str, family: Any, wrap: Any, method: Any, init: Any
) -> None:
    layer = nn.Linear(3, 4)
    before, weight = layer.weight.detach().clone(), layer.weight
    with pytest.raises(ValueError, match=rf"{family.__name__}\(.*\)\.nearest .*got .*{re.escape(got)}"):
        constrain(layer, "weight", wrap(family(answer)), method, init=init)
    assert layer.weight is weight
    assert torch.equal(weight, before)


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_the_factors_of_a_product_are_its_items(product: ProductManifold) -> None:
    k = len(product)
    assert [product[i] for i in range(k)] == list(product) == list(product.factors)
    assert [product[i - k] for i in range(k)] == list(product.factors)
    for i in (k, -k - 1):
        with pytest.raises(IndexError, match=re.escape(f"{k} factors, from 0 to {k - 1}; got index {i}")):
            product[i]
    for wrong in (slice(0, 1), "0", None, 1.0):
        with pytest.raises(TypeError, match="is its factor i, a number"):
            product[wrong]  # type: ignore[index]
