"""What the checks are made of: a net, its steps, and how a check says that something is wrong.

A check returns if the thing works, raises `WrongError` if it seems to work and does not, and lets other errors through;
`CostlyError`: it works, at a cost.
NotImplementedError: there is no such thing in that library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .entrants import Entrant

Check = Callable[[Entrant], None]
CHECKS: dict[str, Check] = {}


class WrongError(Exception):
    """Nothing was raised, and the result is not what it should be."""


class CostlyError(Exception):
    """The result is right, and costs more than it needs to."""


def check(item: str) -> Callable[[Check], Check]:
    """Enter a check under the words of the table."""

    def enter(function: Check) -> Check:
        CHECKS[item] = function
        return function

    return enter


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x[:, None].expand(-1, 4, -1))[0][:, -1])  # type: ignore[no-any-return]


X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def build(entrant: Entrant, seed: int = 0, dtype: torch.dtype = torch.float32, steps: int = 2) -> Any:
    """A net whose first weight is held, after some steps."""
    torch.manual_seed(seed)
    net = Net().to(dtype)
    entrant.hold(net, "first.weight")
    return trained(entrant, net, steps)


def recurrent(entrant: Entrant) -> Any:
    torch.manual_seed(0)
    net = Recurrent()
    entrant.hold(net, "first.weight_hh_l0")
    return trained(entrant, net, 2)


def trained(entrant: Entrant, net: Any, steps: int) -> Any:
    if steps:
        optimizer = entrant.adam(net)
        for _ in range(steps):
            train(net, optimizer)
        optimizer.zero_grad()
    return net


def loss(net: Any) -> Tensor:
    return nn.functional.cross_entropy(net(X.to(next(net.parameters()).dtype)), LABELS)


def train(net: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss(net).backward()
    optimizer.step()


def off(w: Tensor) -> float:
    """max |W^T W - I|."""
    w = w.detach().double().as_subclass(Tensor)
    return float((w.mT @ w - torch.eye(w.shape[-1], dtype=w.dtype)).abs().max())


def expect(condition: object, what: str) -> None:
    if not bool(condition):
        raise WrongError(what)


def expect_on(net: Any, limit: float = 1e-4) -> None:
    expect(off(net.first.weight) < limit, "the weight is off the manifold")


def equal(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a.detach().double() - b.detach().double()).abs().max() <= tolerance)


def moves(entrant: Entrant, net: Any) -> None:
    """The held weight is trained, and stays held."""
    before = net.first.weight.detach().clone()
    train(net, entrant.adam(net))
    expect(not equal(net.first.weight, before, 1e-4), "the weight is not trained")
    expect_on(net)


def bits(net: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in net.state_dict().values()]
