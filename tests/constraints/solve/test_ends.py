"""Every way in which a solver ends without an answer is said: as an error before it starts, or in the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import constraints
import manifolds
from constraints import Riemannian, Trivialization, constrain, minimize
from constraints.optim import RiemannianLBFGS
from constraints.solve import (
    LBFGS,
    Armijo,
    ConjugateGradient,
    GradientDescent,
    HagerZhang,
    Solver,
    StrongWolfe,
    TrustRegion,
)
from manifolds import Correlation, Euclidean, LowRank, Manifold, Orthogonal, Sphere, Stiefel

F64 = torch.float64
SOLVERS: list[Solver] = [TrustRegion(), LBFGS(), ConjugateGradient(), GradientDescent()]
start = Sphere().random(4, dtype=F64)


def writes(x: Tensor) -> Tensor:
    x[0] = 0
    return x.sum()


def writes_quietly(x: Tensor) -> Tensor:
    with torch.no_grad():
        x.mul_(2)
    return x.sum()


def writes_through_data(x: Tensor) -> Tensor:
    x.data.mul_(2)
    return x.sum()


REFUSED: list[tuple[Callable[[Tensor], Any], type[Exception], str]] = [
    (lambda x: 3.0, TypeError, "returns a tensor"),
    (lambda x: x.detach().sum(), ValueError, "does not depend on x"),
    (lambda x: torch.zeros((), dtype=F64, requires_grad=True) * 1, ValueError, "does not depend on x"),
    (lambda x: x.sum().long(), TypeError, "dtype torch.int64"),
    (lambda x: x.sum() * 1j, TypeError, "real"),
    (lambda x: x, ValueError, r"one number of shape \(\); got shape \(4,\)"),
    (lambda x: x.sum(0, keepdim=True), ValueError, r"got shape \(1,\)"),
    (writes, ValueError, "changes its argument"),
    (writes_quietly, ValueError, "changes its argument"),
    (writes_through_data, ValueError, "changes its argument"),
]  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize(("f", "error", "text"), REFUSED)
def test_what_is_no_function_of_x_is_refused(
    f: Callable[[Tensor], Any], error: type[Exception], text: str, solver: Solver
) -> None:
    with pytest.raises(error, match=text):
        minimize(f, start.clone(), Sphere, solver=solver)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda f: minimize(f, 2 * start, Sphere), ValueError, "is not on Sphere"),
        (lambda f: minimize(f, start * math.nan, Sphere), ValueError, "is not on Sphere"),
        (lambda f: minimize(f, torch.eye(3, 2), Orthogonal), ValueError, "square"),
        (lambda f: minimize(f, start.half(), Sphere), TypeError, "float32 or float64"),
        (lambda f: minimize(f, start.long(), Sphere), TypeError, "float32 or float64"),
        (lambda f: minimize(f, "start", Sphere), TypeError, "a tensor, or a shape"),
        (lambda f: minimize(f, start, "Sphere"), TypeError, "is a Manifold"),
        (lambda f: minimize(f, start), TypeError, "is a Manifold"),
        (lambda f: minimize(f, {"a": start}, Sphere), ValueError, "a dict of manifolds"),
        (lambda f: minimize(f, {"a": start}, {"b": Sphere}), ValueError, "same names"),
        (lambda f: minimize(f, {}, {}), ValueError, "empty"),
        (lambda f: minimize(f, {"a": start, "b": start.float()}, {"a": Sphere, "b": Sphere}), ValueError, "precision"),
        (lambda f: minimize(f, start, Sphere, solver="cg"), TypeError, "solver is a value"),
        (lambda f: minimize(f, start, Sphere, solver=LBFGS), TypeError, "solver is a value"),
        (lambda f: minimize(f, start, Sphere, tol=0), ValueError, "tol"),
        (lambda f: minimize(f, start, Sphere, max_steps=-1), ValueError, "max_steps"),
        (lambda f: minimize(f, start, Sphere, max_seconds=-1), ValueError, "max_seconds"),
        (lambda f: minimize(f, start, Sphere, starts=0), ValueError, "starts"),
        (lambda f: minimize(f, start, Sphere, batched=True), ValueError, "leading axis"),
        (lambda f: minimize(f, start.expand(2, 4), Sphere, batched=True), ValueError, r"of shape \(2,\)"),
        (lambda f: minimize(f, start, Sphere, both_components=True), ValueError, "of one to 4 factors; there are 0"),
        (lambda f: minimize(f, nn.Linear(2, 2), Sphere), ValueError, "from the model"),
        (lambda f: TrustRegion(kappa=2), ValueError, "kappa"),
        (lambda f: LBFGS(memory=0), ValueError, "memory"),
        (lambda f: HagerZhang(sigma=0.01), ValueError, "sigma"),
        (lambda f: StrongWolfe(curvature=1.0), ValueError, "curvature"),
        (lambda f: Armijo(decrease=-1.0), ValueError, "decrease"),
        (lambda f: ConjugateGradient(restart=-1.0), ValueError, "restart"),
        (lambda f: ConjugateGradient(beta="hager_zhang"), TypeError, "beta of ConjugateGradient is a function"),
        (lambda f: ConjugateGradient(search=Armijo), TypeError, "search of ConjugateGradient is a LineSearch"),
        (lambda f: LBFGS(search="armijo"), TypeError, "search of LBFGS is a LineSearch"),
        (lambda f: GradientDescent(search=None), TypeError, "search of GradientDescent is a LineSearch"),
        (lambda f: TrustRegion(hessian="exact"), TypeError, "hessian of TrustRegion is a function"),
        (lambda f: TrustRegion(preconditioner=torch.eye(2)), TypeError, "preconditioner of TrustRegion is a function"),
        (lambda f: TrustRegion(regularization=-1.0), ValueError, "regularization"),
        (lambda f: StrongWolfe(slack=math.nan), ValueError, "slack"),
        (lambda f: minimize(f, start, Sphere, dtype=torch.float32), ValueError, "for starts that are drawn"),
        (lambda f: minimize(f, start, Sphere, device="meta"), ValueError, "for starts that are drawn"),
        (lambda f: minimize(f, nn.Linear(2, 2), dtype=F64), ValueError, "from the model"),
        (lambda f: minimize(f, start.numpy(), Sphere), TypeError, r"got a ndarray of shape \(4,\)"),
        (lambda f: minimize(f, start, start), TypeError, r"got a Tensor of shape \(4,\)"),
        (lambda f: minimize(lambda x: start @ x, (4,), Sphere), TypeError, "drawn in torch.float32; write dtype="),
    ],
)
def test_options_that_cannot_be(call: Callable[[Any], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(lambda x: x.sum())


def test_an_unused_tensor_is_named() -> None:
    with pytest.raises(ValueError, match=r"x\['b'\]"):
        minimize(lambda p: p["a"].sum(), {"a": (3,), "b": (3,)}, {"a": Sphere, "b": Sphere})


def test_problems_of_a_batch_that_depend_on_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="independent"):
        minimize(lambda x: x.sum(1) + x.sum(), (3, 4), Sphere, batched=True)


@pytest.mark.parametrize("held", [Stiefel(), Stiefel**2, Sphere(ndim=2), LowRank(2)], ids=repr)
def test_the_way_out_for_a_trivialized_model_is_right_to_the_letter(held: Any) -> None:
    model = nn.Sequential(constrain(nn.Linear(3, 6, dtype=F64), "weight", held, Trivialization()))
    before = model[0].weight.detach().clone()

    def loss() -> Tensor:
        return (model(torch.ones(3, dtype=F64)) - 1).square().sum()

    with pytest.raises(ValueError, match=r"by a Trivialization: 0\.weight") as refused:
        minimize(loss, model)
    calls = str(refused.value).partition("Write ")[2].rstrip(".")
    exec(calls, {**vars(manifolds), **vars(constraints), "model": model})
    torch.testing.assert_close(model[0].weight.detach(), before, rtol=0, atol=1e-14)
    assert minimize(loss, model).converged


def test_a_model_keeps_its_start_where_the_closure_fails() -> None:
    model = constrain(nn.Linear(3, 3, dtype=F64), "weight", Stiefel, Riemannian())
    before, calls = model.weight.detach().clone(), 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyError("data")
        return model(torch.ones(3, dtype=F64)).square().sum()

    with pytest.raises(KeyError):
        minimize(closure, model, solver=GradientDescent())
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_the_budget_is_kept_and_said(solver: Solver) -> None:
    c = torch.randn(30, 30, dtype=F64)
    c = c + c.T

    def slow(x: Tensor) -> Tensor:
        time.sleep(0.01)
        return x @ c @ x

    two = minimize(lambda x: x @ c @ x, (30,), Sphere, solver=solver, max_steps=2, dtype=F64)
    assert (two.converged, two.steps) == (False, 2)
    assert two.reason.startswith("Not converged: max_steps=2 reached")
    brief = minimize(slow, (30,), Sphere, solver=solver, max_seconds=0.05, dtype=F64, tol=1e-14)
    assert not brief.converged
    assert brief.reason.startswith("Not converged: max_seconds=0.05 reached")


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_nan_at_the_start(solver: Solver) -> None:
    found = minimize(lambda x: (x.sum() - 10).sqrt(), start, Sphere, solver=solver)
    assert not found.converged
    assert "NaN" in found.reason
    torch.testing.assert_close(found.x, start)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_nan_on_the_way_shortens_the_step(solver: Solver) -> None:
    """log x - x has its domain on one side: a step over the edge is shortened, and the answer found."""
    found = minimize(
        lambda x: (100 * x - x.log()).sum(), torch.full((3,), 5.0, dtype=F64), Euclidean, solver=solver, max_steps=2000
    )
    assert found.converged, found.reason
    torch.testing.assert_close(found.x, torch.full((3,), 0.01, dtype=F64))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_discontinuous_f(solver: Solver) -> None:
    """It falls everywhere, but jumps up by 2 before its minimum: no solver converges, and none runs forever."""
    found = minimize(
        lambda x: (x[0] - 1).square() + 2 * (x[0].detach() > 0.5),
        torch.tensor([0.0], dtype=F64),
        Euclidean,
        solver=solver,
    )
    assert not found.converged
    assert found.reason.startswith("Not converged")
    assert found.value <= 1
    assert found.x[0] <= 0.5


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_gradient_of_the_wrong_sign(solver: Solver) -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square().sum()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            return -2 * g * ctx.saved_tensors[0]

    found = minimize(Wrong.apply, torch.ones(3, dtype=F64), Euclidean, solver=solver)
    assert not found.converged
    assert "check_gradient" in found.reason
    assert found.value == 3


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_hessian_of_deficient_rank(solver: Solver) -> None:
    """x^4 in some directions and nothing in others: slower, but there."""
    found = minimize(lambda x: x[:2].pow(4).sum(), torch.ones(5, dtype=F64), Euclidean, solver=solver, max_steps=3000)
    assert found.converged, found.reason
    assert found.value < 1e-6
    assert found.x[2:].tolist() == [1, 1, 1]


def test_a_saddle_is_left() -> None:
    """The middle eigenvector is a saddle, the last a maximum: the gradient vanishes there exactly."""
    c = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64))
    for i in (1, 2, 3):
        found = minimize(lambda x: x @ c @ x, torch.eye(4, dtype=F64)[i], Sphere)
        assert found.converged
        assert abs(found.value - 1) < 1e-9
        # the second derivative along the second eigenvector
        assert abs(found.curvature - 2) < 1e-6
    stays = minimize(lambda x: x @ c @ x, torch.eye(4, dtype=F64)[1], Sphere, solver=TrustRegion(saddle_products=0))
    assert (stays.converged, stays.steps, stays.curvature) == (True, 0, None)


@pytest.mark.parametrize("solver", SOLVERS[1:], ids=repr)
def test_a_start_without_a_gradient_is_said(solver: Solver) -> None:
    c = torch.diag(torch.tensor([1.0, 2.0], dtype=F64))
    found = minimize(lambda x: x @ c @ x, torch.eye(2, dtype=F64)[1], Sphere, solver=solver)
    assert found.converged
    assert "at the start" in found.reason


def test_a_start_that_is_a_minimum_is_not_called_a_saddle() -> None:
    found = minimize(lambda x: (x - 1).square().sum(), torch.ones(3, dtype=F64), Euclidean)
    assert found.converged
    assert found.curvature > 0
    assert "saddle" not in found.reason


def test_a_point_of_no_freedom_is_its_own_answer() -> None:
    found = minimize(lambda x: x.sum(), torch.ones(1, 1, dtype=F64), Orthogonal)
    assert (found.converged, found.steps, found.value) == (True, 0, 1)


def test_curvature_that_is_not_finite_is_nan() -> None:
    """In a batch those of the others are known: with |x|^1.5 beside them, whose second derivative at 0 is infinite."""
    x0 = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]], dtype=F64)

    def f(x: Tensor) -> Tensor:
        return torch.stack([x[0].square().sum() / 2, x[1].abs().pow(1.5).sum(), x[2].square().sum() / 2])

    found = minimize(f, x0, Euclidean, batched=True)
    assert found.converged.all()
    assert found.curvature.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found.curvature[[0, 2]], torch.ones(2, dtype=F64))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_random_f_is_told(solver: Solver) -> None:
    generator = torch.Generator().manual_seed(0)

    def f(x: Tensor) -> Tensor:
        return (x * (1 + 0.3 * torch.randn(4, dtype=F64, generator=generator))).square().sum() + x.sum()

    found = minimize(f, torch.ones(4, dtype=F64), Euclidean, solver=solver)
    assert not found.converged
    assert "another value each time" in found.reason


def test_a_callback_may_say_true_as_a_tensor() -> None:
    x0 = Sphere().random(3, 4, dtype=F64)
    for said in (torch.tensor(True), torch.tensor([True]).numpy()[0]):
        found = minimize(lambda x: x[:, 0], x0, Sphere, batched=True, callback=lambda point, said=said: said)
        assert "stopped by the callback" in found.reason
    assert minimize(lambda x: x[0], x0[0], Sphere, callback=lambda point: torch.ones(2)).converged


def test_a_closure_that_is_none_is_refused() -> None:
    model, other = nn.Linear(3, 1), nn.Linear(3, 1)
    with pytest.raises(ValueError, match="not depend on any parameter"):
        minimize(lambda: other(torch.ones(3)).sum(), model)

    def closure() -> Tensor:
        loss = model(torch.ones(3)).square().sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"calls backward\(\)"):
        minimize(closure, model)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_gradient_that_is_not_finite_shortens_the_step(solver: Solver) -> None:
    """At x <= 0.2 the value of x^2 is right, and its gradient NaN: no solver goes there."""

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square().sum()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            (x,) = ctx.saved_tensors
            return 2 * g * x / (x > 0.2)

    found = minimize(Half.apply, torch.tensor([1.0], dtype=F64), Euclidean, solver=solver)
    assert not found.converged
    assert math.isfinite(found.gradient_norm)
    assert 0.2 < found.x < 0.7


@dataclass(frozen=True)
class Edge(Manifold):
    """R^n, whose retraction and transport raise beyond |x| = 10, as Cholesky does on sets with an edge."""

    ndim = 1

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return a

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        y = x + v
        if bool((y.norm(dim=-1) > 10).any()):
            raise torch.linalg.LinAlgError("over the edge")  # type: ignore[attr-defined]
        return y

    def residual(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[:-1], dtype=x.dtype)

    def random(self, *shape: Any, **options: Any) -> Tensor:
        return torch.zeros(*shape, dtype=F64)

    def dim(self, shape: Any) -> int:
        return math.prod(shape)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_problem_over_the_edge_does_not_keep_the_others(solver: Solver) -> None:
    """Steps of the first problem leave the set at first; the others go as they do alone."""
    scale = torch.tensor([1e3, 1.0, 1.0], dtype=F64)
    target = torch.tensor([[9.9, 0.0], [1.0, 2.0], [3.0, 1.0]], dtype=F64)
    stiff = torch.tensor([1.0, 0.2], dtype=F64)

    def f(x: Tensor) -> Tensor:
        return scale * (stiff * (x - target).square()).sum(1)

    x0 = torch.tensor([[0.0, 9.0], [0.0, 0.0], [0.0, 0.0]], dtype=F64)
    together = minimize(f, x0, Edge(), solver=solver, batched=True, max_steps=2000)
    for i in (1, 2):
        alone = minimize(lambda x, i=i: (stiff * (x - target[i]).square()).sum(), x0[i], Edge(), solver=solver)
        assert together.converged[i]
        assert together.steps[i] == alone.steps
        torch.testing.assert_close(together.x[i], alone.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_an_infimum_at_the_edge_is_no_exception(solver: Solver) -> None:
    """The nearest matrix of unit diagonal is no point of the open set of correlations."""
    a = torch.tensor([[1.0, 2.0, -2.0], [2.0, 1.0, 2.0], [-2.0, 2.0, 1.0]], dtype=F64)
    found = minimize(lambda x: (x - a).square().sum(), (3, 3), Correlation, solver=solver, dtype=F64, max_steps=200)
    assert math.isfinite(found.value)
    assert bool(Correlation().contains(found.x))


def test_a_sharded_model_is_refused_by_name() -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("no torch.distributed")
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = constrain(nn.Linear(3, 3), "weight", Stiefel, Riemannian())
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"weight, shape \(3, 3\), is sharded.*minimize before fully_shard"):
            minimize(lambda: model(torch.ones(2, 3)).sum(), model)
    finally:
        distributed.destroy_process_group()


def test_lbfgs_keeps_the_weights_where_the_closure_raises() -> None:
    model = constrain(nn.Linear(3, 3, dtype=F64), "weight", Stiefel, Riemannian())
    before, calls = [p.detach().clone() for p in model.parameters()], 0
    optimizer = RiemannianLBFGS(model)

    def closure() -> Tensor:
        nonlocal calls
        optimizer.zero_grad()
        calls += 1
        if calls == 3:
            raise KeyError("data")
        loss = (model(torch.eye(3, dtype=F64)) - 2).square().sum()
        loss.backward()
        return loss

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


SEEDS = {"seed": st.integers(0, 2**31), "which": st.integers(0, 2), "place": st.integers(0, 3)}


@settings(max_examples=50)
@given(**SEEDS)
def test_random_smooth_functions_end_at_a_first_order_point_or_say_why(seed: int, which: int, place: int) -> None:
    check_one_function(seed, which, place)


@pytest.mark.slow
@settings(max_examples=200)
@given(**SEEDS)
def test_two_hundred_random_smooth_functions(seed: int, which: int, place: int) -> None:
    check_one_function(seed, which, place)


def check_one_function(seed: int, which: int, place: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    manifold, shape = [(Sphere(), (4,)), (Stiefel(), (4, 2)), (Orthogonal(), (3, 3)), (Stiefel("canonical"), (4, 2))][
        place
    ]
    a, b = (torch.randn(5, math.prod(shape), dtype=F64, generator=generator) for _ in range(2))

    def f(x: Tensor) -> Tensor:
        y = a @ x.flatten()
        return [y.sin(), y.tanh() * (b @ x.flatten()), (y * y + 1).log() - y][which].sum()

    solver = SOLVERS[seed % 4]
    found = minimize(f, shape, manifold, solver=solver, generator=generator, dtype=F64)
    assert found.converged == (found.gradient_norm <= 1e-6)
    assert found.reason.startswith("Converged" if found.converged else "Not converged")
    assert found.history.value[-1] <= found.history.value[0]
    assert bool(manifold.contains(found.x))
    leaf = found.x.clone().requires_grad_()
    g = manifold.gradient(found.x, torch.autograd.grad(f(leaf), leaf)[0])
    assert abs(manifold.norm(found.x, g).item() - found.gradient_norm) < 1e-9
