"""Which gates to hold: the table of docs/choosing.md, `python -m benchmarks.gates`, half an hour on one core.

Handwritten digits pixel by pixel, a GRU or LSTM of 64, one optimizer and one rate for all of the network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from constraints import Riemannian, constrain
from constraints.optim import RiemannianAdam
from manifolds import Euclidean, Manifold, Scaled, Stiefel
from manifolds.compositions import Composition

HIDDEN, BATCH, TRAINED = 64, 50, 1400
HELD: dict[str, Callable[[int], Manifold | Composition] | None] = {
    "free": None,
    "all": lambda gates: Stiefel**gates,  # Stiefel**3
    "state": lambda gates: Euclidean**2 * Stiefel if gates == 3 else Euclidean**2 * Stiefel * Euclidean,
    "scaled": lambda gates: Scaled(Stiefel) ** gates,  # Scaled(Stiefel)**3
}
"""state: the gate that carries the state, n of a GRU, g of an LSTM."""
CELLS: dict[str, type[nn.GRU | nn.LSTM]] = {"GRU": nn.GRU, "LSTM": nn.LSTM}


class Reader(nn.Module):
    """Reads pixels, (64, batch, 1), and names the digit, (batch, 10)."""

    def __init__(self, cell: str, bias: float) -> None:
        super().__init__()
        self.rnn, self.classify = CELLS[cell](1, HIDDEN), nn.Linear(HIDDEN, 10)
        with torch.no_grad():  # of z of a GRU, f of an LSTM: both keep the state
            self.rnn.bias_hh_l0[HIDDEN : 2 * HIDDEN] += bias  # type: ignore[operator, index]

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.classify(self.rnn(pixels)[0][-1])
        return scores


def trained(
    cell: str, held: str, trivialized: bool, lr: float, bias: float, steps: int, seed: int
) -> tuple[float, float]:
    """(mean training loss of the last 50 steps, accuracy on digits that were not trained on)."""
    torch.manual_seed(seed)
    net, make = Reader(cell, bias), HELD[held]
    gates = 3 if cell == "GRU" else 4
    if make is not None and trivialized:
        constrain(net, "rnn.weight_hh_l0", make(gates))
    elif make is not None:
        constrain(net, "rnn.weight_hh_l0", make(gates), Riemannian())
    by_torch = trivialized or make is None
    optimizer = torch.optim.Adam(net.parameters(), lr) if by_torch else RiemannianAdam(net, lr)
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.data, dtype=torch.float32)[order].T.unsqueeze(-1) / 16
    names = torch.tensor(digits.target)[order]
    draws = torch.Generator().manual_seed(100 + seed)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(TRAINED, (BATCH,), generator=draws)
        loss = nn.functional.cross_entropy(net(images[:, chosen]), names[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        right = net(images[:, TRAINED:]).argmax(-1) == names[TRAINED:]
    return sum(losses[-50:]) / 50, right.double().mean().item()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", default="GRU", choices=list(CELLS))
    parser.add_argument("--lr", type=float, nargs="*", default=[3e-3, 1e-2])
    parser.add_argument("--bias", type=float, nargs="*", default=[0.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--held", nargs="*", default=list(HELD), choices=list(HELD))
    parser.add_argument("--engines", nargs="*", default=["Riemannian", "trivialized"])
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for lr in given.lr:
        for bias in given.bias:
            for held in given.held:
                for engine in given.engines[:1] if HELD[held] is None else given.engines:
                    runs = [
                        trained(given.cell, held, engine == "trivialized", lr, bias, given.steps, seed)
                        for seed in range(given.seeds)
                    ]
                    found = "  ".join(f"{loss:.3f} {100 * right:.1f} %" for loss, right in runs)
                    sys.stdout.write(f"{given.cell}  lr {lr:g}  bias {bias:g}  {held:8}  {engine:12}  {found}\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
