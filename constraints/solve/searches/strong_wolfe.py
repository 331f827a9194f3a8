"""The strong Wolfe conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..numbers import Number, Truth, full, larger, no, over, smaller, sqrt, where
from ..options import check_between, check_count, check_least
from .line import Kept, Line, LineSearch, Trial


@dataclass(frozen=True, repr=False)
class StrongWolfe(LineSearch):
    """phi(t) <= phi(0) + decrease t phi'(0) and |phi'(t)| <= curvature |phi'(0)|, by cubics on a shrinking interval.

    Where these are not met within `limit` trials, or until the interval is short, the best point with a decrease is
    taken; slack eps |phi(0)| is allowed for rounding. Raises ValueError for options out of range.
    Source: Nocedal & Wright, Numerical Optimization (2006), algorithms 3.5 and 3.6, and (3.59).

    >>> LBFGS(search=StrongWolfe(curvature=0.5))
    LBFGS(search=StrongWolfe(curvature=0.5))
    """

    decrease: float = 1e-4
    curvature: float = 0.9
    slack: float = 100.0
    limit: int = 25

    def __post_init__(self) -> None:
        check_between(self, 0, 1, decrease=self.decrease)
        check_between(self, self.decrease, 1, curvature=self.curvature)
        check_count(self, limit=self.limit)
        check_least(self, 0, slack=self.slack)

    def begin(self, line: Line, first: Number) -> Kept:
        # low: the end with the lowest value; high: the other one, infinite before there is one
        zero, infinite = full(first, 0.0), full(first, math.inf)
        lower = {"low": zero, "value_low": line.value, "slope_low": line.slope}
        return {"t": first, **lower, "high": infinite, "value_high": zero, "slope_high": zero}

    def accepts(self, line: Line, trial: Trial) -> Truth:
        value, slope = trial.numbers()
        return self._is_enough(line, trial.t, value) & (abs(slope) <= -self.curvature * line.slope)

    def _is_enough(self, line: Line, t: Number, value: Number) -> Truth:
        return value <= line.value + self.decrease * t * line.slope + line.allowance(self.slack)

    def narrowed(self, line: Line, trial: Trial, kept: Kept) -> tuple[Kept, Number, Number]:
        (value, slope), (t, low, value_low, slope_low, high, value_high, slope_high) = trial.numbers(), kept.values()
        # NaN is no better than low
        worse = no(self._is_enough(line, t, value) & (value <= value_low + line.allowance(self.slack)))
        turned = no(worse) & (slope * (high - low) >= 0)
        high, value_high, slope_high = (
            where(worse, t, where(turned, low, high)),
            where(worse, value, where(turned, value_low, value_high)),
            where(worse, slope, where(turned, slope_low, slope_high)),
        )
        low, value_low = where(worse, low, t), where(worse, value_low, value)
        slope_low = where(worse, slope_low, slope)
        least, most = smaller(low, high), larger(low, high)
        cubic = _cubic(low, value_low, slope_low, high, value_high, slope_high)
        margin = 0.1 * (most - least)
        fits = (cubic > least + margin) & (cubic < most - margin)
        t = where(high == math.inf, 4 * t, where(fits, cubic, (low + high) / 2))
        lower = {"low": low, "value_low": value_low, "slope_low": slope_low}
        return {"t": t, **lower, "high": high, "value_high": value_high, "slope_high": slope_high}, least, most


def _cubic(a: Number, value_a: Number, slope_a: Number, b: Number, value_b: Number, slope_b: Number) -> Number:
    """Where the cubic with these values and slopes at a and b is least; NaN where nowhere."""
    one = slope_a + slope_b - over(3 * (value_a - value_b), a - b)
    two = sqrt(one * one - slope_a * slope_b)
    two = where(b > a, two, -two)
    return b - over((b - a) * (slope_b + two - one), slope_b - slope_a + 2 * two)
