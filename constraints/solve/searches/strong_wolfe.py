"""The strong Wolfe conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..options import check_between, check_count
from ..space import Numbers
from .line import Found, Line, LineSearch


@dataclass(frozen=True, repr=False)
class StrongWolfe(LineSearch):
    """phi(t) <= phi(0) + decrease t phi'(0) and |phi'(t)| <= curvature |phi'(0)|, by cubics on a shrinking interval.

    Where these are not met within `limit` trials, the best point with a decrease is taken; slack eps |phi(0)| is
    allowed for rounding. Raises ValueError for options out of range.
    Source: Nocedal & Wright, Numerical Optimization (2006), algorithms 3.5 and 3.6, and (3.59).
    """

    decrease: float = 1e-4
    curvature: float = 0.9
    slack: float = 10.0
    limit: int = 25

    def __post_init__(self) -> None:
        check_between(self, 0, 1, decrease=self.decrease)
        check_between(self, self.decrease, 1, curvature=self.curvature)
        check_count(self, limit=self.limit)

    def search(self, line: Line, first: Numbers) -> Found:
        found, best = Found.none(line), Found.none(line)
        allowance = line.allowance(self.slack)
        t, active = first, line.active
        # low: the end with the lowest value; high: the other one, infinite before there is one
        low, value_low, slope_low = torch.zeros_like(t), line.value, line.slope
        high, value_high, slope_high = torch.full_like(t, math.inf), torch.full_like(t, math.nan), torch.zeros_like(t)
        for _ in range(self.limit):
            trial = line.at(t, active)
            value, slope = trial.value, trial.slope()
            enough = value <= line.value + self.decrease * t * line.slope + allowance
            taken = active & enough & (slope.abs() <= -self.curvature * line.slope)
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
            # NaN is no better than low
            worse = ~(enough & (value <= value_low + allowance))
            turned = ~worse & (slope * (high - low) >= 0)
            high, value_high, slope_high = (
                torch.where(worse, t, torch.where(turned, low, high)),
                torch.where(worse, value, torch.where(turned, value_low, value_high)),
                torch.where(worse, slope, torch.where(turned, slope_low, slope_high)),
            )
            low, value_low, slope_low = (
                torch.where(worse, low, t), torch.where(worse, value_low, value), torch.where(worse, slope_low, slope),
            )  # fmt: skip
            cubic = _cubic(low, value_low, slope_low, high, value_high, slope_high)
            margin = 0.1 * (high - low).abs()
            fits = (cubic > torch.minimum(low, high) + margin) & (cubic < torch.maximum(low, high) - margin)
            t = torch.where(high.isinf(), 4 * t, torch.where(fits, cubic, (low + high) / 2))
        found.take(best, active & best.done)
        return found


def _cubic(a: Numbers, value_a: Numbers, slope_a: Numbers, b: Numbers, value_b: Numbers, slope_b: Numbers) -> Numbers:
    """Where the cubic with these values and slopes at a and b is least; NaN where nowhere."""
    one = slope_a + slope_b - 3 * (value_a - value_b) / (a - b)
    two = torch.sign(b - a) * (one * one - slope_a * slope_b).sqrt()
    return b - (b - a) * (slope_b + two - one) / (slope_b - slope_a + 2 * two)
