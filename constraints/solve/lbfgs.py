"""Newton's method with a Hessian that is read off the last steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from .descent import downhill, first_step, search_along
from .options import check_between, check_count
from .problem import Problem
from .searches import HagerZhang, LineSearch
from .solver import Mask, Solver, State
from .space import Numbers, Rows, Space


@dataclass(frozen=True, repr=False)
class LBFGS(Solver):
    """Limited-memory BFGS: d = -H grad f(x) with H from the last pairs (s, y) of steps and changes of the gradient.

    memory: how many pairs. They are carried to each new point, all in one call of the transport. A pair is used only
    where <s, y> >= caution |grad f(x)| <s, s>, which keeps H positive definite (cautious update).
    search: HagerZhang() by default; the first trial is t = 1. Superlinear convergence, with gradients only.
    Raises ValueError for options out of range.
    Source: Nocedal & Wright (2006), algorithm 7.4; Li & Fukushima (2001) and Huang, Absil & Gallivan (2018) for
    the cautious update on manifolds.
    """

    memory: int = 10
    caution: float = 1e-6
    search: LineSearch = HagerZhang()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        check_count(self, memory=self.memory)
        check_between(self, 0, 1, caution=self.caution)

    def advance(self, problem: Problem, state: State, active: Mask) -> State:
        space, x, g = problem.space, state.x, state.gradient
        pairs: Pairs | None = state.memory.get("pairs")
        direction = -g if pairs is None else -pairs.times(space, x, g)
        d, slope, kept = downhill(problem, state, direction, active)
        first = torch.ones_like(slope) if pairs is not None else first_step(state)
        # a gradient in place of d has no length of its own
        first = torch.where(kept, first, first_step(state)) if pairs is not None else first
        new, found = search_along(problem, state, d, slope, self.search, first, active)

        kept_pairs = [] if pairs is None else [*pairs.s[-self.memory + 1 :], *pairs.y[-self.memory + 1 :]]
        carried = space.transport(x, new.x, torch.stack([g, found.t * d, *kept_pairs])).unbind()
        old, s, others = carried[0], carried[1], carried[2:]
        y = new.gradient - old
        count = len(others) // 2
        sy, ss = space.inner(new.x, s, y), space.inner(new.x, s, s)
        good = found.done & (sy > self.caution * state.norm * ss) & sy.isfinite()
        scale = sy / space.inner(new.x, y, y)
        if pairs is not None:
            scale = torch.where(good, scale, pairs.scale)
        else:
            scale = torch.where(good, scale, 1)
        # where the search failed the pairs are wrong: they are forgotten
        weight = torch.where(good, 1 / sy, 0)
        weights = [] if pairs is None else [torch.where(found.done | ~active, w, 0) for w in pairs.weight[-self.memory + 1:]]
        new.memory = {
            "pairs": Pairs([*others[:count], s], [*others[count:], y], [*weights, weight], scale),
            "failed": ~found.done,
        }
        new.stuck = state.stuck | (active & ~found.done & ~kept)
        return new


class Pairs(NamedTuple):
    """Steps s, changes y of the gradient, 1 / <s, y> or 0 for pairs that are not used, and the scale of H."""

    s: list[Rows]
    y: list[Rows]
    weight: list[Numbers]
    scale: Numbers

    def times(self, space: Space, x: Rows, g: Rows) -> Rows:
        """H g, by the two loops."""
        a: list[Numbers] = []
        for s, y, weight in zip(reversed(self.s), reversed(self.y), reversed(self.weight), strict=True):
            a.append(weight * space.inner(x, s, g))
            g = torch.addcmul(g, a[-1], y, value=-1)
        g = self.scale * g
        for s, y, weight, each in zip(self.s, self.y, self.weight, reversed(a), strict=True):
            g = torch.addcmul(g, each - weight * space.inner(x, y, g), s)
        return g
