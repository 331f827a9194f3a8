"""What a trivialization reaches: the engine's move, from a base that follows, to targets that are far."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..base import per_point
from ._case import Case, Finding, holds, theorem

TARGETS = 4
STEPS = 100
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
    applies=lambda case: case.eps < 1e-10,
)
def _(case: Case) -> Iterator[Finding]:
    if not case.manifold.dim(case.shape):
        return
    x = case.flat(case.x)[:1].expand(TARGETS, *case.x.shape[case.x.dim() - case.manifold.ndim :])
    missed = ~_reached(case, x, _walked(case, x))
    yield holds(not bool(missed.any()), f"{int(missed.sum())} of {TARGETS} walks of four steps are missed")
    many = case.at(TARGETS)
    y = many.point(3).reshape(TARGETS, -1, *x.shape[1:])[:, 0]
    missed = ~_reached(case, x, y)
    # neither way: another component, as of determinant -1
    one_way = missed & _reached(case, y, x) if bool(missed.any()) else missed
    yield holds(
        not bool(one_way.any()),
        f"{int(one_way.sum())} of {TARGETS} random points are missed, though from them x is reached",
    )


def _walked(case: Case, x: Tensor) -> Tensor:
    """Four steps of length 1 from x, each in a random direction."""
    generator, m = case.generator(9), case.manifold
    for _ in range(4):
        v = m.random_tangent(x, generator)
        size = m.norm(x, v) if case.is_open else case.size(v)
        x = m.retract(x, case.times(1 / size.clamp_min(1e-3), v))
    return x


def _reached(case: Case, x: Tensor, y: Tensor) -> Tensor:
    """Which of the targets y the descent comes to."""
    m, x = case.manifold, x.clone()
    near = NEAR * case.size(y).clamp_min(1)
    for _ in range(STEPS):
        far = case.apart(x, y)
        c = torch.zeros_like(x, requires_grad=True)
        (g,) = torch.autograd.grad(case.apart(m.move(x, m.coordinates(x, c)), y).square().sum() / 2, c)
        if bool(((far <= near) | (case.size(g) <= 1e-2 * near)).all()):
            break
        size = torch.ones_like(far)
        for _ in range(30):
            z = m.move(x, m.coordinates(x, -per_point(size, m.ndim) * g))
            gone = ~(case.apart(z, y) < far) & (far > near)  # also where z is NaN
            if not bool(gone.any()):
                break
            size = torch.where(gone, size / 2, size)
        x = torch.where(per_point(case.apart(z, y) < far, m.ndim), z.detach(), x)
    return case.apart(x, y) <= near
