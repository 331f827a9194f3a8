"""How the optimizers sit in a training loop: modules, schedules, closures, hooks, late and missing gradients."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from constraints import Riemannian, Trivialization, constrain, param_groups, riemannian
from constraints.optim import RiemannianAdam, RiemannianSGD
from constraints.optim.step.optimizer import RiemannianOptimizer
from manifolds import Euclidean, Manifold, ProductManifold, Sphere, Stiefel

KINDS: list[Any] = [RiemannianAdam, lambda groups, lr=0.1: RiemannianSGD(groups, lr=lr, momentum=0.9)]


def points(count: int, manifold: Manifold | None = None, *shape: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    manifold, shape = manifold or Stiefel(), shape or (4, 4)
    return [nn.Parameter(manifold.random(*shape, generator=generator, dtype=torch.float64)) for _ in range(count)]


def give(params: list[nn.Parameter], seed: int) -> list[Tensor]:
    """Gradients that depend on the seed only; copies of them."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
    return [p.grad.clone() for p in params if p.grad is not None]


def test_a_module_is_taken_with_its_manifolds() -> None:
    """The factors of the constrained weight stay orthonormal, the rest moves as in torch.optim.Adam."""
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 1))
    weight = nn.Parameter((Stiefel() ** 3).random(12, 4))
    model[0].weight = weight
    riemannian.record(model[0], "weight", Stiefel() ** 3, "0.weight")
    assert {g["manifold"] for g in param_groups(model)} == {None, Stiefel() ** 3}
    optimizer = RiemannianAdam(model, lr=0.05)
    x, y = torch.randn(64, 4), torch.randn(64, 1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert model[0].weight is weight
    assert float((Stiefel() ** 3).residual(weight.detach())) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_read_only(kind: Any) -> None:
    """A step leaves .grad as it was, in memory, value and identity, for one parameter or many, with every option."""
    for params in (points(1), points(3), points(2, Sphere(), 6)):
        manifold = Sphere() if params[0].dim() == 1 else Stiefel()
        optimizer = kind([{"params": params, "manifold": manifold, "maximize": True}])
        for seed in range(3):
            expected = give(params, seed)
            grads = [p.grad for p in params]
            optimizer.step()
            assert all(p.grad is g for p, g in zip(params, grads, strict=True))
            assert all(torch.equal(g, e) for g, e in zip(grads, expected, strict=True) if g is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_no_step(kind: Any) -> None:
    """A parameter without a gradient, its state and the count of its steps stay as they are; late ones start anew."""
    together, alone = points(3), points(3)
    optimizer = kind([{"params": together, "manifold": Stiefel()}])
    single = [kind([{"params": [p], "manifold": Stiefel()}]) for p in alone]
    for step in range(12):
        give(together, step)
        give(alone, step)
        for i in range(3):
            # the second starts late, the third comes and goes
            if (i == 1 and step < 4) or (i == 2 and step % 3 == 1):
                together[i].grad = alone[i].grad = None
        before = [p.detach().clone() for p in together]
        optimizer.step()
        for o in single:
            o.step()
        torch.testing.assert_close([p.detach() for p in together], [p.detach() for p in alone], rtol=0, atol=1e-13)
        for p, x in zip(together, before, strict=True):
            assert (p.grad is None) == torch.equal(p.detach(), x)
        assert set(optimizer.state) == {p for i, p in enumerate(together) if i != 1 or step >= 4}
    if kind is RiemannianAdam:
        assert [float(optimizer.state[p]["step"]) for p in together] == [12, 8, 8]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("manifold", [Stiefel(), ProductManifold((Stiefel(), Euclidean(), Stiefel()))], ids=str)
@pytest.mark.parametrize("event", ["written", "new memory", "new parameter", "nothing"])
def test_a_step_sees_what_happened_in_between(kind: Any, manifold: Manifold, event: str) -> None:
    """A new value, new memory, another parameter: each step starts from what is there, with the state there was."""
    shape = (4, 4) if manifold == Stiefel() else (12, 4)
    params, fresh, other = points(2, manifold, *shape), points(4, manifold, *shape)[2:], points(1, manifold, *shape)[0]
    optimizer = kind([{"params": params, "manifold": manifold}])
    give(params, 0)
    optimizer.step()
    expected = [nn.Parameter(p.detach().clone()) for p in params]
    reference = kind([{"params": expected, "manifold": manifold}])
    reference.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        for p, q, x in zip(params, expected, fresh, strict=True):
            if event == "written":
                p.copy_(x)
            if event == "new memory":
                p.data = x.detach().clone()
            if event in ("written", "new memory"):
                q.copy_(x)
    if event == "new parameter":
        optimizer.add_param_group({"params": [other], "manifold": manifold})
    for seed in range(1, 4):
        give([*params, other], seed)
        give(expected, seed)
        optimizer.step()
        reference.step()
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in expected], rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cleared_state_is_a_new_start(kind: Any) -> None:
    """optimizer.state.clear(), or a new entry for one parameter, forgets momentum and counts."""
    params = points(2)
    optimizer = kind([{"params": params, "manifold": Stiefel()}])
    for event in ("clear", "entry"):
        give(params, 0)
        optimizer.step()
        optimizer.state.clear() if event == "clear" else optimizer.state.update({params[0]: {}})
        fresh = nn.Parameter(params[0].detach().clone())
        new = kind([{"params": [fresh], "manifold": Stiefel()}])
        for seed in range(1, 3):
            give(params, seed)
            give([fresh], seed)
            optimizer.step()
            new.step()
        torch.testing.assert_close(params[0].detach(), fresh.detach(), rtol=0, atol=1e-13)


def test_memory_of_another_order_is_noticed() -> None:
    """p.data = p.data.t() keeps the address and changes the tensor: the step follows."""
    (p,) = points(1)
    optimizer = RiemannianSGD([{"params": [p], "manifold": Stiefel()}], lr=0.1)
    give([p], 0)
    optimizer.step()
    p.data = p.data.t()
    q = nn.Parameter(p.detach().clone())
    give([p], 1)
    give([q], 1)
    optimizer.step()
    RiemannianSGD([{"params": [q], "manifold": Stiefel()}], lr=0.1).step()
    torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-13)


