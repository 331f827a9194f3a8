"""What searches share: the trial that is taken, the best one so far, and when to give up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..numbers import Truth, any_, full, no, where
from .line import Found, Kept, Line

if TYPE_CHECKING:
    from ..numbers import Number
    from .line import LineSearch

NARROW = 0.05
"""An interval so short, as part of its upper end, is searched no more: slopes are those of the transport, which are off
by O(t |d|), so that on long steps no point may have the slope that is asked for."""


class Trials:
    """Searches of the problems that are `active`, one trial of all of them at a time; found: where the others went."""

    def __init__(self, search: LineSearch, line: Line, first: Number) -> None:
        self.active: Truth = line.active
        self.found = Found.none(line)
        self._search, self._line, self._first = search, line, first
        self._tries = full(first, 0.0)
        self._kept: Kept | None = None  # as a rule the first trial is taken
        self._best: Found | None = None

    def resume(self, earlier: Trials) -> None:
        """Those that were active earlier, and have not moved since, go on where they were."""
        assert earlier._kept is not None
        goes_on: Truth = self.active & earlier.active
        begun = self._search.begin(self._line, self._first)
        self._kept = {name: where(goes_on, earlier._kept[name], number) for name, number in begun.items()}
        self._tries = where(goes_on, earlier._tries, self._tries)
        if earlier._best is not None:
            self._best = Found.none(self._line)
            self._best.take(earlier._best, goes_on & earlier._best.done)

    def go(self) -> bool:
        """One trial; whether a problem is left that wants another."""
        search, line = self._search, self._line
        trial = line.at(self._first if self._kept is None else self._kept["t"], self.active)
        taken = self.active & search.accepts(line, trial)
        if taken is True:  # of one problem, as a rule
            self.found.take(trial, True)
            self.active = False
            return False
        if any_(taken):
            self.found.take(trial, taken)
            self.active = self.active & no(taken)
            if not any_(self.active):
                return False
        self._tries = self._tries + 1
        self._kept, low, high = search.narrowed(line, trial, self._kept or search.begin(line, self._first))
        ends = self.active & ((self._tries >= search.limit) | line.problem.out_of_time())
        if search.takes_the_best:
            best = self._best = self._best or Found.none(line)
            better = self.active & (trial.numbers()[0] < best.value)
            if any_(better):
                best.take(trial, better)
            is_short = (high < math.inf) & (high - low <= NARROW * high)
            ends = ends | (self.active & best.done & is_short)
            self.found.take(best, ends & best.done)
        self.active = self.active & no(ends)
        return any_(self.active)
