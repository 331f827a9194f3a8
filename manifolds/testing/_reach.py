"""What a trivialization reaches: the engine's move, from a base that follows, to targets that are far."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..base import per_point
from ._case import Case, Finding, holds, theorem

TARGETS = 4
STEPS = 100
AWAY = 24
HALVINGS = 24
NEAR = 1e-4  # of a target: near enough, as nothing is between


@theorem(
    "move: reach",
    "descent on |move(x, c) - y|^2 over c, from a base that follows, comes to walks from x and to random points",
    needs=(
        "move: feasible",
        "move: derivative at 0",
        "coordinates: rank",
        "random_tangent: tangent",
        "batch: items do not mix",
    ),
    # of a quotient another representative may be reached, which is the same point
    applies=lambda case: case.eps < 1e-10 and not case.manifold.is_quotient,
)
def _(case: Case) -> Iterator[Finding]:
    if not case.manifold.dim(case.shape):
        return
    x = case.flat(case.x)[:1].expand(TARGETS, *case.x.shape[case.x.dim() - case.manifold.ndim :])
    y = _walked(case, x)
    missed = _left(case, x, y, ~_reached(case, x, y))
    yield holds(not bool(missed.any()), f"{int(missed.sum())} of {TARGETS} walks of four steps are missed")
    many = case.at(TARGETS)
    y = many.point(3).reshape(TARGETS, -1, *x.shape[1:])[:, 0]
    missed = ~_reached(case, x, y)
    # neither way: another component, as of determinant -1
    one_way = _left(case, x, y, missed & _reached(case, y, x)) if bool(missed.any()) else missed
    yield holds(
        not bool(one_way.any()),
        f"{int(one_way.sum())} of {TARGETS} random points are missed, though from them x is reached",
    )


def _walked(case: Case, x: Tensor) -> Tensor:
    """Four steps from x, each in a random direction, of a length that comes to no antipode."""
    generator, m = case.generator(9), case.manifold
    for _ in range(4):
        v = m.random_tangent(x, generator)
        size = m.norm(x, v) if case.is_open else case.size(v)
        x = m.retract(x, case.times(0.8 / size.clamp_min(1e-3), v))
    return x


def _reached(case: Case, x: Tensor, y: Tensor) -> Tensor:
    """Which of the targets y a descent comes to, one of long steps or one of straight ones.

    Long ones may come to the boundary of an open set, from where all ways are short; straight ones are many.
    """
    reached = _descends(case, x, y, torch.inf)
    return reached if bool(reached.all()) else reached | _descends(case, x, y, 0.25)


def _left(case: Case, x: Tensor, y: Tensor, missed: Tensor) -> Tensor:
    """Which of the missed targets are missed too by descents from moves away from x, one after the other.

    A curved set may have points that are nearer to y than all around them, as the far side of a flat ellipsoid is.
    """
    for k in range(AWAY):
        these = missed.nonzero().squeeze(-1)
        if not len(these):
            break
        missed, x = missed.clone(), _away(case, x, k)
        missed[these] = ~_descends(case, x[these], y[these], torch.inf)
    return missed


def _away(case: Case, x: Tensor, k: int) -> Tensor:
    """The engine's own move from x, along random coordinates as long as x; x where that is no point."""
    e, gaussian = case.engine, torch.randn(x.shape, generator=case.generator(20 + k), dtype=x.dtype, device=x.device)
    c = e.coordinates(x, gaussian)
    y = e.move(x, case.times(case.size(x) / case.size(c).clamp_min(1e-3), c))
    return torch.where(per_point(case.manifold.contains(y), case.manifold.ndim), y, x)


def _descends(case: Case, x: Tensor, y: Tensor, bend: float) -> Tensor:
    """Which of the targets y Gauss-Newton steps come to, halved where they go too far.

    A step of size t with the velocity u brings half of what it promises, (2t - t^2) |u|^2 of |y - x|^2, and ends within
    bend t |u| of x + t u.
    """
    m, e, x = case.manifold, case.engine, x.clone()
    near = NEAR * case.size(y).clamp_min(1)
    for _ in range(STEPS):
        far = case.apart(x, y)
        if bool((far <= near).all()):
            break
        c, u = _towards(case, x, y - x)
        size, closer = torch.ones_like(far), far <= near
        z = x
        for _ in range(HALVINGS):
            there = e.move(x, e.coordinates(x, per_point(size, m.ndim) * c))
            gain = far**2 - case.apart(there, y) ** 2 > (1 - size / 2) * size * case.dot(u, u)
            straight = case.apart(there, x + per_point(size, m.ndim) * u) <= bend * size * case.size(u)
            better = ~closer & m.contains(there) & gain & straight  # not where it is NaN
            z = torch.where(per_point(better, m.ndim), there, z)
            closer = closer | better
            if bool(closer.all()):
                break
            size = size / 2
        if torch.equal(z, x):
            break
        x = z
    return case.apart(x, y) <= near


def _towards(case: Case, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The c whose velocity, by differences, is nearest to v, and this velocity."""
    e, step, count = case.engine, case.eps ** (1 / 3), _flat(x).shape[1]
    basis = torch.eye(count, dtype=case.dtype.to_real(), device=case.device)
    basis = (torch.view_as_complex(basis.reshape(count, -1, 2)) if x.is_complex() else basis).reshape(-1, *x.shape[1:])
    at = x[:, None].expand(-1, count, *x.shape[1:]).flatten(0, 1)
    c = step * e.coordinates(at, basis.repeat(len(x), *(1,) * (x.dim() - 1)))
    columns = _flat(e.move(at, c) - e.move(at, -c)).reshape(len(x), count, count).mT / (2 * step)
    columns = columns.nan_to_num()
    best = torch.linalg.pinv(columns, rtol=1e-7) @ _flat(v).unsqueeze(-1)
    found = best, columns @ best
    c, u = (torch.view_as_complex(a.reshape(len(x), -1, 2)) for a in found) if x.is_complex() else found
    return c.reshape(x.shape), u.reshape(x.shape)


def _flat(a: Tensor) -> Tensor:
    """The real numbers of each point."""
    return (torch.view_as_real(a.resolve_conj()) if a.is_complex() else a).reshape(len(a), -1)
