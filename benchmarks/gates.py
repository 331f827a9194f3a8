"""Which gates of a GRU to hold: the table of docs/choosing.md, `python -m benchmarks.gates`, half an hour on one core.

Handwritten digits pixel by pixel, a GRU of 64, one optimizer and one rate for all of the network.
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
HELD: dict[str, Callable[[], Manifold | Composition] | None] = {
    "free": None,
    "Stiefel**3": lambda: Stiefel**3,
    "Euclidean**2 * Stiefel": lambda: Euclidean**2 * Stiefel,
    "Scaled(Stiefel)**3": lambda: Scaled(Stiefel) ** 3,
}


class Reader(nn.Module):
    """Reads pixels, (64, batch, 1), and names the digit, (batch, 10)."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.gru, self.classify = nn.GRU(1, HIDDEN), nn.Linear(HIDDEN, 10)
        with torch.no_grad():
            self.gru.bias_hh_l0[HIDDEN : 2 * HIDDEN] += bias  # type: ignore[operator, index]

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.classify(self.gru(pixels)[0][-1])
        return scores


def trained(held: str, trivialized: bool, lr: float, bias: float, steps: int, seed: int) -> tuple[float, float]:
    """(mean training loss of the last 50 steps, accuracy on digits that were not trained on)."""
    torch.manual_seed(seed)
    net, make = Reader(bias), HELD[held]
    if make is not None and trivialized:
        constrain(net, "gru.weight_hh_l0", make())
    elif make is not None:
        constrain(net, "gru.weight_hh_l0", make(), Riemannian())
    adam = torch.optim.Adam if trivialized or make is None else RiemannianAdam
    optimizer = adam(net.parameters() if adam is torch.optim.Adam else net, lr=lr)  # type: ignore[arg-type]
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
                        trained(held, engine == "trivialized", lr, bias, given.steps, seed)
                        for seed in range(given.seeds)
                    ]
                    found = "  ".join(f"{loss:.3f} {100 * right:.1f} %" for loss, right in runs)
                    sys.stdout.write(f"lr {lr:g}  bias {bias:g}  {held:24}  {engine:12}  {found}\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
