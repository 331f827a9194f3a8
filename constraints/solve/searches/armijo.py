"""Backtracking."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..options import check_between, check_count
from ..space import Numbers
from .line import Found, Line, LineSearch


@dataclass(frozen=True, repr=False)
class Armijo(LineSearch):
    """Shorter and shorter t, until phi(t) <= phi(0) + decrease t phi'(0) + slack eps |phi(0)|.

    The next t is where the parabola through phi(0), phi'(0) and phi(t) is least, but within [0.1, 0.5] t. The gradient
    is taken at the end only. Raises ValueError for options out of range.
    Source: Armijo (1966); Nocedal & Wright, Numerical Optimization (2006), section 3.5.
    """

    decrease: float = 1e-4
    slack: float = 10.0
    limit: int = 40

    def __post_init__(self) -> None:
        check_between(self, 0, 1, decrease=self.decrease)
        check_count(self, limit=self.limit)

    def search(self, line: Line, first: Numbers) -> Found:
        found, t, active = Found.none(line), first, line.active
        allowed = line.value + line.allowance(self.slack)
        for _ in range(self.limit):
            trial = line.at(t, active)
            taken = active & (trial.value <= allowed + self.decrease * t * line.slope)
            if bool(taken.any()):
                found.take(trial, taken)
                active = active & ~taken
            if not bool(active.any()) or line.problem.out_of_time():
                return found
            least = -line.slope * t * t / (2 * (trial.value - line.value - t * line.slope))
            # NaN stays NaN in clamp
            least = torch.where(least > 0.1 * t, least.clamp_max(0.5 * t), 0.1 * t)
            t = torch.where(trial.value.isfinite(), least, 0.25 * t)
        return found
