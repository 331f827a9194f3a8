"""Sets train, held by either engine, by Adam and by SGD, alone and in a product, to a known optimum.

The optimum is that of |W - T|^2 / 2: the point nearest to T.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain, report
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import (
    BlockSpec,
    Euclidean,
    FixedRank,
    Manifold,
    NearestPointManifold,
    Oblique,
    ProductManifold,
    Skew,
    Sphere,
    Symmetric,
)

REAL, COMPLEX = torch.float64, torch.complex128
SETS: list[tuple[Manifold, tuple[int, ...]]] = [
    (Euclidean(2), (3, 4)),
    (Sphere(2.0), (3, 4)),
    (Sphere(0.5, 2), (3, 4)),
    (FixedRank(2), (3, 4)),
    (Oblique(), (3, 4)),
    (Oblique(-1), (3, 4)),
    (Symmetric(), (4, 4)),
    (Skew(), (4, 4)),
    (Symmetric() * Oblique(-1) * Euclidean(2), (12, 4)),
    (ProductManifold((Oblique(), Skew()), BlockSpec(rows=2, axis=1)), (4, 8)),
]
cases = pytest.mark.parametrize(("manifold", "shape"), SETS, ids=[f"{m}" for m, _ in SETS])


def module(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Module()
    net.weight = nn.Parameter(torch.randn(shape, dtype=dtype))
    return net


def start_and_target(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A point, and a tensor off the manifold whose nearest point is about a radian away."""
    torch.manual_seed(1)
    x = manifold.random(*shape, dtype=dtype)
    y = manifold.retract(x, 0.5 * manifold.random_tangent(x))
    return x, y + 0.2 * torch.randn_like(y)


def optimizer(net: nn.Module, method: Any, adam: bool) -> torch.optim.Optimizer:
    if isinstance(method, Riemannian):
        return RiemannianAdam(net, lr=0.1) if adam else RiemannianSGD(net, lr=0.3)
    return torch.optim.Adam(net.parameters(), lr=0.1) if adam else torch.optim.SGD(net.parameters(), lr=0.3)


@cases
@pytest.mark.parametrize(("adam", "dtype"), [(True, torch.float32), (False, COMPLEX)], ids=["adam", "sgd"])
@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=lambda m: type(m).__name__)
def test_training_finds_the_nearest_point(
    manifold: Manifold, shape: tuple[int, ...], method: Any, adam: bool, dtype: torch.dtype
) -> None:
    assert isinstance(manifold, NearestPointManifold)
    net = module(shape, dtype)
    start, goal = start_and_target(manifold, shape, dtype)
    constrain(net, "weight", manifold, method, init=start)
    step = optimizer(net, method, adam)
    rates = torch.optim.lr_scheduler.ExponentialLR(step, 0.98 if adam else 1.0)
    for _ in range(300 if adam else 80):
        step.zero_grad()
        loss = (net.weight - goal).abs().square().sum() / 2  # type: ignore[operator]
        loss.backward()
        step.step()
        rates.step()
    found = net.weight.detach()  # type: ignore[operator]
    assert manifold.contains(found).all()
    # Adam ends with steps of 0.1 * 0.98^300 = 2e-4, and turns about the optimum in about 20 of them
    torch.testing.assert_close(found, manifold.nearest(goal), rtol=0, atol=5e-3)


@cases
@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=lambda m: type(m).__name__)
def test_the_start_is_the_nearest_point_and_a_report_knows_it(
    manifold: Manifold, shape: tuple[int, ...], method: Any
) -> None:
    assert isinstance(manifold, NearestPointManifold)
    net = module(shape, REAL)
    before = net.weight.detach().clone()  # type: ignore[operator]
    constrain(net, "weight", manifold, method)
    torch.testing.assert_close(net.weight, manifold.nearest(before))
    (record,) = report(net)
    assert record.manifold == manifold


@pytest.mark.parametrize(
    ("manifold", "shape"), [(Symmetric(), (3, 3)), (Oblique(), (4, 3)), (Oblique(-1), (3, 5))], ids=str
)
def test_ones_on_the_diagonal_are_a_start(manifold: Manifold, shape: tuple[int, ...]) -> None:
    net = constrain(module(shape, REAL), "weight", manifold, init="identity")
    torch.testing.assert_close(net.weight, torch.eye(*shape, dtype=REAL))


@pytest.mark.parametrize(("manifold", "shape"), [(Skew(), (3, 3)), (Oblique(), (3, 4)), (Sphere(ndim=2), (3, 3))])
def test_where_they_are_none_that_is_said(manifold: Manifold, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is not a point of"):
        constrain(module(shape, REAL), "weight", manifold, init="identity")
