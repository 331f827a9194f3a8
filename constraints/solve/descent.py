"""What solvers share that search along a direction."""

from __future__ import annotations

import torch

from .problem import Problem
from .searches.line import Found, Line, LineSearch
from .solver import Mask, State, pick
from .space import Numbers, Rows


def downhill(problem: Problem, state: State, d: Rows, active: Mask) -> tuple[Rows, Numbers, Mask]:
    """(d, <grad, d>, where d is kept): minus the gradient where d does not lead down clearly, or is not finite."""
    space, x, g = problem.space, state.x, state.gradient
    slope = space.inner(x, g, d)
    eps = torch.finfo(x.dtype).eps
    kept = slope <= -eps * state.norm * space.norm(x, d)
    if bool((kept | ~active).all()):
        return d, slope, kept
    return torch.where(kept, d, -g), torch.where(kept, slope, -state.norm.square()), kept


def search_along(
    problem: Problem, state: State, d: Rows, slope: Numbers, search: LineSearch, first: Numbers, active: Mask
) -> tuple[State, Found]:
    """The state after a search along d, from the step `first` on. Where none is found it stays, with length 0."""
    line = Line(problem, state, d, active, slope)
    found = search.search(line, pick(active, first, torch.zeros_like(first), bool(active.all())))
    space, x = problem.space, found.y
    length = found.t * space.norm(state.x, d)
    norm = space.norm(x, found.gradient)
    return State(x, state.at, found.value, found.gradient, norm, length, state.stuck), found


def first_step(state: State) -> Numbers:
    """1 / |grad|: a step of length 1."""
    return 1 / state.norm
