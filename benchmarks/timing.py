"""Contestants timed in turn, so that all of them see the same load of the machine."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Contestant:
    """One library on one job. step: one unit of the work; points: its orthonormal matrices now, (..., n, p)."""

    step: Callable[[], object]
    points: Callable[[], Sequence[Tensor]] = tuple


Builder = Callable[[], Contestant]


@dataclass(frozen=True)
class Budget:
    """How long to measure: at least `rounds` rounds and `seconds` seconds in all.

    A contestant that has used up `longest` seconds sits out once it has been timed `fewest` times, so that one which
    needs seconds for a step does not hold up the others.
    """

    warm: int = 3
    rounds: int = 15
    seconds: float = 4.0
    longest: float = 6.0
    fewest: int = 2


@dataclass
class Outcome:
    """What was measured of one contestant: seconds of each call, max|Q^H Q - I| afterwards, or why it cannot."""

    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    cannot: str | None = None
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        return self.quantile(0.5)

    def quantile(self, q: float) -> float:
        """The sample quantile, linear between neighbours; NaN if nothing was measured."""
        return torch.tensor(self.seconds, dtype=torch.float64).quantile(q).item() if self.seconds else float("nan")


def interleave(
    builders: Mapping[str, Builder],
    budget: Budget,
    *,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Outcome]:
    """Each contestant built and warmed up, then all of them called once a round, in an order drawn anew each round.

    wait: called before each reading of the clock, to let an accelerator finish. Who raises is left out from there on,
    and its outcome says why.
    """
    outcomes = {name: Outcome() for name in builders}
    running: dict[str, Contestant] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def attempt(name: str, do: Callable[[], object]) -> None:
            try:
                do()
            except Exception as error:
                outcomes[name].cannot = why(error)
                running.pop(name, None)

        def time_once(name: str) -> None:
            wait()
            begin = clock()
            running[name].step()
            wait()
            outcomes[name].seconds.append(clock() - begin)

        def warm_up(name: str) -> None:
            running[name] = builders[name]()
            begin = clock()
            for _ in range(budget.warm):
                running[name].step()
                wait()
                if clock() - begin > budget.longest / 2:
                    break

        for name in builders:
            attempt(name, lambda name=name: warm_up(name))  # type: ignore[misc]
        draw, begin, rounds = random.Random(0), clock(), 0
        while running and (rounds < budget.rounds or clock() - begin < budget.seconds):
            order = [name for name in running if not _is_done(outcomes[name], budget)]
            if not order:
                break
            for name in draw.sample(order, len(order)):
                attempt(name, lambda name=name: time_once(name))  # type: ignore[misc]
            rounds += 1
        for name, contestant in list(running.items()):
            attempt(name, lambda n=name, c=contestant: _look(outcomes[n], c))  # type: ignore[misc]
    return outcomes


def _is_done(outcome: Outcome, budget: Budget) -> bool:
    return len(outcome.seconds) >= budget.fewest and sum(outcome.seconds) > budget.longest


def _look(outcome: Outcome, contestant: Contestant) -> None:
    points = contestant.points()
    outcome.error = infeasibility(points) if points else None


@torch.no_grad()
def infeasibility(points: Sequence[Tensor]) -> float:
    """max |Q^H Q - I| over all matrices (..., n, p), in double precision; Q Q^H for n < p. NaN where there is any."""
    worst = []
    for point in points:
        q = point.detach().to(torch.complex128 if point.is_complex() else torch.float64)
        gram = q.mH @ q if q.shape[-2] >= q.shape[-1] else q @ q.mH
        worst.append((gram - torch.eye(gram.shape[-1], dtype=q.dtype, device=q.device)).abs().max())
    return torch.stack(worst).max().item()  # max passes NaN on


def why(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, ImportError):
        return "not installed"
    text = str(error).strip()
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return "out of memory"
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}"[:120]
