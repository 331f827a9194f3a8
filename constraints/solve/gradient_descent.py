"""Down the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from .descent import Downhill, first_step, search_along
from .numbers import Truth, all_, is_finite, no, over, where
from .options import check_kind
from .problem import Problem
from .searches import Armijo, LineSearch
from .solver import Solver, State


@dataclass(frozen=True, repr=False)
class GradientDescent(Solver):
    """x <- R_x(-t grad f(x)), the first t of Barzilai & Borwein: <s, s> / <s, y>, with s = -t grad f(x) the last step
    and y the change of the gradient, both carried to x.

    search: Armijo() by default. Many cheap steps; for few of them see `LBFGS`.
    Source: Barzilai & Borwein (1988); Iannazzo & Porcelli, The Riemannian Barzilai-Borwein method (2018).

    >>> a = torch.diag(torch.arange(5.0, dtype=torch.float64))
    >>> minimize(lambda x: x @ a @ x, (5,), Sphere, solver=GradientDescent(), dtype=a.dtype).converged
    True
    """

    search: LineSearch = Armijo()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        check_kind(self, LineSearch, search=self.search)

    def advance(self, problem: Problem, state: State, active: Truth) -> State:
        space, x, g = problem.space, state.x, state.gradient
        first = state.memory.get("t")
        first = first_step(problem, state) if first is None else first
        down = Downhill(-g, -state.norm * state.norm, state.norm, active)
        new, found, ended = search_along(problem, state, down, self.search, first, active)
        carried = space.transport(x, new.x, g)
        curvature = space.inner(new.x, carried, carried - new.gradient)
        t = over(found.t * space.inner(new.x, carried, carried), curvature)
        known = (curvature > 0) & is_finite(t)
        if not all_(known):
            t = where(known, t, where(found.done, 2 * found.t, first_step(problem, new)))
        new.memory["t"] = where(ended, t, first)
        new.stuck = state.stuck | (ended & no(found.done))
        return new
