"""The line search of CG_DESCENT."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..numbers import Number, full, no, over, smaller, where
from ..options import check_between, check_count, check_least
from .line import Found, Line, LineSearch
from .trials import Trials


@dataclass(frozen=True, repr=False)
class HagerZhang(LineSearch):
    """Wolfe or approximate Wolfe conditions, by secants on an interval that brackets a minimum.

    t is taken with phi(t) <= phi(0) + delta t phi'(0) and phi'(t) >= sigma phi'(0); or, where rounding hides the
    decrease, with phi(t) <= phi(0) + slack eps |phi(0)| and sigma phi'(0) <= phi'(t) <= (2 delta - 1) phi'(0).
    Where neither is met within `limit` trials, or until the interval is short, the best point with a decrease is taken.
    Raises ValueError for options out of range.
    Source: Hager & Zhang, Algorithm 851: CG_DESCENT (2006), section 3; Sato (2022) on manifolds.

    >>> LBFGS(search=HagerZhang(sigma=0.5))
    LBFGS(search=HagerZhang(sigma=0.5))
    """

    delta: float = 0.1
    sigma: float = 0.9
    slack: float = 1e3
    expand: float = 5.0
    limit: int = 25

    def __post_init__(self) -> None:
        check_between(self, 0, 0.5, delta=self.delta)
        check_between(self, self.delta, 1, sigma=self.sigma)
        check_between(self, 1, math.inf, expand=self.expand)
        check_count(self, limit=self.limit)
        check_least(self, 0, slack=self.slack)

    def search(self, line: Line, first: Number) -> Found:
        trials, highest, c = Trials(line), line.value + line.allowance(self.slack), first
        # a: the lower end, where f falls and is low; b: the upper end, infinite before there is one
        a, value_a, slope_a = full(c, 0.0), line.value, line.slope
        b, slope_b, width = full(c, math.inf), full(c, math.nan), full(c, math.inf)
        for _ in range(self.limit):
            trial = line.at(c, trials.active)
            value, slope = trial.numbers()
            flat_enough = slope >= self.sigma * line.slope
            wolfe = flat_enough & (value <= line.value + self.delta * c * line.slope)
            low = value <= highest
            approximate = flat_enough & low & (slope <= (2 * self.delta - 1) * line.slope)
            if not trials.goes_on(trial, value, wolfe | approximate):
                break
            up, falls = slope >= 0, low & (slope < 0)
            high = no(up | falls)  # too high, or NaN
            a, value_a, slope_a = where(falls, c, a), where(falls, value, value_a), where(falls, slope, slope_a)
            b = where(falls, b, c)
            slope_b = where(up, slope, where(high, math.nan, slope_b))
            gap = b - a
            if not trials.narrows(a, b):
                break
            secant = over(a * slope_b - b * slope_a, slope_b - slope_a)
            parabola = a - over(slope_a * gap * gap, 2 * (value - value_a - slope_a * gap))
            inside = where(high, smaller(parabola, (a + b) / 2), secant)
            # bisect where the interval does not get shorter by a third
            fits = (inside > a + 0.05 * gap) & (inside < b - 0.05 * gap) & (high | (gap <= 0.66 * width))
            open_ended = b == math.inf
            width = where(open_ended, width, gap)
            c = where(open_ended, self.expand * c, where(fits, inside, (a + b) / 2))
        return trials.end()
