"""What is refused before a solver starts: what is no function, no option, no model; with a way out that is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import constraints
import manifolds
from constraints import Riemannian, Trivialization, constrain, minimize
from constraints.solve import (
    LBFGS,
    Armijo,
    ConjugateGradient,
    GradientDescent,
    HagerZhang,
    Solver,
    StrongWolfe,
    TrustRegion,
    hessians,
)
from manifolds import (
    LowRank,
    Manifold,
    Orthogonal,
    PositiveDefinite,
    SpecialOrthogonal,
    SpectralBall,
    Sphere,
    Stiefel,
)
from manifolds._points import probing

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


def writes_rows(x: Tensor) -> Tensor:
    x.data.mul_(2)
    return x.sum(-1)


@pytest.mark.parametrize("starts", [1, 2])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize(
    ("f", "error", "text"),
    [
        (lambda x: 3.0, TypeError, "returns a tensor"),
        (lambda x: x.detach().sum(-1), ValueError, "does not depend on x"),
        (lambda x: torch.zeros(x.shape[:-1], dtype=F64, requires_grad=True) * 1, ValueError, "does not depend on x"),
        (lambda x: x.sum(-1).long(), TypeError, "dtype torch.int64"),
        (lambda x: x.sum(-1) * 1j, TypeError, "real"),
        (lambda x: x, ValueError, r"got shape \((3, )?4,?\)"),
        (lambda x: x.sum(-1, keepdim=True), ValueError, r"got shape \((3, )?1,?\)"),
        (writes_rows, ValueError, "changes its argument"),
    ],
)
def test_what_is_no_function_is_refused_in_every_form(
    f: Callable[[Tensor], Any], error: type[Exception], text: str, as_dict: bool, batched: bool, starts: int
) -> None:
    """The shape that is asked for is that of one call of f, which never sees the axis of the starts."""
    x0 = start.repeat(3, 1) if batched else start.clone()
    options: dict[str, Any] = {"batched": batched, "starts": starts}
    arguments: Any = (lambda p: f(p["a"]), {"a": x0}, {"a": Sphere}) if as_dict else (f, x0, Sphere)
    with pytest.raises(error, match=text):
        minimize(*arguments, **options)


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
        (lambda f: minimize(f, (5, 4), Sphere, dtype=torch.bfloat16), TypeError, "dtype torch.bfloat16.* Pass dtype="),
        (lambda f: minimize(f, {"a": (5, 4)}, {"a": Stiefel}, dtype=torch.int64), TypeError, r"x0\['a'\] has dtype"),
        (lambda f: minimize(f, (5, 4), LowRank(2)), TypeError, r"name, LowRank\(rank=2\), Riemannian\(\)\)"),
        (lambda f: minimize(f, (5, 4), SpectralBall), TypeError, r"name, SpectralBall, Riemannian\(\)\)"),
        (lambda f: minimize(f, {"a": start}, Sphere(2.0)), ValueError, r"and Sphere\(radius=2.0\)"),
        (lambda f: minimize(f, start, {"a": Sphere}), ValueError, "got a Tensor of shape .* and a dict of"),
        (lambda f: minimize(f, (3, 3), SpecialOrthogonal, both_components=True), ValueError, "are 0. .* connected"),
        (lambda f: minimize(f, start), TypeError, "is a Manifold"),
        (lambda f: minimize(f, {"a": start}, Sphere), ValueError, "a dict of manifolds .* and Sphere. "),
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
        (lambda f: minimize(f, start.numpy(), Sphere), TypeError, r"got a numpy array of shape \(4,\)"),
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


class Energy(torch.autograd.Function):
    """sum of x^4, whose gradient torch does not differentiate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.pow(4).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 4 * grad * ctx.saved_tensors[0].pow(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(Stiefel(), (5, 2)), (Orthogonal(), (4, 4)), (Sphere(), (6,)), (PositiveDefinite(), (3, 3))],
    ids=str,
)
def test_a_gradient_that_torch_does_not_differentiate_is_refused_by_trust_regions(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x0 = manifold.random(*shape, dtype=dtype)
    with pytest.raises(ValueError, match=r"only once.*finite_difference"):
        minimize(Energy.apply, x0, manifold)
    layer = nn.ParameterDict({"x": nn.Parameter(x0.clone())})
    constrain(layer, "x", manifold, Riemannian())
    with pytest.raises(ValueError, match=r"only once.*finite_difference"):
        minimize(lambda: Energy.apply(layer["x"]), layer)
    torch.testing.assert_close(layer["x"].detach(), x0, rtol=0, atol=0)
    minimize(lambda: (layer["x"] * x0).sum(), layer, max_steps=2)
    # the ways out, and what is linear, or in pieces
    for solver in (TrustRegion(hessian=hessians.finite_difference), LBFGS()):
        assert minimize(Energy.apply, x0, manifold, solver=solver, max_steps=3).steps > 0
    a = torch.randn(shape, dtype=dtype)
    minimize(lambda x: (a * x).sum(), x0, manifold, max_steps=3)
    minimize(lambda x: torch.relu(x).sum(), x0, manifold, max_steps=3)


@pytest.mark.parametrize("seed", [0, 1, 42, 1234])
def test_a_probe_is_not_the_point_that_a_usual_seed_gives(seed: int) -> None:
    """Parallel to a point of a sphere it would leave nothing in the tangent space, and ask nothing."""
    torch.manual_seed(seed)
    x, v = torch.randn(6, dtype=F64), torch.randn(6, dtype=F64, generator=probing())
    assert (x @ v).abs() < 0.99 * x.norm() * v.norm()


def test_a_composition_is_minimized_over_as_the_refusal_says() -> None:
    """The best approximation of rank 1 leaves the second singular value."""
    module = nn.Linear(2, 2, bias=False, dtype=F64)
    constrain(module, "weight", LowRank(1), Riemannian())
    target = torch.diag(torch.tensor([3.0, 1.0], dtype=F64))
    found = minimize(lambda: (module.weight - target).square().sum(), module)
    assert found.converged
    assert found.value == pytest.approx(1.0)
