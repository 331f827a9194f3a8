"""Newton's method with a Hessian that is read off the last steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from .descent import downhill, first_step, search_along
from .numbers import Number, Truth, full, is_finite, no, over, plus, where
from .options import check_between, check_count, check_kind
from .problem import Problem
from .searches import LineSearch, StrongWolfe
from .searches.line import Found
from .solver import Solver, State
from .space import Rows


@dataclass(frozen=True, repr=False)
class LBFGS(Solver):
    """Limited-memory BFGS: d = -H grad f(x) with H from the last pairs (s, y) of steps and changes of the gradient.

    memory: how many pairs, at most as many as there are dimensions. They are carried to each new point, all in one call
    of the transport; where that turns or projects they lie still, and H g is carried to them. A pair is used only where
    <s, y> >= caution |grad f(x)| <s, s>, which keeps H positive definite (cautious update).
    search: StrongWolfe() by default; the first trial is t = 1. Superlinear convergence, with gradients only.
    Raises ValueError for options out of range.
    Source: Nocedal & Wright (2006), algorithm 7.4; Li & Fukushima (2001) and Huang, Absil & Gallivan (2018) for
    the cautious update on manifolds.

    >>> a = torch.diag(torch.arange(5.0, dtype=torch.float64))
    >>> minimize(lambda x: x @ a @ x, (5,), Sphere, solver=LBFGS(memory=5), dtype=a.dtype).converged
    True
    """

    memory: int = 10
    caution: float = 1e-6
    search: LineSearch = StrongWolfe()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        check_count(self, memory=self.memory)
        check_between(self, 0, 1, caution=self.caution)
        check_kind(self, LineSearch, search=self.search)

    def advance(self, problem: Problem, state: State, active: Truth) -> State:
        space, x, g = problem.space, state.x, state.gradient
        pairs: Pairs = state.memory.get("pairs") or Pairs([], [], [], full(state.value, 1.0))
        if space.lies_still:
            d = space.fasten(x, pairs.times(space.dot, space.loose(x, g)))
        else:
            d = pairs.times(partial(space.inner, x), g)
        d, slope, kept = downhill(problem, state, -d, active)
        steepest = no(kept) | pairs.none_used(state)
        new, found = search_along(
            problem, state, d, slope, self.search, where(steepest, first_step(state), 1.0), active
        )
        new.memory = {"pairs": pairs.carried(problem, state, new, d, found, self.memory, self.caution)}
        new.stuck = state.stuck | (active & no(found.done) & steepest)
        return new


class Pairs(NamedTuple):
    """Steps s, changes y of the gradient, 1 / <s, y> or 0 for pairs that are not used, and the scale of H."""

    s: list[Rows]
    y: list[Rows]
    weight: list[Number]
    scale: Number

    def times(self, inner: Callable[[Rows, Rows], Number], g: Rows) -> Rows:
        """H g, by the two loops."""
        kept: list[Number] = []
        for s, y, weight in zip(reversed(self.s), reversed(self.y), reversed(self.weight), strict=True):
            kept.append(weight * inner(s, g))
            g = plus(g, -kept[-1], y)
        g = g * self.scale
        for s, y, weight, a in zip(self.s, self.y, self.weight, reversed(kept), strict=True):
            g = plus(g, a - weight * inner(y, g), s)
        return g

    def none_used(self, state: State) -> Truth:
        """Where H is a multiple of the identity."""
        used = state.norm < 0
        for weight in self.weight:
            used = used | (weight > 0)
        return no(used)

    def carried(
        self, problem: Problem, state: State, new: State, d: Rows, found: Found, most: int, caution: float
    ) -> Pairs:
        """The pairs at the new point, with that of the last step; none where the search failed, for they are wrong."""
        space = problem.space
        # as many pairs as there are dimensions know all of the Hessian
        keep = slice(max(0, len(self.s) + 1 - min(most, max(1, space.dim()))), None)
        s, y, weights = self.s[keep], self.y[keep], self.weight[keep]
        if space.lies_still:
            old, step, end = (
                space.loose(*pair) for pair in ((state.x, state.gradient), (state.x, d), (new.x, new.gradient))
            )
            step, change, inner = step * found.t, end - old, space.dot
        else:
            stack = torch.stack([state.gradient, d * found.t, *s, *y])
            old, step, *others = space.transport(state.x, new.x, stack).unbind()
            change, s, y = new.gradient - old, others[: len(s)], others[len(s) :]
            inner = partial(space.inner, new.x)
        curvature, squared = inner(step, change), inner(step, step)
        good = found.done & (curvature > caution * state.norm * squared) & is_finite(curvature)
        scale = where(good, over(curvature, inner(change, change)), self.scale)
        weights = [where(found.done, weight, 0.0) for weight in weights]
        return Pairs(
            [*s, step],
            [*y, change],
            [*weights, where(good, over(1.0, curvature), 0.0)],
            scale,
        )
