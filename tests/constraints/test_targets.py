"""Sets without a nearest point train, by either engine, by Adam and SGD, alone and in products, to a known optimum.

The optimum is that of |W - T|^2 / 2 for a point T.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain, report
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import BlockSpec, DoublyStochastic, Hyperboloid, Manifold, PoincareBall, ProductManifold, Simplex, Sphere

# with the rate of SGD: that of the metric is another than that of the entries
SETS: list[tuple[Manifold, tuple[int, ...], float]] = [
    (Simplex(), (3, 4), 2.0),
    (Simplex() ** 3, (12,), 2.0),
    (ProductManifold((Simplex(), Sphere()), BlockSpec(rows=2, axis=-1)), (3, 8), 1.0),
    (PoincareBall(), (3, 4), 1.0),
    (PoincareBall(-0.5) ** 2, (8,), 1.0),
    (Hyperboloid(), (3, 4), 0.2),
    (DoublyStochastic(), (2, 3, 3), 2.0),
    (DoublyStochastic() ** 2, (6, 3), 2.0),
    (Hyperboloid(-2.0) * Simplex(), (8,), 0.2),
]
cases = pytest.mark.parametrize(("manifold", "shape", "rate"), SETS, ids=[f"{m}" for m, *_ in SETS])
methods = pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=lambda m: type(m).__name__)


def module(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    net = nn.Module()
    net.weight = nn.Parameter(torch.randn(shape).to(dtype))
    return net


def away_from_edges(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """A random point without small entries, near which a gradient of |W - T|^2 moves next to nothing on a simplex, or
    large ones, of which it is the larger the farther out a point of hyperbolic space is."""
    while True:
        x = manifold.random(*shape, dtype=dtype, generator=generator)
        if x.abs().min() >= 0.07 and x.abs().max() <= 1.5:
            return x


def optimizer(net: nn.Module, method: Any, adam: bool, rate: float) -> torch.optim.Optimizer:
    if isinstance(method, Riemannian):
        return RiemannianAdam(net, lr=0.05) if adam else RiemannianSGD(net, lr=rate)
    return torch.optim.Adam(net.parameters(), lr=0.1) if adam else torch.optim.SGD(net.parameters(), lr=rate)


@cases
@pytest.mark.parametrize(("adam", "dtype"), [(True, torch.float32), (False, torch.float64)], ids=["adam", "sgd"])
@methods
def test_training_finds_the_target(
    manifold: Manifold, shape: tuple[int, ...], rate: float, method: Any, adam: bool, dtype: torch.dtype
) -> None:
    net = module(shape, dtype)
    generator = torch.Generator().manual_seed(1)
    goal, start = (away_from_edges(manifold, shape, dtype, generator) for _ in range(2))
    constrain(net, "weight", manifold, method, init=start)
    step = optimizer(net, method, adam, rate)
    rates = torch.optim.lr_scheduler.ExponentialLR(step, 0.99 if adam else 1.0)
    for _ in range(400):
        step.zero_grad()
        loss = (net.weight - goal).square().sum() / 2
        loss.backward()
        step.step()
        rates.step()
    found = net.weight.detach()
    assert manifold.contains(found).all()
    torch.testing.assert_close(found, goal, rtol=0, atol=5e-3)
    (record,) = report(net)
    assert record.manifold == manifold


@cases
@methods
def test_half_precision_has_a_master(manifold: Manifold, shape: tuple[int, ...], rate: float, method: Any) -> None:
    """A weight of bfloat16 goes down by steps that bfloat16 does not have."""
    net = module(shape, torch.bfloat16)
    constrain(net, "weight", manifold, method, init="haar")
    step = optimizer(net, method, adam=False, rate=1e-3)
    for _ in range(5):
        step.zero_grad()
        net.weight.float().square().sum().backward()
        step.step()
    assert net.weight.dtype == torch.bfloat16
    assert bool(net.weight.isfinite().all())
    (record,) = report(net)
    assert record.ok


@cases
@methods
def test_a_value_outside_is_refused_with_ways_in(
    manifold: Manifold, shape: tuple[int, ...], rate: float, method: Any
) -> None:
    net = module(shape)
    with pytest.raises(ValueError, match="haar"):
        constrain(net, "weight", manifold, method)
    constrain(net, "weight", manifold, method, init="haar")
    assert manifold.contains(net.weight).all()
