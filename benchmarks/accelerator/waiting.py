"""Does a step wait for the device? And may it be captured in a graph, or compiled?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, constrain, report
from constraints.method import Method
from constraints.optim import Retracted, RiemannianAdam, RiemannianAdamW, RiemannianMuon, RiemannianSGD
from manifolds import (
    Composition,
    Correlation,
    DoublyStochastic,
    Euclidean,
    FixedRank,
    Grassmann,
    Hurwitz,
    Hyperboloid,
    Invertible,
    Isospectral,
    LowRank,
    Manifold,
    Oblique,
    Orthogonal,
    Orthostochastic,
    PoincareBall,
    Positive,
    PositiveDefinite,
    PositiveSemidefinite,
    Scaled,
    Simplex,
    Skew,
    SpecialOrthogonal,
    SpectralBall,
    SpectralSphere,
    Sphere,
    Stiefel,
    Symmetric,
    retractions,
)

from .checks import Check, Numbers, Place, graph_of, require

SECTION = "waiting"

POINTS: dict[str, tuple[Manifold, tuple[int, ...]]] = {
    "tall": (Stiefel(), (40, 6)),
    "wide, canonical": (Stiefel("canonical"), (6, 40)),
    "square": (Stiefel(), (64, 64)),
    "packed": (Stiefel() ** 3, (48, 16)),
    "mixed": (Stiefel() * Euclidean() ** 2, (48, 16)),
    "many of 3 x 3": (SpecialOrthogonal(), (1000, 3, 3)),
    "many of 8 x 8": (Stiefel(), (1000, 8, 8)),
    "some of 20 x 20": (SpecialOrthogonal(), (12, 20, 20)),
    "sphere": (Sphere(), (50, 8)),
    "tall, qr": (Stiefel(retraction=retractions.qr), (40, 6)),
    "tall, cayley": (Stiefel(retraction=retractions.cayley), (40, 6)),
    "square, exp": (Orthogonal(retractions.exp), (64, 64)),
    "Grassmann": (Grassmann(), (40, 6)),
    "Oblique": (Oblique(), (8, 6)),
    "Euclidean": (Euclidean(2), (8, 6)),
    "Symmetric": (Symmetric(), (8, 8)),
    "Skew": (Skew(), (8, 8)),
    "Positive": (Positive(), (8,)),
    "positive definite": (PositiveDefinite(), (50, 4, 4)),
    "positive definite, log-Euclidean": (PositiveDefinite("log-euclidean"), (50, 4, 4)),
    "positive definite, log-Cholesky": (PositiveDefinite("log-cholesky"), (50, 4, 4)),
    "positive definite, Bures-Wasserstein": (PositiveDefinite("bures-wasserstein"), (50, 4, 4)),
    "Correlation": (Correlation(), (8, 8)),
    "Correlation of rank 3": (Correlation(3), (8, 3)),
    "Simplex": (Simplex(), (50, 8)),
    "DoublyStochastic": (DoublyStochastic(), (8, 8)),
    "PoincareBall": (PoincareBall(), (50, 8)),
    "Hyperboloid": (Hyperboloid(), (50, 8)),
    "FixedRank": (FixedRank(3), (60, 40)),
}
COMPOSED: dict[str, Composition] = {
    str(c): c
    for c in (
        *(Hurwitz(0.1), Invertible(), Isospectral(), LowRank(2), Orthostochastic(), PositiveSemidefinite()),
        *(Scaled(Stiefel), Scaled(Stiefel) ** 2, SpectralBall(), SpectralSphere()),
    )
}
WAITING = ("square, exp", "positive definite, log-Euclidean", "positive definite, Bures-Wasserstein")
"""Whose steps and weights may wait, as docs/accelerators.md says."""

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "Adam": RiemannianAdam,
    "Adam, capturable, amsgrad": lambda groups: RiemannianAdam(groups, capturable=True, amsgrad=True),
    "SGD": RiemannianSGD,
    "SGD with momentum": lambda groups: RiemannianSGD(groups, momentum=0.9),
    "AdamW": lambda groups: RiemannianAdamW(groups, 1e-3),
    "Muon": lambda groups: RiemannianMuon(groups, 1e-3),
    "Retracted": lambda groups: Retracted(torch.optim.AdamW(groups, 1e-3)),
}
CAPTURABLE: dict[str, Make] = {
    "Adam": lambda groups: RiemannianAdam(groups, 1e-3, capturable=True),
    "SGD": lambda groups: RiemannianSGD(groups, 1e-4, momentum=0.9),  # what is not short goes by another retraction
    "Muon": lambda groups: RiemannianMuon(groups, 1e-3, capturable=True),
}


def checks() -> Iterator[Check]:
    for which, make in OPTIMIZERS.items():
        for name in POINTS:
            yield Check(SECTION, f"step of {which}: {name}", partial(step_waits, make, name))
    for name in POINTS:
        if name not in ("mixed", "packed"):
            yield Check(SECTION, f"weight and gradient: {name}", partial(weight_waits, name))
    for name, composition in COMPOSED.items():
        yield Check(
            SECTION, f"training step: {name}, its parts held", partial(composed_waits, composition, Riemannian())
        )
        yield Check(
            SECTION, f"training step: {name}, trivialized", partial(composed_waits, composition, Trivialization())
        )
    for name in POINTS:
        if name not in WAITING:
            for which, make in CAPTURABLE.items():
                yield Check(SECTION, f"step of {which} in a CUDA graph: {name}", partial(step_captured, make, name))
            if name not in ("mixed", "packed", "FixedRank"):
                yield Check(SECTION, f"weight and gradient in a CUDA graph: {name}", partial(weight_captured, name))
    yield Check(SECTION, "a training step in a CUDA graph, Riemannian", captured)
    yield Check(SECTION, "a training step in a CUDA graph, trivialized", captured_trivialized)
    yield Check(SECTION, "torch.compile of a trivialized model", compiled)


def step_waits(make: Make, name: str, place: Place) -> Numbers:
    """The fourth step: the first ones make state and plans."""
    manifold, shape = POINTS[name]
    p = nn.Parameter(manifold.random(*shape).to(place.device))
    optimizer, g = make([{"params": [p], "manifold": manifold}]), torch.randn(shape).to(place.device)
    for _ in range(3):
        p.grad = g.clone()
        optimizer.step()
    waits = _waits(optimizer.step, name in WAITING, place)
    require(bool(manifold.contains(p.detach()).all()), "the step left the manifold")
    return waits


class Holder(nn.Module):
    """A module whose forward pass does nothing but read its weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self) -> Tensor:
        return self.weight


