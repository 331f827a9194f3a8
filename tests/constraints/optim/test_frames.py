"""What optimizers of torch see of weights under Retracted, where they move entry by entry."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from constraints.optim import Retracted
from constraints.optim.step.frames import ENTRYWISE
from manifolds import Euclidean, Grassmann, Manifold, Oblique, Orthogonal, Sphere, Stiefel, retractions
from manifolds.engine import engine

pytestmark = pytest.mark.filterwarnings("ignore:weight_decay does nothing")

ROUND: dict[str, tuple[Manifold, tuple[int, ...]]] = {
    "square": (Orthogonal(), (2, 4, 4)),
    "gates": (Stiefel() ** 2, (8, 4)),
    "exp": (Stiefel(retraction=retractions.exp), (4, 4)),
    "tall": (Stiefel(), (6, 3)),
    "wide": (Stiefel(), (3, 6)),
    "subspace": (Grassmann(), (6, 3)),
    "rows": (Sphere(), (5, 3)),
    "columns": (Oblique(), (5, 3)),
}
KINDS = sorted(ENTRYWISE, key=lambda kind: kind.__name__)


def run(kind: Any, manifold: Manifold, start: torch.Tensor, steps: int = 4, turn: Any = None, **options: Any) -> Any:
    p = nn.Parameter(start.clone())
    optimizer = Retracted(kind([{"params": [p], "manifold": manifold}], **{"lr": 0.01, **options}))
    for seed in range(steps):
        g = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed + 50), dtype=start.dtype)
        p.grad = g if turn is None else turn @ g
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", ROUND)
def test_decay_does_nothing_where_all_points_have_one_norm(held: str, kind: Any) -> None:
    """Bit for bit, whether it is decoupled or added to the gradient, where Adam would divide by it."""
    manifold, shape = ROUND[held]
    start = manifold.random(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    decays: list[dict[str, float]] = [{"weight_decay": w} for w in (0.0, 0.3)]
    ends = [
        run(kind, manifold, start, **options) for options in (decays if kind is not torch.optim.Rprop else [{}, {}])
    ]
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], start)
    assert manifold.residual(ends[0]).max() < 1e-13


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_decay_is_that_of_each_factor(kind: Any) -> None:
    """Of Stiefel * Euclidean the second block is decayed as by the optimizer alone, and the first moves without."""
    manifold = Stiefel * Euclidean
    start = torch.cat([Stiefel().random(3, 3, generator=torch.Generator().manual_seed(0)), torch.ones(3, 3)]).double()
    start[:3] = Stiefel().nearest(start[:3])
    end, plain = (run(kind, manifold, start, weight_decay=w) for w in (0.3, 0.0))
    assert torch.equal(end[:3], plain[:3])
    free = nn.Parameter(start[3:].clone())
    optimizer = kind([free], lr=0.01, weight_decay=0.3)
    for seed in range(4):
        free.grad = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed + 50), dtype=torch.float64)[3:]
        optimizer.step()
    torch.testing.assert_close(end[3:], free.detach(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("manifold", [Orthogonal(), Stiefel(), Stiefel(retraction=retractions.exp)], ids=str)
def test_square_points_turn_with_their_problem(kind: Any, manifold: Manifold) -> None:
    """f(Q X) has the gradient Q^T G: from Q X its steps are Q times those from X, for every rotation Q."""
    generator = torch.Generator().manual_seed(0)
    start, q = (manifold.random(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(
        run(kind, manifold, q @ start, turn=q), q @ run(kind, manifold, start), rtol=0, atol=1e-9
    )


class Replaces(torch.optim.SGD):
    """Writes p.data = ..., as optimizers did once."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


def test_an_optimizer_that_replaces_the_memory_of_a_weight() -> None:
    """Moves as one that writes into it, and the weight keeps its own."""
    start = Stiefel().random(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(run(Replaces, Stiefel(), start), run(torch.optim.SGD, Stiefel(), start))
    p = nn.Parameter(start.clone())
    memory = p.data_ptr()
    p.grad = torch.ones_like(p)
    Retracted(Replaces([{"params": [p], "manifold": Stiefel()}], lr=0.1)).step()
    assert p.data_ptr() == memory


class Fails(torch.optim.AdamW):
    """Moves half of the weights, and raises."""

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["params"][0].data.add_(1.0)
        raise RuntimeError("no")


def test_an_error_of_the_optimizer_leaves_points_and_gradients() -> None:
    p = nn.Parameter(Stiefel().random(2, 4, 4))
    p.grad = torch.ones_like(p)
    before, g = copy.deepcopy((p.detach(), p.grad))
    optimizer: Optimizer = Retracted(Fails([{"params": [p], "manifold": Stiefel()}]))
    with pytest.raises(RuntimeError, match="no"):
        optimizer.step()
    assert torch.equal(p.detach(), before)
    assert torch.equal(p.grad, g)


def test_what_an_optimizer_is_given_is_not_the_memory_that_its_start_takes(monkeypatch: Any) -> None:
    """Of several parameters the start takes that of the gathered gradients, which an engine may hand on as they are."""
    plain = [nn.Parameter(Sphere().random(5)) for _ in range(3)]
    handed = [nn.Parameter(p.detach().clone()) for p in plain]
    for params in (plain, handed):
        optimizer = Retracted(torch.optim.SGD([{"params": params, "manifold": Sphere}], lr=0.1))
        for i, p in enumerate(params):
            torch.manual_seed(i)
            p.grad = Sphere().project(p.detach(), torch.randn(5))
        if params is handed:
            monkeypatch.setattr(type(engine(Sphere())), "lift", lambda self, x, g: g)
        optimizer.step()
    torch.testing.assert_close(handed, plain)
