"""The loop around every solver: when to stop, and what is kept of the way."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple

from torch import Tensor

from .numbers import Number, all_, any_, eps_of, full, is_finite, larger, no, pick, smaller, where
from .problem import Problem
from .result import History
from .solver import Solver, State, start
from .space import Rows

PATIENCE = 30
"""Steps without a smaller value or gradient norm after which rounding is all that moves."""

NOISE = 1e4
"""Values at one point that differ by more than so many eps are not rounding."""

SADDLES = 5
"""How often a solver may leave a point where the gradient vanishes."""


class Why(IntEnum):
    """Why a problem is no longer moved."""

    RUNNING = 0
    CONVERGED = 1
    STUCK = 2
    STALLED = 3
    NOT_FINITE = 4
    STEPS = 5
    SECONDS = 6
    CALLBACK = 7
    RANDOM = 8


class Point(NamedTuple):
    """What a callback is given after every step: it stops the solver by returning True. With several problems step
    counts the rounds of trials that they make at once.

    >>> steps = []
    >>> found = minimize(lambda x: x[0], (3,), Sphere, callback=lambda point: steps.append(point.step))
    >>> steps == list(range(found.steps + 1))
    True
    """

    step: int
    x: Any
    value: Tensor | float
    gradient_norm: Tensor | float
    seconds: float


@dataclass(frozen=True)
class Stops:
    """When to stop, and whom to tell."""

    tol: float
    max_steps: int
    max_seconds: float | None = None
    callback: Callable[[Point], Any] | None = None
    progress: bool = False


class Run(NamedTuple):
    """The last state, how many steps each problem took, and why it stopped, the number of a `Why`."""

    state: State
    steps: Number
    why: Number
    history: History


def run(problem: Problem, solver: Solver, x: Rows, stops: Stops, whole: Callable[[Rows], Any]) -> Run:
    """Steps until every problem has stopped; whole makes of rows what a callback is given."""
    began = time.perf_counter()
    deadline = math.inf if stops.max_seconds is None else began + stops.max_seconds
    problem.out_of_time = (lambda: False) if deadline == math.inf else (lambda: time.perf_counter() > deadline)
    problem.twice, problem.tol = solver.needs_hessian, stops.tol
    state, history, shown = start(problem, x), History(), _Line(stops.progress)
    finite, zero = is_finite(state.value) & is_finite(state.norm), full(state.value, 0.0)
    why, steps, idle = where(finite, zero + Why.RUNNING, zero + Why.NOT_FINITE), zero, zero
    best_value, best_norm, settled = state.value, state.norm, 0
    kept = _Best(state.x, state.value, state.norm)
    try:
        for step in itertools.count():
            running = why == Why.RUNNING
            if any_(met := running & (state.norm <= stops.tol)):
                why, running = where(met, float(Why.CONVERGED), why), running & no(met)
            if not any_(running) and any_(why == Why.CONVERGED) and settled < SADDLES:
                state, left = solver.settle(problem, state, why == Why.CONVERGED)
                why, settled = where(left, float(Why.RUNNING), why), settled + 1
                running = why == Why.RUNNING
            seconds = time.perf_counter() - began
            _record(problem, history, state, seconds)
            shown.show(step, history)
            if stops.callback is not None:
                value, norm = state.value, state.norm
                if problem.space.batched:
                    value, norm = value.squeeze(-1), norm.squeeze(-1)
                if _is_true(stops.callback(Point(step, whole(state.x), value, norm, seconds))):
                    why = where(running, float(Why.CALLBACK), why)
                    break
            tired = running & (steps >= stops.max_steps)
            if any_(tired):
                why, running = where(tired, float(Why.STEPS), why), running & no(tired)
            if not any_(running):
                break
            if problem.out_of_time():
                why = where(running, float(Why.SECONDS), why)
                break
            state = solver.advance(problem, state, running)
            ended = running & state.ended
            steps = where(ended, steps + 1, steps)
            better = (state.value < best_value) | (state.norm < best_norm)
            idle = where(better, 0.0, where(ended, idle + 1, idle))
            best_value, best_norm = smaller(state.value, best_value), smaller(state.norm, best_norm)
            kept = _better(state, kept)
            finite = is_finite(state.norm)
            stuck = state.stuck & (not problem.out_of_time())  # a search may have ended for that
            ends = running & (stuck | (idle >= PATIENCE) | no(finite)) & no(state.norm <= stops.tol)
            if any_(ends):
                stalled = where(stuck, zero + Why.STUCK, zero + Why.STALLED)
                why = where(ends, where(finite, stalled, zero + Why.NOT_FINITE), why)
        lost = (why == Why.STALLED) & (kept.norm < state.norm)
        if any_(lost):
            state = replace(start(problem, pick(lost, kept.x, state.x)), memory=state.memory)
        if any_((why == Why.STALLED) | (why == Why.STUCK)):
            again, size = problem.at(state.x).value, NOISE * eps_of(x.dtype)
            differs = no(abs(again - state.value) <= size * larger(abs(state.value), 1.0))
            why = where(((why == Why.STALLED) | (why == Why.STUCK)) & differs, float(Why.RANDOM), why)
    finally:
        shown.wipe()
    return Run(state, steps, why, history)


class _Best(NamedTuple):
    """The best point so far of every problem."""

    x: Rows
    value: Number
    norm: Number


def _better(state: State, old: _Best) -> _Best:
    """Of each problem the point with the lower value or, where rounding tells them not apart, the smaller gradient."""
    x, value, norm = state.x, state.value, state.norm
    slack = 1e3 * eps_of(x.dtype) * abs(old.value)
    better = (value < old.value - slack) | ((norm < old.norm) & (value <= old.value + slack))
    if all_(better):
        return _Best(x, value, norm)
    if not any_(better):
        return old
    return _Best(where(better, x, old.x), where(better, value, old.value), where(better, norm, old.norm))


def _is_true(said: Any) -> bool:
    """True, of Python, numpy or torch; what else a callback returns means nothing."""
    if said is True:
        return True
    return str(getattr(said, "dtype", "")) in ("bool", "torch.bool") and math.prod(said.shape) == 1 and bool(said)


def sentence(
    problem: Problem, why: Sequence[float], norm: float, steps: int, stops: Stops, curvature: Any = None
) -> str:
    """Why it stopped; with several problems, how many stopped why. norm and steps are those of the only one."""
    if not why:
        return "There are no problems."
    counts = {Why(int(each)): count for each, count in Counter(why).items()}
    if len(why) == 1:
        (kind,) = counts
        part, size = _said(kind, problem, stops), "" if kind == Why.CONVERGED else f" (gradient norm {norm:.1e})"
        if kind == Why.CONVERGED and steps == 0 and not (curvature is not None and curvature > 0):
            size = " already at the start, which may be a saddle: try starts=5, or another one"
        return f"{part[0].upper()}{part[1:]}{size}."
    return "; ".join(f"{count} of {len(why)} {_said(kind, problem, stops)}" for kind, count in counts.items()) + "."


def _said(kind: Why, problem: Problem, stops: Stops) -> str:
    text = _SENTENCES[kind].format(tol=stops.tol, steps=stops.max_steps, seconds=stops.max_seconds)
    complaint = problem.space.complaint if kind in (Why.STUCK, Why.NOT_FINITE) else None
    return text if complaint is None else f"{text}; the manifold says of a step: {complaint}"


_SENTENCES = {
    Why.RUNNING: "still running",
    Why.CONVERGED: "converged: the gradient norm is at most {tol:g}",
    Why.STUCK: (
        "not converged: no step along the gradient makes f smaller; f is not smooth there, its gradient is wrong (see "
        "check_gradient), or rounding hides what is left (use float64, or a larger tol)"
    ),
    Why.STALLED: (
        f"not converged: for {PATIENCE} steps neither the value nor the gradient norm got smaller; what is left is "
        "rounding (use float64, or a larger tol), f is not smooth there, or its gradient is wrong (see check_gradient)"
    ),
    Why.NOT_FINITE: "not converged: the value or the gradient of f is NaN or infinite there; start elsewhere",
    Why.STEPS: "not converged: max_steps={steps} reached",
    Why.SECONDS: "not converged: max_seconds={seconds} reached",
    Why.CALLBACK: "stopped by the callback",
    Why.RANDOM: (
        "not converged: f gives another value each time at one point; make it a function, without dropout, batch norm "
        "in training, or new data at each call, as by model.eval()"
    ),
}


def _record(problem: Problem, history: History, state: State, seconds: float) -> None:
    value, norm, length = state.value, state.norm, state.length
    if problem.space.batched:
        # of no problems there is no largest one
        norm, length = (t.max().item() if t.numel() else 0.0 for t in (norm, length))
        value = value.mean().item()
    history.value.append(value)
    history.norm.append(norm)
    history.step.append(length)
    history.seconds.append(seconds)


class _Line:
    """One line on the terminal, renewed ten times a second."""

    def __init__(self, wanted: bool) -> None:
        self._wanted, self._next, self._width = wanted, 0.0, 0

    def show(self, step: int, history: History) -> None:
        if self._wanted and time.monotonic() >= self._next:
            line = f"minimize: step {step}, value {history.value[-1]:.8g}, gradient norm {history.norm[-1]:.1e}"
            sys.stderr.write("\r" + line.ljust(self._width))
            sys.stderr.flush()
            self._next, self._width = time.monotonic() + 0.1, len(line)

    def wipe(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
