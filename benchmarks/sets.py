"""Rows of other sets than orthonormal matrices: one optimizer step on each, beside peers who have the set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from constraints.optim import RiemannianAdam
from manifolds import Grassmann, Manifold, PoincareBall, PositiveDefinite

from .jobs import OURS, RATE, Row, Setting
from .results import Target
from .timing import Builder, Contestant

ADAM, GEOOPT, PYMANOPT = "torch Adam", "geoopt", "pymanopt, Adam"
Peer = Callable[[Tensor, Tensor], Contestant]
"""(start, slope) -> contestant: one step along a given Euclidean gradient of all points of the start."""


def set_row(
    name: str, title: str, manifold: Manifold, shape: tuple[int, ...], peers: Mapping[str, Peer], *targets: Target
) -> Row:
    """One step of Adam on a batch of points, the gradient given; `second_moment="sum"` as the peers have it."""

    def prepare(setting: Setting) -> Mapping[str, Builder]:
        size = tuple(setting.size(s) if s > 10 else s for s in shape)
        start = manifold.random(*size, dtype=torch.float64).to(setting.device, setting.dtype)
        slope = setting.normal(*size)
        if isinstance(manifold, PositiveDefinite):
            slope = slope + slope.mT

        def ours() -> Contestant:
            p = nn.Parameter(start.clone())
            p.grad = slope.clone()
            group = {"params": [p], "manifold": manifold}
            return _stepping(p, RiemannianAdam([group], RATE, second_moment="sum"), isinstance(manifold, Grassmann))

        def free() -> Contestant:
            p = nn.Parameter(start.clone())
            p.grad = slope.clone()
            return _stepping(p, torch.optim.Adam([p], RATE), False)

        others = {who: (lambda make=make: make(start, slope)) for who, make in peers.items()}
        return {OURS: ours, ADAM: free, **others}

    return Row(name, title, prepare, targets)


def _stepping(p: Tensor, optimizer: torch.optim.Optimizer, orthonormal: bool) -> Contestant:
    return Contestant(optimizer.step, (lambda: [p]) if orthonormal else tuple)


def geoopt(make: Callable[[Any], Any]) -> Peer:
    """geoopt.optim.RiemannianAdam on the manifold that is made of the package."""

    def build(start: Tensor, slope: Tensor) -> Contestant:
        import geoopt as package

        p = package.ManifoldParameter(start.clone(), manifold=make(package))
        p.grad = slope.clone()
        return _stepping(p, package.optim.RiemannianAdam([p], lr=RATE), False)

    return build


def pymanopt(make: Callable[[Any, tuple[int, ...]], Any], orthonormal: bool = False) -> Peer:
    """Adam of its gradient, retraction and transport, as it has no Adam; in numpy, one second moment for the batch."""

    def build(start: Tensor, slope: Tensor) -> Contestant:
        from pymanopt import manifolds as package

        manifold = make(package, tuple(start.shape))
        state: dict[str, Any] = {"x": start.numpy().copy(), "m": 0 * start.numpy(), "v": 0.0, "steps": 0}
        g = slope.numpy()

        def step() -> None:
            x, (first, second) = state["x"], (0.9, 0.999)
            gradient = manifold.euclidean_to_riemannian_gradient(x, g)
            m = first * state["m"] + (1 - first) * gradient
            v = second * state["v"] + (1 - second) * float(manifold.inner_product(x, gradient, gradient))
            steps = state["steps"] + 1
            size = -RATE / (1 - first**steps) / ((v / (1 - second**steps)) ** 0.5 + 1e-8)
            y = manifold.retraction(x, size * m)
            state.update(x=y, m=manifold.transport(x, y, m), v=v, steps=steps)

        return Contestant(step, (lambda: [torch.from_numpy(state["x"])]) if orthonormal else tuple)

    return build


SET_ROWS: tuple[Row, ...] = (
    set_row(
        "step-spd",
        "Adam step, 1,000 of 16 x 16 positive definite",
        PositiveDefinite(),
        (1000, 16, 16),
        {
            GEOOPT: geoopt(lambda package: package.SymmetricPositiveDefinite()),
            PYMANOPT: pymanopt(lambda package, shape: package.SymmetricPositiveDefinite(shape[-1], k=shape[0])),
        },
        Target("faster", OURS, (GEOOPT, PYMANOPT), 2, 4),
    ),
    set_row(
        "step-grassmann",
        "Adam step, 4 of 200 x 10 on Grassmann",
        Grassmann(),
        (4, 200, 10),
        {PYMANOPT: pymanopt(lambda package, shape: package.Grassmann(*shape[1:], k=shape[0]), orthonormal=True)},
        Target("faster", OURS, (PYMANOPT,), 2, 4),
    ),
    set_row(
        "step-ball",
        "Adam step, 100,000 x 10 in the Poincaré ball",
        PoincareBall(),
        (100_000, 10),
        {GEOOPT: geoopt(lambda package: package.PoincareBall())},
        Target("faster", OURS, (GEOOPT,), 2, 4),
        Target("cost", OURS, (ADAM,), 3, 2),
    ),
)
"""pymanopt's ball has no transport of vectors, and geoopt no Grassmann manifold."""
