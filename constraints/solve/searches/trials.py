"""What searches by an interval share: the step that is taken, the best one so far, and when to give up."""

from __future__ import annotations

import math

from ..numbers import Number, Truth, any_, larger, no, smaller
from .line import Found, Line, Trial

NARROW = 0.05
"""An interval so short, as part of its upper end, is searched no more: slopes are those of the transport, which are off
by O(t |d|), so that on long steps no point may have the slope that is asked for."""


class Trials:
    """The problems that are still searched, `active`; what was found for the others, and the best so far for all."""

    def __init__(self, line: Line) -> None:
        self.line, self.active = line, line.active
        self.found = Found.none(line)
        self._best: Found | None = None

    def goes_on(self, trial: Trial, value: Number, taken: Truth) -> bool:
        """Whether a problem is left after those in `taken` took the trial, of this value or NaN, and time to go
        on."""
        taken = self.active & taken
        if any_(taken):
            self.found.take(trial, taken)
            self.active = self.active & no(taken)
            if not any_(self.active):
                return False
        if self._best is None:
            self._best = Found.none(self.line)
        better = self.active & (value < self._best.value)
        if any_(better):
            self._best.take(trial, better)
        return not self.line.problem.out_of_time()

    def narrows(self, a: Number, b: Number) -> bool:
        """Whether a problem is left after those took their best trial whose interval from a to b is short."""
        assert self._best is not None
        top = larger(a, b)
        ends = self.active & self._best.done & (top < math.inf) & (top - smaller(a, b) <= NARROW * top)
        if any_(ends):
            self.found.take(self._best, ends)
            self.active = self.active & no(ends)
        return any_(self.active)

    def end(self) -> Found:
        """What was found, the best trial where nothing was taken."""
        if self._best is not None:
            self.found.take(self._best, self.active & self._best.done)
        return self.found
