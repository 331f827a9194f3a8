"""Three problems with a known answer: leading subspace of real data, rotation between two clouds, the copying task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manifolds import Stiefel, retractions

from . import deterministic, engines, peers, recurrent
from .engines import Engine, MakeEngine
from .quality import QUICK_LIMIT, Clock, Problem, Solved

GAP = 1e-6

ENGINES: Mapping[str, MakeEngine] = {
    "ours, Riemannian": engines.riemannian,
    "ours, trivialized": engines.trivialized,
    "ours, trivialized exp": lambda start, lr: engines.trivialized(start, lr, retractions.exp),
    "geoopt": peers.geoopt,
    "POGO": peers.pogo,
    "torch cayley": peers.torch_orthogonal("cayley"),
    "torch householder": peers.torch_orthogonal("householder"),
    "geotorch expm": peers.geotorch("expm"),
}

GRUS: Mapping[str, recurrent.Train] = {
    "ours, Riemannian": recurrent.ours_riemannian,
    "ours, trivialized": recurrent.ours_trivialized,
    "POGO": recurrent.pogo,
    "geotorch expm": recurrent.geotorch("expm"),
    "split-Cayley-cat by hand": recurrent.by_hand(cached=True),
}


@dataclass
class Descent:
    """Gradient steps on loss(X), and (loss(X) - optimum) / |optimum|."""

    engine: Engine
    loss: Callable[[Tensor], Tensor]
    optimum: float

    def step(self) -> None:
        self.engine.optimizer.zero_grad()
        self.loss(self.engine.points()[0]).backward()
        self.engine.optimizer.step()

    @torch.no_grad()
    def gap(self) -> float:
        """On the matrix with orthonormal columns nearest to the one at hand: who leaves the manifold gains nothing."""
        point = self.engine.points()[0].detach()
        return (self.loss(Stiefel().nearest(point)).item() - self.optimum) / abs(self.optimum)


def _closed_form(
    name: str,
    title: str,
    start: Tensor,
    loss: Callable[[Tensor], Tensor],
    optimum: float,
    makers: Mapping[str, MakeEngine],
    quick: bool,
) -> Problem:
    def attempt(make: MakeEngine) -> Callable[[float, int], Descent]:
        return lambda lr, _: Descent(make([start], lr), loss, optimum)

    def cost(x: Any) -> float:
        return loss(torch.from_numpy(x)).item()

    def slope(x: Any) -> Any:
        return torch.func.grad(loss)(torch.from_numpy(x)).numpy()

    def apart(clock: Clock) -> list[Solved]:
        return [deterministic.solve(name, start.numpy(), cost, slope, optimum + GAP * abs(optimum), clock)]

    attempts = {name: attempt(make) for name, make in makers.items()}
    return Problem(name, title, GAP, QUICK_LIMIT if quick else 1000, 1, attempts, apart)


def pca(quick: bool = False) -> Problem:
    """The 5 leading directions of the handwritten digits of scikit-learn, 64 pixels: max tr(X^T C X), float64."""
    from sklearn.datasets import load_digits

    pixels = torch.tensor(load_digits().data, dtype=torch.float64)
    c = torch.cov(pixels.T)
    c /= c.trace()
    optimum = -torch.linalg.eigvalsh(c)[-5:].sum().item()
    start = Stiefel().random(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(x: Tensor) -> Tensor:
        return -(x * (c @ x)).sum()

    title = "PCA: 5 directions of 1,797 digits, 64 x 5, float64, relative gap 1e-6"
    return _closed_form("pca", title, start, loss, optimum, ENGINES, quick)


def procrustes(quick: bool = False) -> Problem:
    """min |A X - B|^2 over rotations X of 40 dimensions, B = A R plus noise, float64."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(100, 40, dtype=torch.float64, generator=generator)
    rotation = _rotation(40, generator)
    b = a @ rotation + 0.3 * torch.randn(100, 40, dtype=torch.float64, generator=generator)
    start = _near(rotation, generator)

    def loss(x: Tensor) -> Tensor:
        return (a @ x - b).square().sum()

    optimum = loss(Stiefel().nearest(a.mT @ b)).item()
    title = "Procrustes: 40 x 40, 100 noisy points, float64, relative gap 1e-6"
    # its reflections stay far from this optimum at every rate
    makers = {name: make for name, make in ENGINES.items() if name != "torch householder"}
    return _closed_form("procrustes", title, start, loss, optimum, makers, quick)


def _rotation(n: int, generator: torch.Generator) -> Tensor:
    q = Stiefel().random(n, n, dtype=torch.float64, generator=generator)
    q[0] *= torch.linalg.det(q).sign()
    return q


def _near(rotation: Tensor, generator: torch.Generator) -> Tensor:
    """A rotation about 1 rad away in each plane: every engine can reach the optimum from there."""
    a = torch.randn(rotation.shape, dtype=rotation.dtype, generator=generator) / rotation.shape[0] ** 0.5
    return Stiefel(retraction=retractions.exp).retract(rotation, rotation @ (a - a.mT) / 2)


# The copying task -----------------------------------------------------------------------------------------

SYMBOLS, WORD, LAG, BATCH, HIDDEN, SEEDS = 8, 3, 6, 32, 32, 3
BLANK, GO = SYMBOLS, SYMBOLS + 1


class Copier(nn.Module):
    """Reads a word, waits, and says it again."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = recurrent.orthogonal_gates(nn.GRU(SYMBOLS + 2, HIDDEN))
        self.say = nn.Linear(HIDDEN, SYMBOLS)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.gru(nn.functional.one_hot(tokens, SYMBOLS + 2).float())
        said: Tensor = self.say(states[-WORD:])
        return said


@dataclass
class Copying:
    """Training on fresh words; the gap is the mean loss of the last 10 steps over that of guessing."""

    trained: recurrent.Trained
    words: torch.Generator
    losses: list[float]

    def step(self) -> None:
        word = torch.randint(SYMBOLS, (WORD, BATCH), generator=self.words)
        wait = torch.full((LAG, BATCH), BLANK)
        go = torch.full((WORD, BATCH), GO)
        tokens = torch.cat([word, wait, go])
        network = self.trained.network
        loss = self.trained.step(lambda: nn.functional.cross_entropy(network(tokens).flatten(0, 1), word.flatten()))
        self.losses.append(loss / torch.tensor(SYMBOLS).log().item())

    def gap(self) -> float:
        return sum(self.losses[-10:]) / 10


def copying(quick: bool = False) -> Problem:
    """Say 3 of 8 symbols again after 6 blanks, three seeds; solved at a fifth of the loss of guessing."""
    torch.manual_seed(0)
    starts = [Copier() for _ in range(SEEDS)]

    def attempt(train: recurrent.Train) -> Callable[[float, int], Copying]:
        def make(lr: float, seed: int) -> Copying:
            network = copy.deepcopy(starts[seed])
            return Copying(train(network, network.gru, lr), torch.Generator().manual_seed(seed), [])

        return make

    title = (
        f"copying task: {WORD} of {SYMBOLS} symbols after {LAG} blanks, GRU H={HIDDEN}, a fifth of the loss of guessing"
    )
    attempts = {name: attempt(train) for name, train in GRUS.items()}
    return Problem("copying", title, 0.2, QUICK_LIMIT if quick else 400, 10, attempts, seeds=SEEDS)


PROBLEMS: tuple[Callable[[bool], Problem], ...] = (pca, procrustes, copying)