def test_a_step_is_seen_by_autograd() -> None:
    """A graph that was recorded before the step does not silently use the moved weight."""
    for params in (points(1), points(2)):
        optimizer = RiemannianAdam([{"params": params, "manifold": Stiefel()}])
        loss = sum((p @ p).square().sum() for p in params)
        give(params, 0)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_groups_of_equal_options_share_a_bucket_until_they_differ() -> None:
    """Two groups move in one batch; a schedule that parts their rates parts them, and they move as alone."""
    together, alone = points(2), points(2)
    optimizer = RiemannianAdam([{"params": [p], "manifold": Stiefel()} for p in together], lr=0.1)
    single = [RiemannianAdam([{"params": [p], "manifold": Stiefel()}], lr=0.1) for p in alone]
    for step in range(6):
        if step == 3:
            optimizer.param_groups[1]["lr"] = single[1].param_groups[0]["lr"] = 0.01
        give(together, step)
        give(alone, step)
        for o in (optimizer, *single):
            o.step()
        assert optimizer._plan is not None
        assert len(optimizer._plan.buckets) == (1 if step < 3 else 2)
    torch.testing.assert_close([p.detach() for p in together], [p.detach() for p in alone], rtol=0, atol=1e-13)


def test_a_model_of_many_parameters_is_one_bucket() -> None:
    """All factors of one shape, from separate, batched and packed parameters, move together."""
    s = Stiefel()
    groups: list[dict[str, Any]] = [
        {"params": points(5), "manifold": s},
        {"params": points(1, s, 3, 4, 4), "manifold": s},
        {"params": points(1, s**3, 12, 4), "manifold": s**3},
        {"params": points(1, s * Sphere(), 8, 4), "manifold": s * Sphere()},
    ]
    optimizer = RiemannianAdam(groups)
    for group in groups:
        give(group["params"], 0)
    optimizer.step()
    assert optimizer._plan is not None
    assert [(len(b.leaves), b.shape) for b in optimizer._plan.buckets] == [(8, (12, 4, 4)), (1, (4, 4))]


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_set_the_rate(kind: Any) -> None:
    """Halving lr by a scheduler equals writing the halved lr into a group; a tensor rate equals a number."""
    runs = []
    for way in ("scheduler", "by hand", "tensor"):
        (p,) = points(1)
        rate = torch.tensor(0.1, dtype=torch.float64) if way == "tensor" else 0.1
        optimizer = kind([{"params": [p], "manifold": Stiefel()}], lr=rate)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) if way == "scheduler" else None
        for step in range(5):
            give([p], step)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            elif way == "tensor":
                rate *= 0.5
            else:
                optimizer.param_groups[0]["lr"] *= 0.5
        runs.append(p.detach())
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(runs[2], runs[0], rtol=0, atol=1e-14)


