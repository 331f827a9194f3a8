"""How soon a problem is solved: steps and seconds, the learning rate of each engine tuned on one grid."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from .results import Verdict
from .timing import why

RATES = (1e-1, 3e-2, 3e-1, 1e-2, 1.0, 3.0)
"""The grid, most likely first: a rate is given up once it needs more steps than the best so far."""

OURS = "ours, Riemannian"
PEERS = ("geoopt", "POGO")


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
    """attempts: for each engine a function of the learning rate that makes a fresh attempt; limit: most steps;
    apart: solvers without a learning rate, which run whole."""

    name: str
    title: str
    goal: float
    limit: int
    look_every: int
    attempts: Mapping[str, Callable[[float], Attempt]]
    apart: Callable[[], list[Solved]] = list


def tune(problem: Problem, engine: str) -> Solved:
    """The rate that needs the fewest steps; seconds are still missing."""
    best = Solved(problem.name, engine, None, None, None, None)
    for lr in RATES:
        try:
            attempt = problem.attempts[engine](lr)
            steps, gap = _steps_to(problem, attempt, problem.limit if best.steps is None else best.steps)
        except Exception as error:
            return best if best.steps is not None else replace(best, cannot=why(error))
        if gap <= problem.goal and (best.steps is None or steps < best.steps):
            best = replace(best, lr=lr, steps=steps, gap=gap)
        elif best.steps is None and (best.gap is None or not gap >= best.gap):
            best = replace(best, gap=gap)
    return best


def _steps_to(problem: Problem, attempt: Attempt, limit: int) -> tuple[int, float]:
    gap = math.inf
    for done in range(1, limit + 1):
        attempt.step()
        if done % problem.look_every == 0:
            gap = attempt.gap()
            if gap <= problem.goal or math.isnan(gap):
                return done, gap
    return limit, gap


def solve(
    problem: Problem, tick: Callable[[str], None], clock: Callable[[], float] = time.perf_counter
) -> list[Solved]:
    """Each engine tuned alone, then all of them once more at their best rates, step by step in turn, and timed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = []
        for engine in problem.attempts:
            tick(f"quality: {problem.name}, {engine}")
            found.append(tune(problem, engine))
        racing = {s.engine: s.steps for s in found if s.steps is not None and s.lr is not None}
        attempts = {s.engine: problem.attempts[s.engine](s.lr) for s in found if s.lr is not None}
        seconds = dict.fromkeys(racing, 0.0)
        for done in range(max(racing.values(), default=0)):
            for engine, steps in racing.items():
                if done < steps:
                    begin = clock()
                    attempts[engine].step()
                    seconds[engine] += clock() - begin
        apart = problem.apart()
    return [replace(s, seconds=seconds.get(s.engine)) for s in found] + apart


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
