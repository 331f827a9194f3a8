"""f along the curve t -> R_x(t d), for many problems at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ..numbers import Number, Truth, all_, any_, eps_of, full, is_finite, pick, where
from ..problem import Evaluation, Problem
from ..solver import State, reach, repr_of
from ..space import Rows

Kept = dict[str, Number]


class Trial:
    """What is known at R_x(t d). Where that could not be computed, or f is not finite, value and slope are NaN."""

    __slots__ = ("_line", "_numbers", "at", "t", "value", "y")

    def __init__(self, line: Line, t: Number, y: Rows, good: Truth, at: Evaluation) -> None:
        self._line, self.t, self.y, self.at = line, t, y, at
        self.value: Number = pick(good, at.value, math.nan)
        self._numbers: tuple[Number, Number] | None = None

    @property
    def gradient(self) -> Rows:
        """The Riemannian gradient."""
        return self.at.gradient

    @property
    def slope(self) -> Number | None:
        """<grad f(R_x(t d)), T d> with T the transport: the derivative of f along the curve, but for a relative error
        of O(t |d|), which is that between T d and the velocity of the curve. None before `numbers` were asked for."""
        return None if self._numbers is None else self._numbers[1]

    def numbers(self) -> tuple[Number, Number]:
        """(value, slope), both NaN where the slope is not finite: nobody goes where there is no gradient."""
        if self._numbers is None:
            space, line = self._line.problem.space, self._line
            if space.lies_still:
                slope = space.dot(self.gradient, line.d)
            else:
                slope = space.inner(self.y, self.gradient, space.transport(line.x, self.y, line.d))
            finite = is_finite(slope)
            if finite is True:
                self._numbers = self.value, slope
            else:
                self._numbers = pick(finite, self.value, math.nan), pick(finite, slope, math.nan)
        return self._numbers


class Line:
    """f from x along d, with value, slope and allowance at t = 0.

    allowance: by how much a value may be larger than it should for rounding, slack eps |f(x)|.
    """

    def __init__(self, problem: Problem, state: State, d: Rows, active: Truth, slope: Number) -> None:
        self.problem, self.x, self.d, self.active = problem, state.x, d, active
        self.value, self.slope, self.state = state.value, slope, state

    def allowance(self, slack: float) -> Number:
        """slack eps |f(x)|."""
        return slack * eps_of(self.x.dtype) * abs(self.value)

    def at(self, t: Number, wanted: Truth) -> Trial:
        """f at R_x(t d), for the problems that want it."""
        t = pick(wanted, t, 0.0)
        y, good = reach(self.problem, self.x, self.d, wanted, t)
        return Trial(self, t, y, good, self.problem.at(y))


@dataclass(slots=True)
class Found:
    """The steps that were taken so far, and where they lead; the problems that are not done are still at x."""

    t: Number
    y: Rows
    value: Number
    gradient: Rows
    done: Truth
    slope: Number | None
    """<gradient, T d>; None where no search asked for it."""

    @classmethod
    def none(cls, line: Line) -> Found:
        """No problem has moved."""
        state = line.state
        zero = full(line.value, 0.0)
        return cls(zero, state.x, state.value, state.gradient, zero > 0, line.slope)

    def take(self, trial: Trial | Found, mask: Truth) -> None:
        """The problems of the mask go where the trial is."""
        if not any_(mask):
            return
        if mask is True or all_(mask):
            self.t, self.y, self.value, self.gradient = trial.t, trial.y, trial.value, trial.gradient
            self.slope = trial.slope
        else:
            known = self.slope is not None and trial.slope is not None
            self.slope = where(mask, trial.slope, self.slope) if known else None
            self.t, self.y = where(mask, trial.t, self.t), where(mask, trial.y, self.y)
            self.value, self.gradient = where(mask, trial.value, self.value), where(mask, trial.gradient, self.gradient)
        self.done = self.done | mask


class LineSearch(ABC):
    """A way to choose t, trial by trial. Options are fields. What it keeps of each problem between trials are numbers
    with names, t among them: the step to try.

    >>> issubclass(Armijo, LineSearch)
    True
    """

    limit: int
    """How many trials there are at most."""
    takes_the_best: ClassVar[bool] = True
    """Whether the best trial is taken where none is accepted, but one made f smaller."""

    @abstractmethod
    def begin(self, line: Line, first: Number) -> Kept:
        """What is kept before the trial of t = first."""

    @abstractmethod
    def accepts(self, line: Line, trial: Trial) -> Truth:
        """Where this trial of t is taken, of those that are active."""

    @abstractmethod
    def narrowed(self, line: Line, trial: Trial, kept: Kept) -> tuple[Kept, Number, Number]:
        """What is kept after a trial that was not taken, with the next t; and the interval in which this one is,
        from its lower end to its upper, which is infinite before there is one."""

    def __repr__(self) -> str:
        return repr_of(self)
