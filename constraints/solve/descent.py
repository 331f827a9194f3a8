"""What solvers share that search along a direction."""

from __future__ import annotations

import torch

from .numbers import Number, Truth, all_, no, over, pick, where
from .problem import Problem
from .searches.line import Found, Line, LineSearch
from .solver import State
from .space import Rows


def downhill(problem: Problem, state: State, d: Rows, active: Truth) -> tuple[Rows, Number, Truth]:
    """(d, <grad, d>, where d is kept): minus the gradient where d does not clearly lead down, or is not finite."""
    space, x, g = problem.space, state.x, state.gradient
    slope = space.inner(x, g, d)
    kept = slope <= -torch.finfo(x.dtype).eps * state.norm * space.norm(x, d)
    if all_(kept | no(active)):
        return d, slope, kept
    return where(kept, d, -g), where(kept, slope, -state.norm * state.norm), kept


def search_along(
    problem: Problem, state: State, d: Rows, slope: Number, search: LineSearch, first: Number, active: Truth
) -> tuple[State, Found]:
    """The state after a search along d, from the step `first` on. Where none is found it stays, with length 0."""
    found = search.search(Line(problem, state, d, active, slope), pick(active, first, 0.0))
    space = problem.space
    norm, length = space.norm(found.y, found.gradient), found.t * space.norm(state.x, d)
    return State(found.y, state.at, found.value, found.gradient, norm, length, state.stuck), found


def first_step(state: State) -> Number:
    """1 / |grad|: a step of length 1."""
    return over(1.0, state.norm)
