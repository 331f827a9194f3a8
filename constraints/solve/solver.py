"""What every solver is: a frozen value that takes a state one step further."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .numbers import Number, Truth, all_, any_, full, is_finite, pick, where
from .problem import Evaluation, Problem
from .space import Rows


@dataclass
class State:
    """Where each problem is: its point, value, gradient and gradient norm, and the length of its last step."""

    x: Rows
    at: Evaluation
    value: Number
    gradient: Rows
    norm: Number
    length: Number
    stuck: Truth
    """No step was found, nor will be."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What the solver keeps for its next step."""
    ended: Truth = True
    """Whose step ended with this state; the others are in the midst of one, and stay where they were."""


class Solver(ABC):
    """A way from one state to the next. Options are fields; what a solver remembers is in the state.

    >>> issubclass(LBFGS, Solver)
    True
    """

    needs_hessian: ClassVar[bool] = False

    def __repr__(self) -> str:
        return repr_of(self)

    @abstractmethod
    def advance(self, problem: Problem, state: State, active: Truth) -> State:
        """One step of every active problem, or a part of one, see `State.ended`; the others stay where they are."""

    def settle(self, problem: Problem, state: State, at_rest: Truth) -> tuple[State, Truth]:
        """Where the gradient of all problems vanishes: the state, after a step for those that a solver knows to be no
        minima, and which these are. None, unless a solver looks for them."""
        return state, at_rest & False


def start(problem: Problem, x: Rows) -> State:
    """The state at x, with nothing remembered."""
    at = problem.at(x)
    zero = full(at.value, 0.0)
    return State(x, at, at.value, at.gradient, problem.space.norm(x, at.gradient), zero, zero > 0)


def reach(problem: Problem, x: Rows, v: Rows, moves: Truth, t: Number = 1.0) -> tuple[Rows, Truth]:
    """R_x(t v) where that can be computed, else x; and where it can, among those that move."""
    y = problem.space.retract(x, v, t)
    # a sum is finite where its terms are, but for rows so long that their points are of no use
    good = moves & is_finite(y.sum(-1, keepdim=True) if problem.space.batched else y.sum().item())
    return pick(good, y, x), good


def moved(problem: Problem, state: State, y: Rows, at: Evaluation, length: Number, taken: Truth) -> State:
    """The state with the problems in `taken` at y, of which `at` is the evaluation, and the others where they are."""
    if not any_(taken):
        at = state.at if problem.keeps_graphs else problem.at(state.x)
        return State(state.x, at, state.value, state.gradient, state.norm, full(length, 0.0), state.stuck)
    if not all_(taken):
        y = where(taken, y, state.x)
        at = problem.at(y)
    value, gradient = pick(taken, at.value, state.value), pick(taken, at.gradient, state.gradient)
    return State(y, at, value, gradient, problem.space.norm(y, gradient), where(taken, length, 0.0), state.stuck)


def repr_of(value: Any) -> str:
    """The name of a dataclass, and those of its options that differ from their defaults."""
    options = [(f, getattr(value, f.name)) for f in fields(value)]
    written = [f"{f.name}={getattr(v, '__name__', repr(v))}" for f, v in options if v != f.default]
    return f"{type(value).__name__}({', '.join(written)})"
