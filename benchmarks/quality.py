"""How soon a problem is solved: steps and seconds, the learning rate of each engine tuned on one grid."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from .results import Verdict
from .timing import Budget, Contestant, interleave, why

RATES = (1e-1, 3e-2, 3e-1, 1e-2, 1.0, 3e-3, 1e-3, 3e-4, 3.0, 10.0)
"""The grid, most likely first: a rate is given up once it needs more steps than the best so far."""

QUICK_LIMIT = 20
OURS = "ours, Riemannian"
PEERS = ("geoopt", "POGO")


Clock = Callable[[], float]


class Attempt(Protocol):
    """One engine on one problem at one learning rate, at its start."""

    def step(self) -> None:
        """One training step, forward pass to optimizer."""

    def gap(self) -> float:
        """How far from solved: solved at the problem's `goal`."""


@dataclass(frozen=True)
class Solved:
    """The best learning rate of one engine, and what it took; steps and seconds are None if no rate got there."""

    problem: str
    engine: str
    lr: float | None
    steps: int | None
    seconds: float | None
    gap: float | None
    cannot: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "gap": self.gap if self.gap is None or math.isfinite(self.gap) else "nan"}


@dataclass(frozen=True)
class Problem:
    """attempts: for each engine a function of the learning rate and a seed that makes a fresh attempt; limit: most
    steps; apart: solvers without a learning rate, which run whole."""

    name: str
    title: str
    goal: float
    limit: int
    look_every: int
    attempts: Mapping[str, Callable[[float, int], Attempt]]
    apart: Callable[[Clock], list[Solved]] = lambda _: []
    seeds: int = 1


def tune(problem: Problem, engine: str) -> Solved:
    """The rate that needs the fewest steps, in the mean over the seeds; seconds are still missing."""
    best, failure = Solved(problem.name, engine, None, None, None, None), None
    for lr in RATES:
        limit = problem.limit * problem.seeds if best.steps is None else best.steps * problem.seeds
        try:
            steps, gap = _steps_to(problem, engine, lr, limit)
        except Exception as error:  # at this rate, such as a point that left for infinity; others may do
            failure = why(error)
            continue
        if gap <= problem.goal and (best.steps is None or steps < best.steps):
            best = replace(best, lr=lr, steps=steps, gap=gap)
        elif best.steps is None and (best.gap is None or not gap >= best.gap):
            best = replace(best, gap=gap)
    return replace(best, cannot=failure) if best.gap is None else best


def _steps_to(problem: Problem, engine: str, lr: float, limit: int) -> tuple[int, float]:
    """Mean steps and worst gap over the seeds; it stops at the first that does not get there within the limit."""
    total, worst = 0, 0.0
    for seed in range(problem.seeds):
        attempt, gap = problem.attempts[engine](lr, seed), math.inf
        for done in range(1, min(problem.limit, limit - total) + 1):
            attempt.step()
            if done % problem.look_every == 0:
                gap = attempt.gap()
                if gap <= problem.goal or math.isnan(gap):
                    total += done
                    break
        if not gap <= problem.goal:
            return problem.limit, gap
        worst = max(worst, gap)
    return round(total / problem.seeds), worst


def solve(problem: Problem, tick: Callable[[str], None], clock: Clock = time.perf_counter) -> list[Solved]:
    """Each engine tuned alone, then 50 steps of all at their best rates in turn: seconds are steps times the median."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for engine in problem.attempts:
            tick(f"quality: {problem.name}, {engine}")
            found.append(tune(problem, engine))
        apart = problem.apart(clock)
    racing = {s.engine: s.lr for s in found if s.lr is not None}
    builders = {name: _racer(problem, name, lr) for name, lr in racing.items()}
    budget = Budget(rounds=3 if problem.limit <= QUICK_LIMIT else 50, seconds=0.0)
    medians = {name: o.median for name, o in interleave(builders, budget, clock=clock).items() if o.seconds}
    timed = [s if s.steps is None else replace(s, seconds=s.steps * medians[s.engine]) for s in found]
    return timed + apart


def _racer(problem: Problem, engine: str, lr: float) -> Callable[[], Contestant]:
    return lambda: Contestant(problem.attempts[engine](lr, 0).step)


def verdicts(problem: Problem, found: list[Solved]) -> list[Verdict]:
    """RiemannianAdam needs no more steps than the best optimizer among the peers, to a tenth, and no more seconds."""
    by_name = {solved.engine: solved for solved in found}
    mine = by_name[OURS]
    judged = []
    for what in ("steps", "seconds"):
        rivals = {name: getattr(by_name[name], what) for name in PEERS if name in by_name}
        rivals = {name: value for name, value in rivals.items() if value is not None}
        target = f"≤ 1.1x the {what}"
        if not rivals:
            judged.append(Verdict(f"{problem.name}: no peer got there", target, 1.0, None, None))
            continue
        best = min(rivals, key=lambda name: rivals[name])
        own = getattr(mine, what)
        ratio = None if own is None else own / rivals[best]
        judged.append(
            Verdict(f"{problem.name}: {OURS} / {best}", target, 1.0, ratio, ratio is not None and ratio <= 1.1)
        )
    return judged
