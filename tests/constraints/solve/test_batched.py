"""Problems of a batch: each is solved as it is alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from constraints import minimize
from constraints.solve import (
    LBFGS,
    Armijo,
    ConjugateGradient,
    GradientDescent,
    HagerZhang,
    LineSearch,
    Solver,
    StrongWolfe,
    TrustRegion,
    betas,
    hessians,
)
from manifolds import Euclidean, Grassmann, SpecialOrthogonal, Sphere, Stiefel
from tests.sets import EVERY

F64 = torch.float64


def by_numbers(change: betas.Change) -> betas.Terms:
    """A rule whose other terms are numbers of Python."""
    return betas.Terms(betas.polak_ribiere(change))


SOLVERS: list[Solver] = [
    TrustRegion(),
    TrustRegion(hessian=hessians.pullback),
    LBFGS(),
    LBFGS(search=StrongWolfe()),
    ConjugateGradient(),
    ConjugateGradient(search=Armijo()),
    ConjugateGradient(beta=by_numbers),
    GradientDescent(),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_each_problem_is_solved_as_alone(solver: Solver) -> None:
    """Eigenproblems of different scale and difficulty: each takes the steps that it takes alone, to the same point."""
    c = torch.randn(5, 8, 8, dtype=F64)
    c = (c + c.mT) * torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0], dtype=F64)[:, None, None]
    x0 = Stiefel().random(5, 8, 2, dtype=F64)
    together = minimize(
        lambda x: -(x * (c @ x)).sum((1, 2)), x0, Stiefel, solver=solver, batched=True, tol=1e-7, max_steps=3000
    )
    assert together.converged.tolist() == [True] * 5
    best = -torch.linalg.eigvalsh(c)[:, -2:].sum(1)
    torch.testing.assert_close(together.value, best, rtol=1e-10, atol=1e-10)
    steps = []
    for i in range(5):
        alone = minimize(
            lambda x, c=c[i]: -(x * (c @ x)).sum(), x0[i], Stiefel, solver=solver, tol=1e-7, max_steps=3000
        )
        assert alone.converged
        assert abs(alone.value - together.value[i].item()) < 1e-10
        steps.append(alone.steps)
    # rounding of a batched product may differ, and after some steps a decision with it
    assert all(abs(a - b) <= max(2, 0.5 * a) for a, b in zip(steps, together.steps.tolist(), strict=True))


def clouds(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of clouds of different noise, and random rotations to start from."""
    points = torch.randn(count, 10, 3, dtype=F64)
    noise = torch.logspace(-3, 1, count, dtype=F64)[:, None, None]
    seen = points @ SpecialOrthogonal().random(count, 3, 3, dtype=F64) + noise * torch.randn_like(points)
    return points, seen, SpecialOrthogonal().random(count, 3, 3, dtype=F64)


SEARCHING: list[Solver] = [
    LBFGS(),
    LBFGS(search=HagerZhang()),
    ConjugateGradient(),
    ConjugateGradient(beta=betas.polak_ribiere, search=StrongWolfe(curvature=0.3)),
]


@pytest.mark.parametrize("solver", SEARCHING, ids=repr)
def test_no_problem_waits_for_the_searches_of_others(solver: Solver) -> None:
    """f is called as often as the slowest problem alone calls it, and not in each step as often as the slowest search:
    the sum over steps of the largest number of trials."""
    points, seen, x0 = clouds(60)
    calls: list[list[int]] = []
    for p, s, x in zip(points, seen, x0, strict=True):
        counts = [0]

        def f(x: Tensor, p: Tensor = p, s: Tensor = s, counts: list[int] = counts) -> Tensor:
            counts[-1] += 1
            return (p @ x - s).square().sum()

        found = minimize(
            f, x, SpecialOrthogonal, solver=solver, max_steps=1000,
            callback=lambda point, counts=counts: counts.append(0),
        )  # fmt: skip
        assert found.converged
        calls.append(counts)
    together = minimize(
        lambda x: (points @ x - seen).square().sum((1, 2)), x0, SpecialOrthogonal, solver=solver, batched=True,
        max_steps=1000,
    )  # fmt: skip
    assert together.converged.all()
    slowest = max(map(sum, calls))
    in_step = sum(map(max, itertools.zip_longest(*calls, fillvalue=0)))
    assert in_step >= slowest + 6  # else there is nothing to wait for
    # rounding of a batched product may differ, and near the end a decision with it
    assert together.evaluations.values <= (slowest + in_step) / 2


