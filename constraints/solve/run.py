"""The loop around every solver: when to stop, and what is kept of the way."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .problem import Problem
from .result import History
from .solver import Solver, State, start
from .space import Rows

PATIENCE = 30
"""Steps without a smaller value or gradient norm after which rounding is all that moves."""


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


class Point(NamedTuple):
    """What a callback is given after every step: it stops the solver by returning True."""

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
    """The last state, how many steps each problem took, (B, 1), and why each stopped, (B, 1) of `Why`."""

    state: State
    steps: Tensor
    why: Tensor
    history: History


def run(problem: Problem, solver: Solver, x: Rows, stops: Stops, whole: Callable[[Rows], Any]) -> Run:
    """Steps until every problem has stopped; whole makes of rows what a callback is given."""
    began = time.perf_counter()
    deadline = math.inf if stops.max_seconds is None else began + stops.max_seconds
    problem.out_of_time = (lambda: False) if deadline == math.inf else (lambda: time.perf_counter() > deadline)
    problem.twice, problem.tol = solver.needs_hessian, stops.tol
    state, history, shown = start(problem, x), History(), _Line(stops.progress)
    why = torch.where(torch.isfinite(state.value) & torch.isfinite(state.norm), Why.RUNNING, Why.NOT_FINITE)
    steps, idle = torch.zeros_like(why), torch.zeros_like(why)
    best_value, best_norm = state.value, state.norm
    try:
        for step in range(stops.max_steps + 1):
            why = torch.where((why == Why.RUNNING) & (state.norm <= stops.tol), Why.CONVERGED, why)
            seconds = time.perf_counter() - began
            _record(history, state, seconds)
            shown.show(step, history)
            running = why == Why.RUNNING
            if stops.callback is not None:
                point = Point(step, whole(state.x), *_numbers(problem, state), seconds)
                if stops.callback(point) is True:
                    why = torch.where(running, Why.CALLBACK, why)
                    break
            if not bool(running.any()):
                break
            if step == stops.max_steps or problem.out_of_time():
                why = torch.where(running, Why.STEPS if step == stops.max_steps else Why.SECONDS, why)
                break
            state = solver.advance(problem, state, running)
            steps = steps + running
            better = (state.value < best_value) | (state.norm < best_norm)
            idle = torch.where(better, 0, idle + 1)
            best_value, best_norm = torch.minimum(best_value, state.value), torch.minimum(best_norm, state.norm)
            stopped = state.stuck | (idle >= PATIENCE) | ~torch.isfinite(state.norm)
            if bool(stopped.any()):
                converged = state.norm <= stops.tol
                why = torch.where(running & ~converged & ~torch.isfinite(state.norm), Why.NOT_FINITE, why)
                why = torch.where((why == Why.RUNNING) & ~converged & state.stuck, Why.STUCK, why)
                why = torch.where((why == Why.RUNNING) & ~converged & stopped, Why.STALLED, why)
    finally:
        shown.wipe()
    return Run(state, steps, why, history)


def sentence(problem: Problem, why: Tensor, norm: Tensor, stops: Stops) -> str:
    """Why it stopped; with several problems, how many stopped why."""
    kinds, counts = why.unique(return_counts=True)
    parts = {Why(kind): _said(Why(kind), problem, stops) for kind in kinds.tolist()}
    if why.numel() == 1:
        (kind, part), = parts.items()
        size = "" if kind == Why.CONVERGED else f" (gradient norm {float(norm):.1e})"
        return f"{part[0].upper()}{part[1:]}{size}."
    total = why.numel()
    return "; ".join(f"{n} of {total} {part}" for n, part in zip(counts.tolist(), parts.values(), strict=True)) + "."


def _said(kind: Why, problem: Problem, stops: Stops) -> str:
    text = _SENTENCES[kind].format(tol=stops.tol, steps=stops.max_steps, seconds=stops.max_seconds)
    refused = kind == Why.STUCK and problem.complaint is not None
    return f"{text}; a step was refused: {problem.complaint}" if refused else text


_SENTENCES = {
    Why.RUNNING: "still running",
    Why.CONVERGED: "converged: the gradient norm is at most {tol:g}",
    Why.STUCK: (
        "not converged: no step along the gradient makes f smaller; f is not smooth there, its gradient is wrong (see "
        "check_gradient), or rounding hides what is left (use float64)"
    ),
    Why.STALLED: (
        f"not converged: for {PATIENCE} steps neither the value nor the gradient norm got smaller; what is left is "
        "rounding, or f is not smooth there"
    ),
    Why.NOT_FINITE: "not converged: the value or the gradient of f is NaN or infinite there; start elsewhere",
    Why.STEPS: "not converged: max_steps={steps} reached",
    Why.SECONDS: "not converged: max_seconds={seconds} reached",
    Why.CALLBACK: "stopped by the callback",
}


def _record(history: History, state: State, seconds: float) -> None:
    single = state.value.numel() == 1
    history.value.append(state.value.item() if single else state.value.mean().item())
    history.norm.append(state.norm.item() if single else state.norm.max().item())
    history.step.append(state.length.item() if single else state.length.max().item())
    history.seconds.append(seconds)


def _numbers(problem: Problem, state: State) -> tuple[Tensor | float, Tensor | float]:
    if problem.space.batched:
        return state.value.squeeze(-1), state.norm.squeeze(-1)
    return state.value.item(), state.norm.item()


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
