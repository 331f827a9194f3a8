"""The table of solvers beside pymanopt's: its problems are what they say, and its verdicts follow from its rows."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.solving.__main__ import Row, first, ours, table
from benchmarks.solving.problem import Problem
from benchmarks.solving.problems import problems
from constraints import LBFGS

PROBLEMS = problems()


def row(problem: str, solver: str, solved: int, steps: float, seconds: float) -> Row:
    return Row(problem, f"the {problem}", solver, solved, steps, seconds, 1.0, 1e-7, 0.0)


def test_there_are_twenty_and_each_has_a_name_of_its_own() -> None:
    assert len(PROBLEMS) >= 20
    assert len({problem.name for problem in PROBLEMS}) == len({p.title for p in PROBLEMS}) == len(PROBLEMS)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_a_problem_is_smooth_at_its_start(problem: Problem) -> None:
    starts = [x.requires_grad_() for x in problem.starts(0)]
    value = problem.f(*starts)
    assert value.shape == ()
    assert math.isfinite(value.item())
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in torch.autograd.grad(value, starts))
    assert all(bool(m.contains(x.detach()).all()) for m, x in zip(problem.manifolds, starts, strict=True))
    assert len(problem.peers) == len(problem.manifolds) == len(problem.shapes)


def test_ours_is_measured() -> None:
    attempt = ours(next(p for p in PROBLEMS if p.name == "pca"), LBFGS(), 0)
    assert attempt.norm <= 1e-6
    assert 0 < attempt.steps <= attempt.evaluations


def test_who_solves_fewer_starts_is_not_first() -> None:
    rows = [
        row("a", "TrustRegion", 5, 10, 1.0), row("a", "pymanopt TR", 5, 12, 0.5), row("a", "pymanopt CG", 4, 1, 0.1),
        row("b", "TrustRegion", 4, 1, 0.1), row("b", "pymanopt TR", 5, 12, 0.5),
        row("c", "LBFGS", 5, 20, 0.4), row("c", "pymanopt TR", 5, 12, 0.5),
        row("d", "LBFGS", 5, 20, 0.6), row("d", "pymanopt TR", 5, 12, 0.5),
    ]  # fmt: skip
    assert first(rows) == (["a", "c"], ["b", "d"])
    assert table(rows, 5).count("\n") == len(rows) + 2
