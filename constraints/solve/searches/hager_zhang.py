"""The line search of CG_DESCENT."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..numbers import Number, Truth, full, no, over, smaller, where
from ..options import check_between, check_count, check_least
from .line import Kept, Line, LineSearch, Trial


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

    def begin(self, line: Line, first: Number) -> Kept:
        # a: the lower end, where f falls and is low; b: the upper end, infinite before there is one
        zero, infinite = full(first, 0.0), full(first, math.inf)
        lower = {"a": zero, "value_a": line.value, "slope_a": line.slope}
        return {"t": first, **lower, "b": infinite, "slope_b": full(first, math.nan), "width": infinite}

    def accepts(self, line: Line, trial: Trial) -> Truth:
        value, slope = trial.numbers()
        flat_enough = slope >= self.sigma * line.slope
        wolfe = value <= line.value + self.delta * trial.t * line.slope
        return flat_enough & (wolfe | (self._is_low(line, value) & (slope <= (2 * self.delta - 1) * line.slope)))

    def _is_low(self, line: Line, value: Number) -> Truth:
        return value <= line.value + line.allowance(self.slack)

    def narrowed(self, line: Line, trial: Trial, kept: Kept) -> tuple[Kept, Number, Number]:
        (value, slope), (c, a, value_a, slope_a, b, slope_b, width) = trial.numbers(), kept.values()
        up, falls = slope >= 0, self._is_low(line, value) & (slope < 0)
        high = no(up | falls)  # too high, or NaN
        a, value_a, slope_a = where(falls, c, a), where(falls, value, value_a), where(falls, slope, slope_a)
        b = where(falls, b, c)
        slope_b = where(up, slope, where(high, math.nan, slope_b))
        gap = b - a
        secant = over(a * slope_b - b * slope_a, slope_b - slope_a)
        parabola = a - over(slope_a * gap * gap, 2 * (value - value_a - slope_a * gap))
        inside = where(high, smaller(parabola, (a + b) / 2), secant)
        # bisect where the interval does not get shorter by a third
        fits = (inside > a + 0.05 * gap) & (inside < b - 0.05 * gap) & (high | (gap <= 0.66 * width))
        open_ended = b == math.inf
        width = where(open_ended, width, gap)
        t = where(open_ended, self.expand * c, where(fits, inside, (a + b) / 2))
        lower = {"a": a, "value_a": value_a, "slope_a": slope_a}
        return {"t": t, **lower, "b": b, "slope_b": slope_b, "width": width}, a, b
