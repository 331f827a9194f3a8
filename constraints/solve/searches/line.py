"""f along the curve t -> R_x(t d), for many problems at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from ..problem import Evaluation, Problem
from ..solver import Mask, State, pick, reach, repr_of
from ..space import Numbers, Rows


class Trial:
    """What is known at R_x(t d). Where that could not be computed, or f is not finite, value and slope are NaN."""

    def __init__(self, line: Line, t: Numbers, y: Rows, good: Mask, at: Evaluation) -> None:
        self._line, self.t, self.y, self.at = line, t, y, at
        self.value: Numbers = at.value if bool(good.all()) else torch.where(good, at.value, torch.nan)

    @property
    def gradient(self) -> Rows:
        """The Riemannian gradient."""
        return self.at.gradient

    def slope(self) -> Numbers:
        """<grad f(R_x(t d)), T d> with T the transport: the derivative of f along the curve, but for a relative error
        of O(t |d|), which is that between T d and the velocity of the curve."""
        space, line = self._line.problem.space, self._line
        return space.inner(self.y, self.gradient, space.transport(line.x, self.y, line.d))


class Line:
    """f from x along d, with value, slope and allowance at t = 0.

    allowance: by how much a value may be larger than it should for rounding, slack eps |f(x)|.
    """

    def __init__(self, problem: Problem, state: State, d: Rows, active: Mask, slope: Numbers) -> None:
        self.problem, self.x, self.d, self.active = problem, state.x, d, active
        self.value, self.slope, self.state = state.value, slope, state

    def allowance(self, slack: float) -> Numbers:
        """slack eps |f(x)|."""
        return slack * torch.finfo(self.x.dtype).eps * self.value.abs()

    def at(self, t: Numbers, wanted: Mask) -> Trial:
        """f at R_x(t d), for the problems that want it."""
        t = pick(wanted, t, torch.zeros_like(t), bool(wanted.all()))
        y, good = reach(self.problem, self.x, t * self.d, wanted)
        return Trial(self, t, y, good, self.problem.at(y))


@dataclass
class Found:
    """The steps that were taken so far, and where they lead; the problems that are not done are still at x."""

    t: Numbers
    y: Rows
    value: Numbers
    gradient: Rows
    done: Mask

    @classmethod
    def none(cls, line: Line) -> Found:
        """No problem has moved."""
        state = line.state
        zero = torch.zeros_like(line.value)
        return cls(zero, state.x, state.value, state.gradient, zero > 0)

    def take(self, trial: Trial | Found, mask: Mask) -> None:
        """The problems of the mask go where the trial is."""
        everywhere = bool(mask.all())
        for name in ("t", "y", "value", "gradient"):
            setattr(self, name, pick(mask, getattr(trial, name), getattr(self, name), everywhere))
        self.done = self.done | mask


class LineSearch(ABC):
    """A way to choose t. Options are fields."""

    @abstractmethod
    def search(self, line: Line, first: Numbers) -> Found:
        """Steps for the active problems, tried from `first` on; where none was found, `done` is False."""

    def __repr__(self) -> str:
        return repr_of(self)
