"""Backtracking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..numbers import Number, Truth, any_, full, is_finite, larger, over, smaller, where
from ..options import check_between, check_count, check_least
from .line import Kept, Line, LineSearch, Trial


@dataclass(frozen=True, repr=False)
class Armijo(LineSearch):
    """Shorter and shorter t, until phi(t) <= phi(0) + decrease t phi'(0) + slack eps |phi(0)|.

    The next t is where the parabola through phi(0), phi'(0) and phi(t) is least, but within [0.1, 0.5] t. The gradient
    is taken at the end only. Raises ValueError for options out of range.
    Source: Armijo (1966); Nocedal & Wright, Numerical Optimization (2006), section 3.5.

    >>> LBFGS(search=Armijo(limit=20))
    LBFGS(search=Armijo(limit=20))
    """

    takes_the_best: ClassVar[bool] = False

    decrease: float = 1e-4
    slack: float = 10.0
    limit: int = 40

    def __post_init__(self) -> None:
        check_between(self, 0, 1, decrease=self.decrease)
        check_count(self, limit=self.limit)
        check_least(self, 0, slack=self.slack)

    def begin(self, line: Line, first: Number) -> Kept:
        return {"t": first}

    def accepts(self, line: Line, trial: Trial) -> Truth:
        allowed = line.value + line.allowance(self.slack) + self.decrease * trial.t * line.slope
        low = line.active & (trial.value <= allowed)
        return low & is_finite(line.problem.space.size(trial.gradient)) if any_(low) else low

    def narrowed(self, line: Line, trial: Trial, kept: Kept) -> tuple[Kept, Number, Number]:
        t = kept["t"]
        least = over(-line.slope * t * t, 2 * (trial.value - line.value - t * line.slope))
        shorter = where(is_finite(trial.value), smaller(larger(least, 0.1 * t), 0.5 * t), 0.25 * t)
        return {"t": shorter}, full(t, 0.0), t
