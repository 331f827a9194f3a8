"""The base follows the weight: every point of a component is in reach of the default engine, and nothing jumps."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Trivialization, constrain
from manifolds import Manifold, SpecialOrthogonal, Sphere, Stiefel, retractions


def held(start: Tensor, manifold: Manifold, **options: Any) -> Any:
    module = nn.Module()
    module.w = nn.Parameter(start.clone())
    return constrain(module, "w", manifold, Trivialization(**options))


def fit(module: Any, goals: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (module.w - goals).abs().square().sum().backward()
        optimizer.step()


def targets(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    start, goals = (manifold.random(*shape, generator=generator, dtype=dtype) for _ in range(2))
    if isinstance(manifold, Sphere):  # the antipode, but for a direction to leave by
        goals = manifold.nearest(-start + 0.01 * goals)
    elif shape[-1] == shape[-2] and not dtype.is_complex:  # in the component of the start
        goals = goals * (start.det().sign() * goals.det().sign())[..., None, None] if shape[-1] % 2 else goals
    return start, goals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("manifold", "shape"),
    [
        (SpecialOrthogonal(), (20, 3, 3)),
        (SpecialOrthogonal(), (20, 8, 8)),
        (SpecialOrthogonal(), (2, 32, 32)),
        *((Stiefel(retraction=r), (10, *s)) for r in (retractions.polar, retractions.cayley) for s in ((7, 3), (3, 7))),
        (Sphere(), (20, 6)),
    ],
    ids=str,
)
def test_every_point_of_the_component_is_reached(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    start, goals = targets(manifold, shape, dtype)
    module = held(start, manifold)
    fit(module, goals, torch.optim.Adam(module.parameters(), lr=0.05), 300)
    assert float((module.w - goals).detach().flatten(1).norm(dim=1).max()) <= 0.05


def test_a_fixed_base_does_not_reach_them() -> None:
    start, goals = targets(SpecialOrthogonal(), (20, 8, 8), torch.float64)
    module = held(start, SpecialOrthogonal(), rebase_every=math.inf)
    base = module.parametrizations.w[0].base_point.clone()
    fit(module, goals, torch.optim.Adam(module.parameters(), lr=0.05), 300)
    assert torch.equal(module.parametrizations.w[0].base_point, base)
    assert float((module.w - goals).detach().flatten(1).norm(dim=1).max()) > 0.05


def test_a_resumed_run_is_the_run_bit_for_bit() -> None:
    start, goals = targets(SpecialOrthogonal(), (5, 8, 8), torch.float32)
    module = held(start, SpecialOrthogonal())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    fit(module, goals, optimizer, 10)
    file = io.BytesIO()
    torch.save((module.state_dict(), optimizer.state_dict()), file)
    base = module.parametrizations.w[0].base_point.clone()
    fit(module, goals, optimizer, 40)
    assert not torch.equal(module.parametrizations.w[0].base_point, base)
    file.seek(0)
    state, of_optimizer = torch.load(file, weights_only=True)
    other = held(start, SpecialOrthogonal())
    other.load_state_dict(state)
    follower = torch.optim.Adam(other.parameters(), lr=0.05)
    follower.load_state_dict(of_optimizer)
    fit(other, goals, follower, 40)
    assert torch.equal(module.w, other.w)


def test_under_an_optimizer_that_is_not_torchs_the_base_stays() -> None:
    class Own(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    start, goals = targets(SpecialOrthogonal(), (5, 8, 8), torch.float64)
    module = held(start, SpecialOrthogonal())
    base = module.parametrizations.w[0].base_point.clone()
    fit(module, goals, Own(module.parameters(), lr=0.05), 50)
    assert torch.equal(module.parametrizations.w[0].base_point, base)
