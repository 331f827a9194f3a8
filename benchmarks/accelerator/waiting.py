"""Does a step wait for the device?"""

from __future__ import annotations

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

from .checks import Check, Numbers, Place, require

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


def checks() -> Iterator[Check]:
    for which, make in OPTIMIZERS.items():
        for name in POINTS:
            if (which, name) == ("Retracted", "Hyperboloid"):
                continue  # whose entries AdamW is not shown
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