def weight_waits(name: str, place: Place) -> Numbers:
    manifold, shape = POINTS[name]
    holder = constrain(Holder(manifold.random(*shape).to(place.device)), "weight", manifold)
    (p, *_), g = [p for p in holder.parameters() if p.requires_grad], torch.randn(shape).to(place.device)
    with torch.no_grad():
        p.add_(0.1 * torch.randn(shape).to(place.device))
    for _ in range(2):
        holder().backward(g)
    waits = _waits(lambda: holder().backward(g), name in (*WAITING, "FixedRank"), place)
    require(bool(manifold.contains(holder().detach()).all()), "the weight is off the manifold")
    return waits


def composed_waits(composition: Composition, method: Method, place: Place) -> Numbers:
    """Forward and backward pass and step of one layer."""
    layer = constrain(nn.Linear(8, 8).to(place.device), "weight", composition, method, init="haar")
    x = torch.eye(8, device=place.device)
    trained = [p for p in layer.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = (
        RiemannianAdam(layer, 1e-3) if isinstance(method, Riemannian) else torch.optim.Adam(trained, 1e-3)
    )

    def train() -> None:
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()

    for _ in range(3):
        train()
    with place.without_waiting():
        train()
    require(all(each.ok for each in report(layer)), "a part is off its set")
    return {}


def _waits(run: Callable[[], object], may: bool, place: Place) -> Numbers:
    """Whether it waits is noted of those that may, and an error of all others."""
    if not may:
        with place.without_waiting():
            run()
        return {}
    try:
        with place.without_waiting():
            run()
    except RuntimeError:
        run()
        return {"waits": "yes, as documented"}
    return {"waits": "no"}


# Graphs ---------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A recurrent matrix, a tall one and a free bias."""

    def __init__(self) -> None:
        super().__init__()
        self.square, self.tall = nn.Linear(32, 32, bias=False), nn.Linear(8, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.square(self.tall(x)).tanh()
        return (y - 0.1).square().mean()


Run = Callable[[], object]
Points = Callable[[], list[Tensor]]


def _replays(make: Callable[[], tuple[Run, Points]], place: Place) -> Numbers:
    """Three calls and ten replays end where thirteen calls of a twin end."""
    ends = []
    for is_graph in (False, True):
        torch.manual_seed(0)
        run, points = make()
        is_graph = is_graph and not place.pretended
        run = graph_of(run, place) if is_graph else run
        for _ in range(10 if is_graph else 13):
            run()
        ends.append([x.detach().clone() for x in points()])
    worst = max(float((a - b).abs().max() / a.abs().max().clamp_min(1)) for a, b in zip(*ends, strict=True))
    require(worst < 1e-4, f"replays and eager steps end {worst:.1e} apart")
    return {"largest difference after 13 steps": worst}


def captured(place: Place) -> Numbers:
    model = constrain(Model(), ["square.weight", "tall.weight"], Stiefel, Riemannian())
    return _replays(lambda: _training(model, lambda m: RiemannianAdam(m, 1e-3, capturable=True), place), place)


def captured_trivialized(place: Place) -> Numbers:
    # a graph that is replayed moves no base
    model = constrain(Model(), ["square.weight", "tall.weight"], Stiefel, Trivialization(rebase_every=math.inf))
    on_device = not place.pretended
    return _replays(
        lambda: _training(model, lambda m: torch.optim.Adam(m.parameters(), 1e-3, capturable=on_device), place), place
    )


def _training(model: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer], place: Place) -> tuple[Run, Points]:
    model = copy.deepcopy(model).to(place.device)
    optimizer, x = make(model), torch.randn(16, 8).to(place.device)

    def train() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(x).backward()
        optimizer.step()

    return train, lambda: [value for value in model.state_dict().values() if isinstance(value, Tensor)]


def step_captured(make: Make, name: str, place: Place) -> Numbers:
    """A step alone, for every set."""
    manifold, shape = POINTS[name]
    start, g = manifold.random(*shape), torch.randn(shape).to(place.device)

    def stepping() -> tuple[Run, Points]:
        p = nn.Parameter(start.to(place.device, copy=True))
        p.grad = g.clone()
        return make([{"params": [p], "manifold": manifold}]).step, lambda: [p]

    return _replays(stepping, place)


def weight_captured(name: str, place: Place) -> Numbers:
    """A trivialized weight and its gradient alone, for every set."""
    manifold, shape = POINTS[name]
    start, g = manifold.random(*shape), torch.randn(shape).to(place.device)

    def passing() -> tuple[Run, Points]:
        holder = Holder(start.to(place.device, copy=True))
        constrain(holder, "weight", manifold, Trivialization(rebase_every=math.inf))
        (p, *_) = [p for p in holder.parameters() if p.requires_grad]
        with torch.no_grad():
            p.add_(0.1 * torch.randn(p.shape).to(place.device))
        p.grad, y = torch.zeros_like(p), torch.zeros(shape, device=place.device)

        def both() -> None:
            x = holder()
            y.copy_(x.detach())
            holder.zero_grad(set_to_none=False)
            x.backward(g)

        return both, lambda: [y, p.grad if p.grad is not None else y]

    return _replays(passing, place)


def compiled(place: Place) -> Numbers:
    """One graph, whose loss and gradients are those of eager."""
    torch.manual_seed(0)
    model = constrain(Model(), ["square.weight", "tall.weight"], Stiefel).to(place.device)
    x = torch.randn(16, 8).to(place.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    model(x).backward()
    expected = [p.grad.clone() for p in trained if p.grad is not None]
    model.zero_grad()
    run = torch.compile(model, fullgraph=True, backend="aot_eager" if place.pretended else "inductor")
    run(x).backward()
    worst = max(float((p.grad - e).abs().max()) for p, e in zip(trained, expected, strict=True) if p.grad is not None)
    require(worst < 1e-5, f"gradients of the compiled model are {worst:.1e} off")
    return {"largest difference of a gradient": worst}
