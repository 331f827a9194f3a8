"""The line search of CG_DESCENT."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..options import check_between, check_count
from ..space import Numbers
from .line import Found, Line, LineSearch


@dataclass(frozen=True, repr=False)
class HagerZhang(LineSearch):
    """Wolfe or approximate Wolfe conditions, by secants on an interval that brackets a minimum.

    t is taken with phi(t) <= phi(0) + delta t phi'(0) and phi'(t) >= sigma phi'(0); or, where rounding hides the
    decrease, with phi(t) <= phi(0) + slack eps |phi(0)| and sigma phi'(0) <= phi'(t) <= (2 delta - 1) phi'(0).
    Where neither is met within `limit` trials, the best point with a decrease is taken.
    Raises ValueError for options out of range.
    Source: Hager & Zhang, Algorithm 851: CG_DESCENT (2006), section 3; Sato (2022) on manifolds.
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

    def search(self, line: Line, first: Numbers) -> Found:
        found, best = Found.none(line), Found.none(line)
        highest = line.value + line.allowance(self.slack)
        c, active = first, line.active
        # a: the lower end, where f falls and is low; b: the upper end, infinite before there is one
        a, value_a, slope_a = torch.zeros_like(c), line.value, line.slope
        b, slope_b, width = torch.full_like(c, math.inf), torch.full_like(c, math.nan), torch.full_like(c, math.inf)
        for _ in range(self.limit):
            trial = line.at(c, active)
            value, slope = trial.value, trial.slope()
            flat_enough = slope >= self.sigma * line.slope
            wolfe = flat_enough & (value <= line.value + self.delta * c * line.slope)
            low = value <= highest
            taken = active & (wolfe | (flat_enough & low & (slope <= (2 * self.delta - 1) * line.slope)))
            if bool(taken.any()):
                found.take(trial, taken)
                active = active & ~taken
            if not bool(active.any()):
                return found
            better = active & (value < best.value)
            if bool(better.any()):
                best.take(trial, better)
            if line.problem.out_of_time():
                break
            up, falls = slope >= 0, low & (slope < 0)
            high = ~up & ~falls  # too high, or NaN
            a, value_a, slope_a = (
                torch.where(falls, c, a), torch.where(falls, value, value_a), torch.where(falls, slope, slope_a),
            )  # fmt: skip
            b = torch.where(up | high, c, b)
            slope_b = torch.where(up, slope, torch.where(high, torch.nan, slope_b))
            secant = (a * slope_b - b * slope_a) / (slope_b - slope_a)
            parabola = a - slope_a * (b - a).square() / (2 * (value - value_a - slope_a * (b - a)))
            inside = torch.where(high, torch.minimum(parabola, (a + b) / 2), secant)
            # bisect where an end repeats itself, or the interval does not get shorter
            slow = (b - a) > 0.66 * width
            fits = (inside > a + 0.05 * (b - a)) & (inside < b - 0.05 * (b - a)) & ~(slow & ~high)
            width = torch.where(b.isinf(), width, b - a)
            c = torch.where(b.isinf(), self.expand * c, torch.where(fits, inside, (a + b) / 2))
        found.take(best, active & best.done)
        return found