@pytest.mark.parametrize("search", [StrongWolfe(), HagerZhang(), Armijo()], ids=repr)
@pytest.mark.parametrize("kind", [LBFGS, ConjugateGradient, GradientDescent])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_after_some_steps_each_problem_is_where_it_is_alone(kind: Any, search: LineSearch, steps: int) -> None:
    """max_steps are those of each problem, and a search that was left and resumed ends where one at a stretch does."""
    points, seen, x0 = clouds(12)
    solver = kind(search=search)
    together = minimize(
        lambda x: (points @ x - seen).square().sum((1, 2)), x0, SpecialOrthogonal, solver=solver, batched=True,
        max_steps=steps,
    )  # fmt: skip
    assert together.steps.max() == steps
    for i in range(12):
        alone = minimize(
            lambda x, i=i: (points[i] @ x - seen[i]).square().sum(), x0[i], SpecialOrthogonal, solver=solver,
            max_steps=steps,
        )  # fmt: skip
        assert (alone.steps, alone.converged) == (together.steps[i], together.converged[i])
        # each step may enlarge rounding by the condition of the problem
        torch.testing.assert_close(together.x[i], alone.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", [TrustRegion(), LBFGS(), ConjugateGradient(), GradientDescent()], ids=repr)
def test_one_problem_that_fails_leaves_the_others_alone(solver: Solver) -> None:
    c = torch.randn(4, 6, 6, dtype=F64)
    c = c + c.mT
    c[2] = torch.nan
    x0 = Sphere().random(4, 6, dtype=F64)
    found = minimize(
        lambda x: torch.einsum("bi,bij,bj->b", x, c, x), x0, Sphere, solver=solver, batched=True, max_steps=5000
    )
    assert found.converged.tolist() == [True, True, False, True]
    assert "3 of 4 converged" in found.reason
    assert "1 of 4 not converged: the value or the gradient of f is NaN" in found.reason
    assert torch.equal(found.x[2], x0[2])
    good = [0, 1, 3]
    torch.testing.assert_close(found.value[good], torch.linalg.eigvalsh(c[good])[:, 0], rtol=0, atol=1e-9)


def test_a_solved_problem_stays_where_it_is() -> None:
    c = torch.randn(3, 6, 6, dtype=F64)
    c = c + c.mT
    x0 = Sphere().random(3, 6, dtype=F64)
    x0[0] = torch.linalg.eigh(c[0])[1][:, 0]
    found = minimize(lambda x: torch.einsum("bi,bij,bj->b", x, c, x), x0, Sphere, batched=True)
    assert found.converged.all()
    assert found.steps[0] == 0
    assert torch.equal(found.x[0], x0[0])


def test_many_rotations_at_once() -> None:
    """Absolute orientation of 2000 pairs of clouds, against the closed form."""
    points = torch.randn(2000, 10, 3, dtype=F64)
    seen = points @ SpecialOrthogonal().random(2000, 3, 3, dtype=F64) + 0.1 * torch.randn_like(points)
    found = minimize(
        lambda x: (points @ x - seen).square().sum((1, 2)),
        torch.eye(3, dtype=F64).repeat(2000, 1, 1),
        SpecialOrthogonal,
        batched=True,
        starts=3,
    )
    w, s, vh = torch.linalg.svd(points.mT @ seen)
    s[:, -1] *= torch.linalg.det(w @ vh).sign()
    best = points.square().sum((1, 2)) + seen.square().sum((1, 2)) - 2 * s.sum(1)
    assert found.converged.all()
    assert found.values_of_starts is not None
    assert found.values_of_starts.shape == (3, 2000)
    torch.testing.assert_close(found.value, best, rtol=1e-9, atol=1e-9)


def test_starts_run_as_a_batch_where_f_allows_it_and_one_by_one_where_not() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return (x.square() - 1).square().sum() + 0.1 * x.sum()

    def looks(x: Tensor) -> Tensor:
        assert bool(x.isfinite().all())
        return f(x)

    x0 = torch.zeros(3, dtype=F64) + 0.1
    generator = torch.Generator().manual_seed(0)
    for function in (f, looks):
        found = minimize(function, x0, Euclidean, starts=6, generator=generator)
        assert found.converged
        assert found.x.shape == (3,)
        assert found.values_of_starts is not None
        assert found.values_of_starts.shape == (6,)
        assert found.value == found.values_of_starts.min()
        # each start is a point of f, whether f is mapped over them or not
        assert set(seen) == {(3,)}


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_complex_and_dict_problems_in_a_batch(solver: Solver) -> None:
    a = torch.randn(3, 5, 4, dtype=torch.complex128)

    def f(p: dict[str, Tensor]) -> Tensor:
        return -torch.einsum("bi,bij,bj->b", p["u"].conj(), a, p["v"]).real

    found = minimize(
        f, {"u": (3, 5), "v": (3, 4)}, {"u": Sphere, "v": Sphere}, solver=solver, batched=True, dtype=a.dtype,
        max_steps=2000,
    )  # fmt: skip
    assert found.converged.all()
    torch.testing.assert_close(-found.value, torch.linalg.svdvals(a)[:, 0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", [TrustRegion, LBFGS, ConjugateGradient, GradientDescent])
@pytest.mark.parametrize("starts", [1, 3])
@pytest.mark.parametrize("manifold", [*EVERY, Stiefel("canonical"), Sphere() * Euclidean(ndim=1)], ids=str)
def test_of_no_problems_there_is_an_empty_answer(manifold: Any, starts: int, kind: Any) -> None:
    """As of a batch of which nothing is left; with its shapes, as another batch has."""

    def f(x: Tensor) -> Tensor:
        return x.pow(4).flatten(1).sum(1)

    shape = (4, 2) if isinstance(manifold, Grassmann) else (4, 4)[-max(manifold.ndim, 1) :]
    none, two = (
        minimize(f, (count, *shape), manifold, solver=kind(), batched=True, starts=starts, max_steps=2, dtype=F64)
        for count in (0, 2)
    )
    for name in ("x", "value", "steps", "converged", "gradient_norm", "determinants", "values_of_starts"):
        empty, full = getattr(none, name), getattr(two, name)
        if full is None:
            assert empty is None
        else:
            axis = int(name == "values_of_starts")
            assert empty.dtype == full.dtype
            assert tuple(empty.shape) == (*full.shape[:axis], 0, *full.shape[axis + 1 :])
    assert none.reason == "There are no problems."
    assert repr(none)
