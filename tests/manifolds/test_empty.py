"""A batch without points, as the last one of a loader or what a filter leaves: every method takes it."""

from __future__ import annotations

import pytest
import torch

from manifolds import (
    Correlation,
    Euclidean,
    GeodesicManifold,
    Manifold,
    NearestPointManifold,
    Stiefel,
)
from tests.sets import EVERY

MANIFOLDS: list[Manifold] = [*EVERY, Euclidean(2), Correlation(3), Stiefel("canonical"), Stiefel**3]


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=repr)
def test_a_batch_may_be_empty(manifold: Manifold) -> None:
    shape = (0, 3, 3)[: 1 + manifold.ndim]
    x = manifold.random(*shape)
    v = manifold.project(x, torch.randn(shape))
    results = [x, v, manifold.retract(x, v), manifold.transport(x, x, v), manifold.gradient(x, v)]
    numbers = [manifold.residual(x), manifold.inner(x, v, v), manifold.norm(x, v)]
    if isinstance(manifold, NearestPointManifold):
        results.append(manifold.nearest(x))
    if isinstance(manifold, GeodesicManifold):
        results += [manifold.exp(x, v), manifold.log(x, x), manifold.geodesic(x, x, 0.5)]
        results.append(manifold.mean(torch.empty(0, 2, *shape[1:])))
        numbers.append(manifold.distance(x, x))
    assert {a.shape for a in results} == {torch.Size(shape)}
    assert {a.shape for a in numbers} == {torch.Size([0])}
    assert manifold.dim(shape) == manifold.dim_of_complex(shape) == 0
