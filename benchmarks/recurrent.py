"""GRUs whose three recurrent gates are held orthogonal, by each library: one model, one optimizer for all of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Adam, Optimizer

from constraints import Riemannian, constrain
from constraints.optim import RiemannianAdam
from manifolds import Stiefel
from manifolds.kernels.determinant import determinant_phase

NAME = "weight_hh_l0"


@dataclass(frozen=True)
class Trained:
    """A network that contains the GRU, and the optimizers that train it."""

    network: nn.Module
    gru: nn.GRU
    optimizers: tuple[Optimizer, ...]
    cached: bool = False
    """Whether the network runs within parametrize.cached()."""

    def step(self, loss: Callable[[], Tensor]) -> float:
        """One training step; the loss before it."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if self.cached:
            with parametrize.cached():
                value = loss()
                value.backward()
        else:
            value = loss()
            value.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return value.item()

    def gates(self) -> list[Tensor]:
        weight: Any = getattr(self.gru, NAME)
        return [weight.detach().view(3, self.gru.hidden_size, self.gru.hidden_size)]


Train = Callable[[nn.Module, nn.GRU, float], Trained]
"""(network, its GRU, lr) -> the same network, trained; lr is that of the free tensors."""


class Gatewise(nn.Module):
    """Split, map each gate, put together: what people write by hand for a packed weight."""

    def __init__(self, maps: Iterable[nn.Module]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward(self, packed: Tensor) -> Tensor:
        return torch.cat([each(block) for each, block in zip(self.maps, packed.chunk(len(self.maps)), strict=True)])

    def right_inverse(self, packed: Tensor) -> Tensor:
        blocks = zip(self.maps, packed.chunk(len(self.maps)), strict=True)
        return torch.cat([each.right_inverse(block) for each, block in blocks])  # type: ignore[operator]


class CayleyByHand(nn.Module):
    """Q = B (I - A/2)^-1 (I + A/2), A the skew part of a free matrix, B where it started."""

    base: Tensor
    eye: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("base", torch.empty_like(like))
        self.register_buffer("eye", torch.eye(like.shape[-1], dtype=like.dtype, device=like.device))

    def forward(self, free: Tensor) -> Tensor:
        skew = free.tril(-1)
        half = (skew - skew.mT) / 2
        point: Tensor = self.base @ torch.linalg.solve(self.eye - half, self.eye + half)
        return point

    def right_inverse(self, point: Tensor) -> Tensor:
        self.base.copy_(point)
        return torch.zeros_like(point)


def free(network: nn.Module, gru: nn.GRU, lr: float) -> Trained:
    """No constraint."""
    return Trained(network, gru, (Adam(network.parameters(), lr),))


def ours_trivialized(network: nn.Module, gru: nn.GRU, lr: float) -> Trained:
    """constrain(gru, ..., Stiefel**3), trained by torch's Adam."""
    constrain(gru, NAME, Stiefel**3)
    return Trained(network, gru, (Adam(network.parameters(), lr),))


def ours_riemannian(network: nn.Module, gru: nn.GRU, lr: float) -> Trained:
    """constrain(gru, ..., Stiefel**3, Riemannian()), trained by RiemannianAdam."""
    constrain(gru, NAME, Stiefel**3, Riemannian())
    return Trained(network, gru, (RiemannianAdam(network, lr),))


def by_hand(cached: bool) -> Train:
    """Split, Cayley, cat, written with torch alone."""

    def train(network: nn.Module, gru: nn.GRU, lr: float) -> Trained:
        gates: Any = getattr(gru, NAME)
        parametrize.register_parametrization(gru, NAME, Gatewise(CayleyByHand(g) for g in gates.detach().chunk(3)))
        return Trained(network, gru, (Adam(network.parameters(), lr),), cached)

    return train


def geotorch(kind: str, cached: bool = True) -> Train:
    """One geotorch.SO for each gate."""

    def train(network: nn.Module, gru: nn.GRU, lr: float) -> Trained:
        from geotorch import SO

        side = gru.hidden_size
        gates = Gatewise(SO((side, side), triv=kind) for _ in range(3))
        parametrize.register_parametrization(gru, NAME, gates)
        return Trained(network, gru, (Adam(network.parameters(), lr),), cached)

    return train


def pogo(network: nn.Module, gru: nn.GRU, lr: float) -> Trained:
    """POGO with VectorAdam on the gates, at lr sqrt(d), by its flatten_fn; Adam on the rest."""
    from pogo import POGO, base

    side = gru.hidden_size
    gates: Any = getattr(gru, NAME)
    rest = [p for p in network.parameters() if p is not gates]
    on_gates = POGO([gates], base.VectorAdam(), gate_rate(gru, lr), flatten_fn=lambda x: x.view(3, side, side))
    return Trained(network, gru, (Adam(rest, lr), on_gates))


def gate_rate(gru: nn.GRU, lr: float) -> float:
    """lr sqrt(d), d = H (H - 1) / 2: where the second moment is a sum over a gate, a step as long as ours at lr."""
    return lr * math.sqrt(gru.hidden_size * (gru.hidden_size - 1) / 2)


def orthogonal_gates(gru: nn.GRU) -> nn.GRU:
    """The GRU, started at Haar random rotations: determinant 1, which geotorch needs."""
    gates: Any = getattr(gru, NAME)
    with torch.no_grad():
        blocks = gates.view(3, gru.hidden_size, gru.hidden_size)
        blocks.copy_(Stiefel().random(*blocks.shape, dtype=gates.dtype, device=gates.device))
        blocks[determinant_phase(blocks.double().cpu()).to(blocks.device) < 0, 0] *= -1
    return gru
