"""What every solver is: a frozen value that takes a state one step further."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from .problem import Evaluation, Problem
from .space import Numbers, Rows

Mask = Bool[Tensor, "B 1"]


@dataclass
class State:
    """Where each of B problems is: its point, value, gradient and gradient norm, and the length of its last step."""

    x: Rows
    at: Evaluation
    value: Numbers
    gradient: Rows
    norm: Numbers
    length: Numbers
    stuck: Mask
    """No step was found, nor will be."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What the solver keeps for its next step."""


class Solver(ABC):
    """A way from one state to the next. Options are fields; what a solver remembers is in the state."""

    needs_hessian: ClassVar[bool] = False

    def __repr__(self) -> str:
        return repr_of(self)

    @abstractmethod
    def advance(self, problem: Problem, state: State, active: Mask) -> State:
        """One step of every active problem; the others stay where they are."""


def start(problem: Problem, x: Rows) -> State:
    """The state at x, with nothing remembered."""
    at = problem.at(x)
    zero = torch.zeros_like(at.value)
    return State(x, at, at.value, at.gradient, problem.space.norm(x, at.gradient), zero, zero > 0)


def reach(problem: Problem, x: Rows, v: Rows, moves: Mask) -> tuple[Rows, Mask]:
    """R_x(v) where that can be computed, else x; and where it can, among those that move."""
    try:
        y = problem.space.retract(x, v)
    except (ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        problem.complaint = str(error)
        return x, torch.zeros_like(moves)
    # a sum is finite where its terms are, but for rows so long that their points are of no use
    good = torch.isfinite(y.sum(-1, keepdim=True)) & moves
    return (y if bool(good.all()) else torch.where(good, y, x)), good


def moved(problem: Problem, state: State, y: Rows, at: Evaluation, length: Numbers, taken: Mask) -> State:
    """The state with the problems in `taken` at y, of which `at` is the evaluation, and the others where they are."""
    if not bool(taken.any()):
        at = state.at if problem.keeps_graphs else problem.at(state.x)
        return State(state.x, at, state.value, state.gradient, state.norm, torch.zeros_like(length), state.stuck)
    value, gradient = at.value, None
    if not bool(taken.all()):
        y = torch.where(taken, y, state.x)
        at = problem.at(y)
        value, length = torch.where(taken, at.value, state.value), torch.where(taken, length, 0)
        gradient = torch.where(taken, at.gradient, state.gradient)
    gradient = at.gradient if gradient is None else gradient
    return State(y, at, value, gradient, problem.space.norm(y, gradient), length, state.stuck)


def pick(mask: Mask, new: Tensor, old: Tensor, everywhere: bool) -> Tensor:
    """new where the mask holds, else old; without a copy where it holds everywhere."""
    return new if everywhere else torch.where(mask, new, old)


def repr_of(value: Any) -> str:
    """The name of a dataclass, and those of its options that differ from their defaults."""
    options = [(f, getattr(value, f.name)) for f in fields(value)]
    written = [f"{f.name}={getattr(v, '__name__', repr(v))}" for f, v in options if v != f.default]
    return f"{type(value).__name__}({', '.join(written)})"
