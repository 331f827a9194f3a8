"""Down the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .descent import first_step, search_along
from .problem import Problem
from .searches import Armijo, LineSearch
from .solver import Mask, Solver, State


@dataclass(frozen=True, repr=False)
class GradientDescent(Solver):
    """x <- R_x(-t grad f(x)), the first t of Barzilai & Borwein: <s, s> / <s, y>, with s = -t grad f(x) the last step
    and y the change of the gradient, both carried to x.

    search: Armijo() by default. Many cheap steps; for few of them see `LBFGS`.
    Source: Barzilai & Borwein (1988); Iannazzo & Porcelli, The Riemannian Barzilai-Borwein method (2018).
    """

    search: LineSearch = Armijo()  # noqa: RUF009 - frozen

    def advance(self, problem: Problem, state: State, active: Mask) -> State:
        space, x, g = problem.space, state.x, state.gradient
        first = state.memory.get("t")
        slope = -state.norm.square()
        new, found = search_along(
            problem, state, -g, slope, self.search, first_step(state) if first is None else first, active
        )
        carried = space.transport(x, new.x, g)
        curvature = space.inner(new.x, carried, carried - new.gradient)
        t = found.t * space.inner(new.x, carried, carried) / curvature
        new.memory = {"t": torch.where((curvature > 0) & t.isfinite(), t, torch.where(found.done, 2 * found.t, first_step(new)))}
        new.stuck = state.stuck | (active & ~found.done)
        return new
