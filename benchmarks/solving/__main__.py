"""`python -m benchmarks.solving`: iterations, seconds, evaluations and gradient norms beside pymanopt's."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from constraints import LBFGS, ConjugateGradient, TrustRegion, minimize
from constraints.solve import Solver

from .problem import Problem
from .problems import problems
from .tables import Row, table, verdict, write

OURS: dict[str, Solver] = {"TrustRegion": TrustRegion(), "LBFGS": LBFGS(), "ConjugateGradient": ConjugateGradient()}
PEERS = {"pymanopt TR": "TrustRegions", "pymanopt CG": "ConjugateGradient"}
TOL, LIMIT = 1e-6, 2000
ROUNDS, QUICK = 5, 0.2
"""How often a solver goes from one start, if it took at most so many seconds: a run of 8 ms may be off by a tenth."""


@dataclass
class Attempt:
    steps: int
    seconds: float
    evaluations: int
    norm: float
    value: float


def ours(problem: Problem, solver: Solver, seed: int) -> Attempt:
    """minimize, from the start of this seed."""
    starts = problem.starts(seed)
    names = [str(i) for i in range(len(starts))]
    if len(starts) == 1:
        arguments: tuple[Any, ...] = (problem.f, starts[0], problem.manifolds[0])
    else:
        x0, manifolds = dict(zip(names, starts, strict=True)), dict(zip(names, problem.manifolds, strict=True))
        arguments = (lambda p: problem.f(*p.values()), x0, manifolds)
    began = time.process_time()
    found = minimize(*arguments, solver=solver, tol=TOL, max_steps=LIMIT)
    seconds = time.process_time() - began
    counts = found.evaluations
    return Attempt(found.steps, seconds, counts.values + counts.hessians, found.gradient_norm, found.value)


def theirs(problem: Problem, optimizer: str, seed: int) -> Attempt:
    """The optimizer of pymanopt, with the same f by its torch backend."""
    import pymanopt
    from pymanopt import manifolds, optimizers

    parts = [getattr(manifolds, name)(*sizes, **options) for name, sizes, options in problem.peers]
    manifold = parts[0] if len(parts) == 1 else manifolds.Product(parts)
    calls = 0

    def f(*x: Any) -> Any:
        nonlocal calls
        calls += 1
        return problem.f(*x)

    cost = pymanopt.function.pytorch(manifold)(f)
    starts = [x.numpy() for x in problem.starts(seed)]
    start = starts[0] if len(starts) == 1 else starts
    chosen = getattr(optimizers, optimizer)(
        verbosity=0, max_iterations=LIMIT, min_gradient_norm=TOL, min_step_size=0, max_time=60
    )
    began = time.process_time()
    found = chosen.run(pymanopt.Problem(manifold, cost), initial_point=start)
    return Attempt(found.iterations, time.process_time() - began, calls, float(found.gradient_norm), float(found.cost))


def measure(problem: Problem, seeds: int) -> list[Row]:
    """Every solver from every start, in turn, so that all of them see the same load; of quick ones the median time."""
    runs: dict[str, Callable[[int], Attempt]] = {name: partial(ours, problem, s) for name, s in OURS.items()}
    runs |= {name: partial(theirs, problem, optimizer) for name, optimizer in PEERS.items()}
    attempts: dict[str, list[Attempt]] = {name: [] for name in runs}
    cannot: dict[str, str] = {}
    for seed in range(-1, seeds):  # the first warms up
        taken: dict[str, list[Attempt]] = {name: [] for name in runs}
        for _ in range(ROUNDS if seed >= 0 else 1):
            for name, run in runs.items():
                if name in cannot or (taken[name] and taken[name][0].seconds > QUICK):
                    continue
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        taken[name].append(run(max(seed, 0)))
                except Exception as error:
                    cannot[name] = f"{type(error).__name__}: {error}"[:200]
        for name, each in taken.items():
            if seed >= 0 and each:
                attempts[name].append(replace(each[0], seconds=statistics.median(a.seconds for a in each)))
    return [_row(problem, name, each, cannot.get(name)) for name, each in attempts.items()]


def _row(problem: Problem, name: str, attempts: Sequence[Attempt], cannot: str | None) -> Row:
    if cannot is not None or not attempts:
        nan = float("nan")
        return Row(problem.name, problem.title, name, 0, nan, nan, nan, nan, nan, cannot or "no start")
    count = len(attempts)
    return Row(
        problem.name,
        problem.title,
        name,
        sum(a.norm <= TOL for a in attempts),
        sum(a.steps for a in attempts) / count,
        sum(a.seconds for a in attempts) / count,
        sum(a.evaluations for a in attempts) / count,
        max(a.norm for a in attempts),
        sum(a.value for a in attempts) / count,
        starts=count,
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.solving", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="also write solving.json and solve.md there")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[Row] = []
    known = problems()
    for problem in tqdm([p for p in known if not chosen.only or p.name in chosen.only], desc="solving"):
        rows += measure(problem, chosen.seeds)
        if chosen.docs:  # after each, so that a run that is ended leaves what it has
            write(chosen.docs, rows, [p.name for p in known])
    print(table(rows))
    print(verdict(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
