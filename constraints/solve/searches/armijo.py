"""Backtracking."""

from __future__ import annotations

from dataclasses import dataclass

from ..numbers import Number, any_, is_finite, larger, no, over, smaller, where
from ..options import check_between, check_count, check_least
from .line import Found, Line, LineSearch


@dataclass(frozen=True, repr=False)
class Armijo(LineSearch):
    """Shorter and shorter t, until phi(t) <= phi(0) + decrease t phi'(0) + slack eps |phi(0)|.

    The next t is where the parabola through phi(0), phi'(0) and phi(t) is least, but within [0.1, 0.5] t. The gradient
    is taken at the end only. Raises ValueError for options out of range.
    Source: Armijo (1966); Nocedal & Wright, Numerical Optimization (2006), section 3.5.

    >>> LBFGS(search=Armijo(limit=20))
    LBFGS(search=Armijo(limit=20))
    """

    decrease: float = 1e-4
    slack: float = 10.0
    limit: int = 40

    def __post_init__(self) -> None:
        check_between(self, 0, 1, decrease=self.decrease)
        check_count(self, limit=self.limit)
        check_least(self, 0, slack=self.slack)

    def search(self, line: Line, first: Number) -> Found:
        found, t, active = Found.none(line), first, line.active
        allowed = line.value + line.allowance(self.slack)
        for _ in range(self.limit):
            trial = line.at(t, active)
            taken = active & (trial.value <= allowed + self.decrease * t * line.slope)
            if any_(taken):
                size = line.problem.space.size(trial.gradient)
                taken = taken & is_finite(size)
                found.take(trial, taken)
                active = active & no(taken)
            if not any_(active) or line.problem.out_of_time():
                return found
            least = over(-line.slope * t * t, 2 * (trial.value - line.value - t * line.slope))
            t = where(is_finite(trial.value), smaller(larger(least, 0.1 * t), 0.5 * t), 0.25 * t)
        return found
