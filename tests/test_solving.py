"""The table of solvers beside pymanopt's: its problems are what they say, and its verdicts follow from its rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.solving.__main__ import ours
from benchmarks.solving.problem import Problem
from benchmarks.solving.problems import problems
from benchmarks.solving.tables import BEGIN, END, Row, first, table, verdict, write
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
    assert table(rows).count("\n") == len(rows) + 2
    assert "on 2 of 4; not on the b, the d." in verdict(rows)


def test_the_page_shows_what_was_measured_last(tmp_path: Path) -> None:
    """Problems that are measured anew take the place of their old rows; the rest of the page is left."""
    page = tmp_path / "solve.md"
    page.write_text(f"before\n\n{BEGIN}\n{END}\n\nafter\n")
    write(tmp_path, [row("b", "LBFGS", 5, 7, 0.2), row("b", "pymanopt CG", 3, 9, 0.4)], ["a", "b"])
    write(tmp_path, [row("a", "LBFGS", 5, 3, 0.1)], ["a", "b"])
    write(tmp_path, [row("b", "LBFGS", 5, 8, 0.3)], ["a", "b"])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    lines = [line for line in text.splitlines() if line.startswith("| the")]
    assert lines == ["| the a |  |  | 3, 100 |  |  |", "| the b |  |  | 8, 300 |  |  |"]
    assert len(json.loads((tmp_path / "solving.json").read_text())) == 2
    assert "on 2 of 2." in text


def test_the_page_has_a_place_for_it() -> None:
    text = (Path(__file__).parent.parent / "docs" / "solve.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
