"""Short steps by products alone, as accelerators take them: exact, decided late, never taken where they are wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.accelerator.pretend import Waits, pretended
from constraints.optim import RiemannianAdam, RiemannianSGD
from constraints.optim.step import short
from constraints.optim.step.late import LAG, Late
from manifolds import Grassmann, Manifold, Orthogonal, SpecialOrthogonal, Stiefel, retractions
from manifolds.engine import engine
from manifolds.kernels.short import PULLED, TURNED, pulled, pulled_defect, turned, turned_defect

EPS = torch.finfo(torch.float32).eps
SHAPES = [(2, 40, 40), (2, 90, 12), (2, 12, 90)]


def tangent(shape: tuple[int, ...], defect: float) -> tuple[Tensor, Tensor]:
    """A point and coordinates, in float64, whose defect is this."""
    generator = torch.Generator().manual_seed(0)
    x = Stiefel().random(*shape, dtype=torch.float64, generator=generator)
    c = engine(Stiefel()).coordinates(x, torch.randn(shape, dtype=torch.float64, generator=generator))
    if shape[-1] == shape[-2]:
        return x, c * (defect / turned_defect(c, 1.0).max()) ** 0.25
    return x, c * (defect / pulled_defect(c, 1.0).max()) ** 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("part", [1e-6, 0.01, 1.0])
@pytest.mark.parametrize("per_point", [False, True])
def test_within_reach_the_result_is_the_polar_factor(shape: tuple[int, ...], part: float, per_point: bool) -> None:
    """Of X (I + A + A^2/2), or of X + V, by an SVD in float64: off by a few roundings, and 4 of them from orthonormal
    (three products, whose sums of n terms are off by less than sqrt(n)/8 each)."""
    square = shape[-1] == shape[-2]
    x, c = tangent(shape, part * (TURNED if square else PULLED))
    size: float | Tensor = torch.tensor([-0.5, 0.5]).view(2, 1, 1) if per_point else -0.5
    exact = c * size
    y, defect = (turned if square else pulled)(x.float(), (2 * c).float(), size if per_point else -0.5)
    goal = x + x @ (2 * exact) + x @ (2 * exact) @ (2 * exact) / 2 if square else x + 2 * exact
    assert (y.double() - Stiefel().nearest(goal)).abs().max() <= 4 * EPS
    assert Stiefel().residual(y.double()).max() <= 8 * EPS
    assert defect.max() <= (part + 1e-3) * (TURNED if square else PULLED)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_defect_is_that_of_the_step(shape: tuple[int, ...]) -> None:
    square = shape[-1] == shape[-2]
    x, c = tangent(shape, 0.5 * (TURNED if square else PULLED))
    found = (turned if square else pulled)(x.float(), c.float(), 1.0)[1]
    said = (turned_defect if square else pulled_defect)(c.float(), 1.0)
    torch.testing.assert_close(found, said, rtol=1e-2, atol=40 * EPS * shape[-1])
    halved = (turned_defect if square else pulled_defect)(2 * c.float(), torch.full((2, 1, 1), 0.5))
    torch.testing.assert_close(halved, said, rtol=1e-5, atol=0)


def test_numbers_come_late() -> None:
    late, seen = Late(torch.device("cpu")), []
    for k in range(6):
        seen.append(late.take())
        late.put(torch.tensor(float(k)))
    assert seen == [None] * LAG + [0.0, 1.0, 2.0, 3.0]


POINTS: list[tuple[Manifold, tuple[int, ...]]] = [
    (Stiefel(), (40, 40)),
    (Orthogonal(), (3, 33, 33)),
    (SpecialOrthogonal(), (40, 40)),
    (Stiefel("canonical"), (70, 33)),
    (Stiefel(), (4, 33, 70)),
    (Stiefel() ** 2, (80, 40)),
    (Stiefel(), (120, 10)),
    (Grassmann(), (4, 110, 10)),
    (Grassmann(), (33, 70)),
]


@pytest.mark.parametrize(("manifold", "shape"), POINTS, ids=str)
@pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianSGD])
def test_short_steps_are_exact_and_wait_for_nothing(
    manifold: Manifold, shape: tuple[int, ...], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go where the plain steps go, to second order: 20 steps of angle a are 20 a^3 apart at most."""
    torch.manual_seed(0)
    start, slope = manifold.random(*shape), torch.randn(shape)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    lr = 1e-4 if kind is RiemannianAdam else 1e-5
    one, other = (kind([{"params": [each], "manifold": manifold}], lr=lr) for each in (p, q))
    taken: list[int] = []
    monkeypatch.setattr(short, "turned", lambda *a: taken.append(1) or turned(*a))
    monkeypatch.setattr(short, "pulled", lambda *a: taken.append(1) or pulled(*a))
    for _ in range(20):
        p.grad, q.grad = slope.clone(), slope.clone()
        with pretended(), Waits():
            one.step()
        other.step()
    assert len(taken) == 20 - LAG
    assert manifold.residual(p.detach().double()).max() <= 16 * EPS
    length = (q.detach() - start).norm().item() / 20
    assert (p - q).norm().item() <= 20 * (length**3 + 16 * EPS * math.sqrt(p.numel()))
    assert one.skipped == 0


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(Stiefel(), (40, 40)), (Stiefel(), (70, 33)), (Grassmann(), (110, 10))],
    ids=str,
)
def test_a_step_too_long_for_its_map_is_not_taken(manifold: Manifold, shape: tuple[int, ...]) -> None:
    """The point stays bit for bit and is counted; two steps later long steps are taken by the plain map."""
    torch.manual_seed(0)
    p = nn.Parameter(manifold.random(*shape))
    optimizer = RiemannianSGD([{"params": [p], "manifold": manifold}], lr=1.0)
    slope, moved = torch.randn(shape) / 10, []
    for length in (1e-4,) * 4 + (1.0,) * 4:
        p.grad, before = slope * length, p.detach().clone()
        with pretended():
            optimizer.step()
        moved.append(not torch.equal(p.detach(), before))
        assert manifold.residual(p.detach().double()).max() <= 32 * EPS
    assert moved == [True] * 4 + [False] * LAG + [True] * 2
    assert optimizer.skipped == LAG


@pytest.mark.parametrize(
    ("manifold", "shape", "dtype"),
    [
        (Stiefel(), (9, 40, 40), torch.float64),
        (Stiefel(), (9, 40, 40), torch.complex64),
        (Stiefel(), (9, 4, 4), torch.float32),
        (Stiefel(), (9, 50, 6), torch.float32),
        (Grassmann(), (9, 40, 40), torch.float32),
        (Grassmann(), (9, 50, 6), torch.float32),
        (Stiefel(retraction=retractions.qr), (9, 80, 40), torch.float32),
        (Orthogonal(retractions.exp), (9, 40, 40), torch.float32),
    ],
    ids=str,
)
def test_others_go_by_their_own_map(manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert short.short_steps(manifold, shape, dtype, torch.device("cpu")) is None