def test_a_cycle_of_momentum_is_followed() -> None:
    """OneCycleLR changes betas and momentum at every step."""
    for optimizer in (
        RiemannianAdam([{"params": points(1), "manifold": Stiefel()}]),
        RiemannianSGD([{"params": points(1), "manifold": Stiefel()}], lr=0.1, momentum=0.9),
    ):
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=8)
        params = optimizer.param_groups[0]["params"]
        for step in range(8):
            give(params, step)
            optimizer.step()
            if step < 7:
                schedule.step()
        assert float(Stiefel().residual(params[0].detach())) < 1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_the_closure_is_called_with_gradients(kind: Any) -> None:
    """step(closure) returns its loss, evaluated once, before the step."""
    (p,) = points(1)
    optimizer, calls = kind([{"params": [p], "manifold": Stiefel()}]), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p * torch.arange(16.0, dtype=torch.float64).view(4, 4)).sum()
        loss.backward()
        calls.append(loss.detach())
        return loss

    with torch.no_grad():
        before = (p * torch.arange(16.0, dtype=torch.float64).view(4, 4)).sum()
    torch.testing.assert_close(optimizer.step(closure).detach(), before)
    assert len(calls) == 1
    assert float(optimizer.step(closure).detach()) < float(before)


def test_hooks_and_grad_scaler() -> None:
    """Step hooks run; a GradScaler unscales .grad in place and skips a step whose gradients overflowed."""
    (p,), (q,) = points(1), points(1)
    optimizer = RiemannianAdam([{"params": [p], "manifold": Stiefel()}], lr=0.1)
    plain = RiemannianAdam([{"params": [q], "manifold": Stiefel()}], lr=0.1)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((p * p.detach().roll(1)).sum()).backward()
    (q * q.detach().roll(1)).sum().backward()
    scaler.step(optimizer)
    scaler.update()
    plain.step()
    torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-14)
    assert seen == ["before", "after"]
    before = p.detach().clone()
    optimizer.zero_grad()
    scaler.scale((p * torch.inf).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p.detach(), before)
    assert scaler.get_scale() == 512


def test_maximize_is_minimizing_the_negative() -> None:
    """The iterates of -f agree."""
    for kind in KINDS:
        (p,), (q,) = points(1), points(1)
        up = kind([{"params": [p], "manifold": Stiefel(), "maximize": True}])
        down = kind([{"params": [q], "manifold": Stiefel()}])
        for seed in range(4):
            (g,) = give([p], seed)
            q.grad = -g
            up.step()
            down.step()
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-14)


def test_decay_says_once_that_it_does_nothing() -> None:
    """L2 decay on orthonormal factors warns, once per optimizer, and the steps are those without it."""
    (p,), (q,), (r,) = points(1), points(1), points(1)
    groups = [{"params": [p], "manifold": Stiefel()}, {"params": [r], "manifold": Stiefel()}]
    with pytest.warns(UserWarning, match="weight_decay does nothing on Stiefel,") as record:
        decayed = RiemannianAdam(groups, weight_decay=0.5)
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain: RiemannianOptimizer = RiemannianAdam([{"params": [q], "manifold": Stiefel()}])
    for seed in range(3):
        give([p], seed)
        give([q], seed)
        decayed.step()
        plain.step()
    assert torch.equal(p.detach(), q.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_within_torch_compile_runs_as_it_is(kind: Any) -> None:
    """What it does depends on values: a graph that ended at each of them took 2.6 times as long as none."""
    torch._dynamo.reset()
    start, gradients = Stiefel().random(3, 6, 4), torch.randn(4, 3, 6, 4)
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    eager, compiled = (kind([{"params": [p], "manifold": Stiefel()}], lr=0.1) for p in weights)
    graphs = CompileCounter()
    step = torch.compile(compiled.step, backend=graphs)
    for g in gradients:
        for p in weights:
            p.grad = g.clone()
        eager.step()
        step()
    assert graphs.op_count == 0
    assert torch.equal(*weights)


@pytest.mark.skipif(torch.__version__ < (2, 9), reason="torch 2.6 compiles the step's own frames anew")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # of the backend
@pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=str)
def test_a_compiled_step_does_not_depend_on_what_else_is_alive(method: Any) -> None:
    """A guard on the other models of the process would compile anew, or fail, as they come and go."""
    torch._dynamo.reset()
    others = [constrain(nn.Linear(4, 4), "weight", Stiefel, each) for each in (Trivialization(), Riemannian()) * 2]
    layer = constrain(nn.Linear(4, 4), "weight", Stiefel, method)
    optimizer = RiemannianAdam(layer, lr=0.1) if method == Riemannian() else torch.optim.SGD(layer.parameters(), lr=0.1)
    start = layer.weight.detach().clone()
    step = torch.compile(optimizer.step, backend=CompileCounter())

    def train() -> None:
        optimizer.zero_grad()
        layer(torch.eye(4)).sum().backward()
        step()

    train()
    train()
    others.pop()
    gc.collect()
    with torch._dynamo.config.patch(error_on_recompile=True):  # type: ignore[no-untyped-call]
        train()
        others.clear()
        gc.collect()
        train()
    assert not torch.equal(layer.weight, start)
