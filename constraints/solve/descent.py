"""What solvers share that search along a direction."""

from __future__ import annotations

from typing import NamedTuple

from .numbers import Number, Truth, all_, any_, eps_of, no, over, pick, where
from .problem import Problem
from .searches.line import Found, Line, LineSearch
from .searches.trials import Trials
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


class Way(NamedTuple):
    """The state after a search along a direction, what was found, and of which problems the search ended."""

    state: State
    found: Found
    ended: Truth


def search_along(
    problem: Problem, state: State, down: Downhill, search: LineSearch, first: Number, active: Truth
) -> Way:
    """A search along d, from the step `first` on. Where none is found the state stays, with length 0.

    Of a batch it is one trial: problems whose search ended take another direction while those of others go on, so that
    f is called as often as the slowest problem needs, and not in each step as often as the slowest search. Who is in a
    search has not moved, and is given the same direction again.
    """
    trials = Trials(search, Line(problem, state, down.d, active, down.slope), pick(active, first, 0.0))
    if not problem.space.batched:
        while trials.go():
            pass
    else:
        if (earlier := state.memory.pop("trials", None)) is not None:
            trials.resume(earlier)
        trials.go()
    found = trials.found
    norm = problem.space.norm(found.y, found.gradient)
    new = State(found.y, state.at, found.value, found.gradient, norm, found.t * down.size, state.stuck)
    ended = active & no(trials.active)
    if problem.space.batched:
        new.ended = ended
        if any_(trials.active):
            new.memory["trials"] = trials
    return Way(new, found, ended)


def first_step(problem: Problem, state: State) -> Number:
    """t of a first step along the gradient, see `Space.stride`."""
    return over(problem.space.stride(state.x), state.norm)
