"""A change of chart: gradients in the old coordinates become those in the new ones, on every manifold."""

from __future__ import annotations

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
    ProductManifold,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    retractions,
)
from manifolds.engine import engine

RETRACTIONS = [retractions.polar, retractions.qr, retractions.cayley, retractions.exp]


@dataclass(frozen=True)
class Ellipse(Manifold):
    """{x : |D x| = 1} with D = diag(1, 2, ...), as a user writes it: four methods, nothing for engines."""

    ndim = 1

    def _weights(self, x: Tensor) -> Tensor:
        return torch.arange(1, x.shape[-1] + 1, dtype=x.dtype) ** 2

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        n = self._weights(x) * x
        return a - (n * a).sum(-1, keepdim=True) / (n * n).sum(-1, keepdim=True) * n

    def nearest(self, x: Tensor) -> Tensor:  # not the nearest, but a retraction of first order
        return x / (self._weights(x) * x * x).sum(-1, keepdim=True).sqrt()

    def dim(self, shape: Any) -> int:
        return torch.Size(shape).numel() // shape[-1] * (shape[-1] - 1)


MANIFOLDS: list[tuple[Manifold, tuple[int, ...]]] = [
    *((Stiefel(retraction=r), (2, *sides)) for r in RETRACTIONS for sides in ((3, 3), (5, 2), (2, 5), (4, 1))),
    *((kind(retraction=r), (3, 3)) for kind in (Orthogonal, SpecialOrthogonal) for r in RETRACTIONS),
    (Stiefel(metric="canonical"), (4, 4)),
    (Stiefel(metric="canonical"), (5, 3)),
    (Sphere(), (3, 5)),
    (Euclidean(), (2, 3)),
    (Stiefel**3, (9, 3)),
    (Stiefel * Sphere * Euclidean, (9, 2)),
    (ProductManifold((SpecialOrthogonal(), Orthogonal()), BlockSpec(rows=2, axis=1)), (3, 6)),
    (Ellipse(), (2, 4)),
]


def dense(function: Any, at: Tensor) -> Tensor:
    """The Jacobian of a function of a tensor as one real matrix, by rows."""
    real = torch.view_as_real(at) if at.is_complex() else at

    def flat(r: Tensor) -> Tensor:
        y = function(torch.view_as_complex(r) if at.is_complex() else r)
        return (torch.view_as_real(y.resolve_conj()) if y.is_complex() else y).flatten()

    jacobian: Tensor = torch.autograd.functional.jacobian(flat, real.clone())
    return jacobian.flatten(1)


def flat(a: Tensor) -> Tensor:
    return (torch.view_as_real(a.resolve_conj()) if a.is_complex() else a).flatten()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("length", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize(("manifold", "shape"), MANIFOLDS, ids=str)
def test_gradients_change_as_the_jacobians_say(
    manifold: Manifold, shape: tuple[int, ...], length: float, dtype: torch.dtype
) -> None:
    """With J and J' the Jacobians of the two charts where they meet: J'^T u is what becomes of J^T u, for every u."""
    if dtype.is_complex and isinstance(manifold, Ellipse):
        pytest.skip("real")
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(*shape, generator=generator, dtype=dtype)
    c, u = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    c = engine(manifold).coordinates(x, c)
    c = c * (length / max(1.0, float(c.abs().max())))
    y = engine(manifold).move(x, c)
    old = dense(lambda c: engine(manifold).move(x, engine(manifold).coordinates(x, c)), c)
    new = dense(lambda c: engine(manifold).move(y, engine(manifold).coordinates(y, c)), torch.zeros_like(c))
    found = engine(manifold).recenter(x, y, c, _as(old.T @ flat(u), c))
    expected = new.T @ flat(u)
    # the condition of either Jacobian is below 10 here
    assert (flat(found) - expected).norm() <= 1e3 * torch.finfo(torch.float64).eps * max(1.0, float(expected.norm()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("length", [3.0, 30.0, 300.0])
@pytest.mark.parametrize("manifold", [Orthogonal(retractions.exp), SpecialOrthogonal(retractions.exp)], ids=str)
def test_gradients_change_however_far_exp_went(manifold: Manifold, length: float, dtype: torch.dtype) -> None:
    """As above; by eigenvalues, for iterations take seconds where exp bends much."""
    x = manifold.random(4, 4, dtype=dtype)
    c = engine(manifold).coordinates(x, torch.randn(4, 4, dtype=dtype))
    c = c * (length / float(c.abs().max()))
    y, u = engine(manifold).move(x, c), torch.randn(4, 4, dtype=dtype)
    old = dense(lambda c: engine(manifold).move(x, engine(manifold).coordinates(x, c)), c)
    new = dense(lambda c: engine(manifold).move(y, engine(manifold).coordinates(y, c)), torch.zeros_like(c))
    found, expected = engine(manifold).recenter(x, y, c, _as(old.T @ flat(u), c)), new.T @ flat(u)
    sizes = torch.linalg.svdvals(old)
    condition = float(sizes[0] / sizes[sizes > 1e-9][-1])
    bound = 1e2 * max(1, length) * condition * torch.finfo(torch.float64).eps * float(expected.norm())
    assert (flat(found) - expected).norm() <= bound


def _as(numbers: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        return torch.view_as_complex(numbers.reshape(*like.shape, 2))
    return numbers.reshape(like.shape)
