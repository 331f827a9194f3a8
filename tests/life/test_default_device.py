"""What is made for a tensor is made where that tensor is, whatever the default device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from constraints import Riemannian, Trivialization, constrain, export_state_dict, rebase, report
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import Euclidean, Manifold, Orthogonal, SpecialOrthogonal, Sphere, Stiefel, retractions
from manifolds.kernels import tiny

ALL = (retractions.polar, retractions.cayley, retractions.qr, retractions.exp)
SIDES = [(8, 4), (4, 8), (2, 130, 130), (520, 3, 3), (520, 5, 5)]
SQUARE: list[Manifold] = [group(r) for group in (Orthogonal, SpecialOrthogonal) for r in ALL]
ANY: list[Manifold] = [
    *(Stiefel(metric, r) for metric in ("euclidean", "canonical") for r in ALL),
    Sphere(),
    Euclidean(),
    Stiefel() ** 2,
    Stiefel() * Euclidean(),
]
CASES = [(m, s) for m in ANY for s in SIDES if s[0] == 8 or m in ANY[:8]] + [(m, s) for m in SQUARE for s in SIDES[2:]]


@pytest.fixture(autouse=True)
def meta() -> Iterator[None]:
    """A default device on which nothing has a value."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize(("manifold", "shape"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_points_and_steps(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = manifold.random(*shape, dtype=dtype, device="cpu")
    g = torch.randn(shape, dtype=dtype, device="cpu")
    assert bool(manifold.contains(manifold.nearest(x)).all())
    options: list[tuple[Any, dict[str, Any]]] = [
        (RiemannianSGD, {}),
        (RiemannianSGD, {"momentum": 0.9}),
        (RiemannianAdam, {"amsgrad": True}),
    ]
    for optimizer, option in options:
        y = x.clone().requires_grad_()
        steps = optimizer([{"params": [y], "manifold": manifold}], lr=0.1, **option)
        for _ in range(2):
            y.grad = g.clone()
            steps.step()
        assert bool(manifold.contains(y).all())


def test_large_matrices_are_multiplied_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    a = torch.randn(3, tiny.LARGE, tiny.LARGE, device="cpu")
    assert torch.equal(tiny.product(a, a), torch.stack([m @ m for m in a]))


@pytest.mark.parametrize(("manifold", "shape"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("method", [Trivialization, Riemannian])
def test_constraints(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype, method: Any) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(manifold.random(*shape, dtype=dtype, device="cpu"))
    g = torch.randn(shape, dtype=dtype, device="cpu")
    constrain(module, "weight", manifold, method(), init="haar")
    optimizer: Any = torch.optim.SGD(module.parameters(), lr=1.0)
    if method is Riemannian:
        optimizer = RiemannianAdam(module, lr=0.1)
    for _ in range(2):
        (module.weight.conj() * g).sum().abs().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert bool(manifold.contains(module.weight).all())
    assert len(report(module)) == 1
    rebase(module)
    assert export_state_dict(module)["weight"].device.type == "cpu"


@pytest.mark.parametrize("start", ["identity", "torus"])
@pytest.mark.parametrize("sides", [(5, 5), (8, 3), (3, 8)], ids=str)
def test_named_starts(start: Any, sides: tuple[int, int]) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(sides, device="cpu"))
    constrain(module, "weight", Stiefel(), init=start)
    assert bool(Stiefel().contains(module.weight).all())
