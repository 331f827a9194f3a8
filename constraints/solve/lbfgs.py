"""Newton's method with a Hessian that is read off the last steps."""

from __future__ import annotations

from dataclasses import dataclass

from .descent import downhill, first_step, search_along
from .numbers import Truth, any_, full, no, where
from .options import check_between, check_count, check_kind
from .pairs import Pairs, Step, no_pairs
from .problem import Problem
from .searches import LineSearch, StrongWolfe
from .solver import Solver, State


@dataclass(frozen=True, repr=False)
class LBFGS(Solver):
    """Limited-memory BFGS: d = -H grad f(x) with H from the last pairs (s, y) of steps and changes of the gradient.

    memory: how many pairs, at most as many as there are dimensions. They are carried to each new point, all in one call
    of the transport; where that turns or projects they lie still, and H g is carried to the new point. It stays as it
    is, and so has a normal part of second order, where the retraction is the nearest point to x + v for any v, as on
    Stiefel: the slope is the same. A pair is used only where <s, y> >= caution |grad f(x)| <s, s>, which keeps H
    positive definite (cautious update).
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
        space, x = problem.space, state.x
        pairs: Pairs = state.memory.get("pairs") or no_pairs(space, self.memory, state.value, x)
        down = downhill(problem, state, pairs.times(space, x, state.gradient), active)
        steepest = no(down.kept) | pairs.none_used()
        first = where(steepest, first_step(problem, state), 1.0) if any_(steepest) else full(state.norm, 1.0)
        new, found, ended = search_along(problem, state, down, self.search, first, active)
        g, after = state.gradient, new.gradient
        step = Step(x, g, state.norm, down.d, found.t, new.length, new.x, after, found.done, ended | no(active))
        pairs.add(space, step, self.caution)
        new.memory["pairs"] = pairs
        new.stuck = state.stuck | (ended & no(found.done) & steepest)
        return new
