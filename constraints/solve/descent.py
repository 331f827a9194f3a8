"""What solvers share that search along a direction."""

from __future__ import annotations

from typing import NamedTuple

from .numbers import Number, Truth, all_, eps_of, no, over, pick, where
from .problem import Problem
from .searches.line import Found, Line, LineSearch
from .solver import State
from .space import Rows


class Downhill(NamedTuple):
    """A direction d, <grad f, d> and |d|; kept: where it is the one that was asked for."""

    d: Rows
    slope: Number
    size: Number
    kept: Truth


def downhill(problem: Problem, state: State, d: Rows, active: Truth) -> Downhill:
    """d; minus the gradient where d does not clearly lead down, or is not finite."""
    space, x, g = problem.space, state.x, state.gradient
    slope, size = space.inner(x, g, d), space.norm(x, d)
    kept = slope <= -eps_of(x.dtype) * state.norm * size
    if all_(kept | no(active)):
        return Downhill(d, slope, size, kept)
    return Downhill(
        where(kept, d, -g), where(kept, slope, -state.norm * state.norm), where(kept, size, state.norm), kept
    )


def search_along(
    problem: Problem, state: State, down: Downhill, search: LineSearch, first: Number, active: Truth
) -> tuple[State, Found]:
    """The state after a search along d, from the step `first` on. Where none is found it stays, with length 0."""
    found = search.search(Line(problem, state, down.d, active, down.slope), pick(active, first, 0.0))
    norm = problem.space.norm(found.y, found.gradient)
    return State(found.y, state.at, found.value, found.gradient, norm, found.t * down.size, state.stuck), found


def first_step(state: State) -> Number:
    """1 / |grad|: a step of length 1."""
    return over(1.0, state.norm)
