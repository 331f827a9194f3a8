"""Matrices held orthonormal by this library, and free ones: what moves, and the optimizer that moves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from constraints import Riemannian, constrain
from constraints.optim import RiemannianAdam
from manifolds import Stiefel, retractions
from manifolds.retractions import Retraction


@dataclass(frozen=True)
class Engine:
    """points: the matrices as their users read them, in the shapes given, with a gradient; kept: those to be judged,
    which are the float32 masters of half precision ones; params: what the optimizer moves."""

    points: Callable[[], Sequence[Tensor]]
    kept: Callable[[], Sequence[Tensor]]
    params: Sequence[nn.Parameter]
    optimizer: Optimizer


MakeEngine = Callable[[Sequence[Tensor], float], Engine]
"""(start, lr) -> engine: start are orthonormal matrices (n, p), or batches of them (b, n, p)."""


class Holder(nn.Module):
    """A module whose forward pass does nothing but read its weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self) -> Tensor:
        return self.weight


def free(start: Sequence[Tensor], lr: float) -> Engine:
    """torch.optim.Adam, which leaves the manifold at the first step: what a step costs without a constraint."""
    params = [nn.Parameter(x.clone()) for x in start]
    return Engine(lambda: params, tuple, params, torch.optim.Adam(params, lr))


def riemannian(start: Sequence[Tensor], lr: float) -> Engine:
    """RiemannianAdam on plain Parameters in groups that carry the manifold."""
    params = [nn.Parameter(x.clone()) for x in start]
    optimizer = RiemannianAdam([{"params": params, "manifold": Stiefel()}], lr, second_moment="sum")
    return Engine(lambda: params, lambda: [_master(optimizer, p) for p in params], params, optimizer)


def riemannian_packed(start: Sequence[Tensor], lr: float) -> Engine:
    """The same with each batch (b, n, p) packed as one (b n, p) tensor on Stiefel**b."""
    holders = nn.ModuleList(Holder(x.flatten(0, 1)) for x in start)
    for i, x in enumerate(start):
        constrain(holders, f"{i}.weight", Stiefel() ** len(x), Riemannian())
    params = list(holders.parameters())

    def unpacked() -> list[Tensor]:
        return [p.view(x.shape) for p, x in zip(params, start, strict=True)]

    return Engine(unpacked, unpacked, params, RiemannianAdam(holders, lr, second_moment="sum"))


def trivialized(start: Sequence[Tensor], lr: float, retraction: Retraction = retractions.polar) -> Engine:
    """The default engine, trained by torch.optim.Adam; Cayley on square matrices unless retraction is exp."""
    holders = nn.ModuleList(Holder(x) for x in start)
    constrain(holders, "*.weight", Stiefel(retraction=retraction))
    optimizer = torch.optim.Adam(holders.parameters(), lr)
    return Engine(
        lambda: [holder() for holder in holders],
        lambda: [_unrounded(holder) for holder in holders],
        [p for p in holders.parameters() if p.requires_grad],
        optimizer,
    )


def trivialized_packed(start: Sequence[Tensor], lr: float, retraction: Retraction = retractions.polar) -> Engine:
    """The same with each batch (b, n, p) packed as one (b n, p) tensor on Stiefel**b."""
    holders = nn.ModuleList(Holder(x.flatten(0, 1)) for x in start)
    for i, x in enumerate(start):
        constrain(holders, f"{i}.weight", Stiefel(retraction=retraction) ** len(x))

    def unpacked() -> list[Tensor]:
        return [holder().view(x.shape) for holder, x in zip(holders, start, strict=True)]

    return Engine(
        unpacked,
        unpacked,
        [p for p in holders.parameters() if p.requires_grad],
        torch.optim.Adam(holders.parameters(), lr),
    )


def _master(optimizer: Optimizer, p: nn.Parameter) -> Tensor:
    master: Tensor = optimizer.state[p].get("master", p)
    if not torch.equal(master.to(p.dtype), p):
        raise RuntimeError("a half precision weight is not its master, rounded.")
    return master


def _unrounded(holder: Any) -> Tensor:
    point: Tensor = holder.parametrizations.weight[0].exact(holder.parametrizations.weight.original)
    return point
