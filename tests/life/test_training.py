"""A training loop is the one people have: freezing, accumulation, clipping, schedules, groups, hooks, closures."""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constraints import Riemannian, Trivialization, param_groups, rebase, unconstrain
from constraints.held import held
from constraints.method import Method
from constraints.optim import RiemannianAdam, RiemannianSGD
from manifolds import Euclidean, SpecialOrthogonal, Sphere, Stiefel

from .subjects import (
    Subject,
    adam,
    batch,
    bits,
    each,
    engine,
    objective,
    residual,
    riemannian,
    same,
    sgd,
    train,
    weights,
)

optimizers = pytest.mark.parametrize("optimizer_of", [adam, sgd])


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@each
@engine
def test_a_plain_loop_learns_on_the_manifold(subject: Subject, method: Method) -> None:
    net, x = subject.constrain(subject.plain(), method), batch(32)
    optimizer = adam(net)
    losses, before = [], weights(net)
    for _ in range(30):
        losses.append(train(net, optimizer, x))
        assert residual(net) < 1e-5
    assert losses[-1] < losses[0]  # of one batch; by how much depends on the start
    assert all(not torch.equal(weight, before[name]) for name, weight in weights(net).items())
    torch.testing.assert_close(net.eval()(x), net.train()(x))


# Freezing ---------------------------------------------------------------------------------------------------------


@each
@engine
@optimizers
def test_frozen_weights_stay_bit_for_bit(subject: Subject, method: Method, optimizer_of: Any) -> None:
    net, x = subject.constrained(method), batch()
    optimizer = optimizer_of(net, weight_decay=0.0)
    train(net, optimizer, x)
    optimizer.zero_grad()
    net.core.requires_grad_(False)
    assert not any(w.requires_grad for w in (getattr(e.owner, e.attribute) for e in held(net)))
    before, head = weights(net), net.head.weight.detach().clone()
    for _ in range(2):
        train(net, optimizer, x)
    assert same(weights(net), before)
    assert not torch.equal(net.head.weight, head)
    net.core.requires_grad_(True)
    train(net, optimizer, x)
    assert not same(weights(net), before)
    assert residual(net) < 1e-5


@each
@engine
def test_a_model_without_gradients_has_none(subject: Subject, method: Method) -> None:
    net = subject.constrained(method).requires_grad_(False)
    x = batch().requires_grad_()
    net(x).sum().backward()
    assert x.grad is not None
    assert x.grad.count_nonzero() > 0
    assert all(p.grad is None for p in net.parameters())


@each
@engine
def test_constraining_a_frozen_model_keeps_it_frozen(subject: Subject, method: Method) -> None:
    net = subject.constrain(subject.plain().requires_grad_(False), method)
    assert not net(batch()).requires_grad
    net.requires_grad_(True)
    train(net, adam(net), batch())
    assert residual(net) < 1e-5


# Gradients --------------------------------------------------------------------------------------------------------


@each
@engine
def test_gradients_of_parts_add_up_to_that_of_the_batch(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method, dtype=torch.float64), batch(8).double()
    whole = copy.deepcopy(net)
    objective(whole, x).backward()
    for part in x.split(4):
        (objective(net, part) / 2).backward()
    for p, q in zip(net.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    sgd(net, momentum=0.9).step()
    sgd(whole, momentum=0.9).step()
    assert distance(weights(net), weights(whole)) < 1e-12
    assert residual(net) < 1e-12


@each
@engine
@pytest.mark.parametrize("limit", [1e-3, 1e-1])
def test_clipping_bounds_the_tangent_norm(subject: Subject, method: Method, limit: float) -> None:
    """A projection shortens: what `clip_grad_norm_` bounds is at least the norm of the tangent gradient, at a base it
    is that norm, and a step of SGD is no longer than lr times the bound."""
    net, x = subject.constrained(method, dtype=torch.float64), batch().double()
    rebase(net)
    (100 * objective(net, x)).backward()
    tangent = tangent_norm(net)
    total = nn.utils.clip_grad_norm_(net.core.parameters(), limit)
    assert total >= tangent * (1 - 1e-9)
    assert tangent_norm(net) <= limit * (1 + 1e-9)
    before = weights(net)
    sgd(net, lr=1e-3).step()
    moved = torch.stack([(weights(net)[name] - w).norm() for name, w in before.items()]).norm()
    assert 0 < moved <= 1e-3 * limit * 1.01
    assert residual(net) < 1e-12


@each
def test_the_tangent_norm_itself_is_clipped_once_the_normal_part_is_dropped(subject: Subject) -> None:
    """The recipe of the page: the step is the same, and the bound is met exactly."""
    net, x = subject.constrained(Riemannian(), dtype=torch.float64), batch().double()
    twin = copy.deepcopy(net)
    optimizer, other = sgd(net, 1e-5), sgd(twin, 1e-5)
    for model in (net, twin):
        (1e4 * objective(model, x)).backward()
    for group in optimizer.param_groups:
        if group["manifold"] is not None:
            for p in group["params"]:
                p.grad = group["manifold"].project(p.detach(), p.grad)
    assert tangent_norm(net) == pytest.approx(float(tangent_norm(twin)), rel=1e-9)
    limit = float(tangent_norm(net)) / 7
    constrained = [e.owner.get_parameter(e.attribute) for e in held(net)]
    nn.utils.clip_grad_norm_(constrained, limit)
    assert tangent_norm(net) == pytest.approx(limit, rel=1e-6)
    for p in constrained:
        p.grad *= 7
    optimizer.step()
    other.step()
    assert distance(weights(net), weights(twin)) < 1e-7


METRICS = {
    "euclidean": (Stiefel(), (6, 4)),
    "canonical": (Stiefel(metric="canonical"), (6, 4)),
    "canonical, wide": (Stiefel(metric="canonical"), (4, 6)),
    "canonical, square": (Stiefel(metric="canonical"), (5, 5)),
    "a product": (Stiefel(metric="canonical") * Sphere * Euclidean, (18, 4)),
    "SO": (SpecialOrthogonal(), (5, 5)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("case", METRICS)
@pytest.mark.parametrize("optimizer_of", [RiemannianSGD, RiemannianAdam])
def test_the_step_is_the_same_once_the_normal_part_is_dropped(optimizer_of: Any, case: str, dtype: torch.dtype) -> None:
    """The part that `project` drops is orthogonal to all tangent vectors, so that the gradient in no metric has it."""
    manifold, shape = METRICS[case]
    p = nn.Parameter(manifold.random(*shape, dtype=dtype))
    twin = nn.Parameter(p.detach().clone())
    g = torch.randn(*shape, dtype=dtype)
    p.grad, twin.grad = manifold.project(p.detach(), g), g
    start = p.detach().clone()
    for parameter in (p, twin):
        optimizer_of([{"params": [parameter], "manifold": manifold}], lr=0.1).step()
    assert (p - start).abs().max() > 1e-3
    # a few products of sums of at most 18 terms of size 1 differ by rounding; a step is not longer than its vector
    assert (p - twin).abs().max() < 100 * torch.finfo(dtype).eps


def tangent_norm(net: nn.Module) -> Tensor:
    """The norm of the Riemannian gradient of all constrained weights."""
    norms = []
    for e in held(net):
        if isinstance(e.method, Riemannian):
            p: Any = e.owner.get_parameter(e.attribute)
            v = e.manifold.gradient(p.detach(), p.grad)
        else:
            original: Any = e.owner.get_parameter(f"parametrizations.{e.attribute}.original")
            v = e.manifold.project(e.weight, original.grad)
        norms.append(v.norm())
    return torch.stack(norms).norm()


@each
@engine
@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(subject: Subject, method: Method, to_none: bool) -> None:
    net, x = subject.constrained(method), batch()
    twin = copy.deepcopy(net)
    optimizer, other = adam(net), adam(twin)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=to_none)
        objective(net, x).backward()
        optimizer.step()
        train(twin, other, x)
    assert same(bits(net), bits(twin))
    net.zero_grad(set_to_none=to_none)
    assert all((p.grad is None) == to_none for p in net.parameters() if p.requires_grad)
    before = weights(net)
    if to_none:
        optimizer.step()
        assert same(weights(net), before)
    else:
        sgd(net).step()
        assert distance(weights(net), before) < 1e-6


@each
@engine
@optimizers
def test_a_first_gradient_that_comes_late(subject: Subject, method: Method, optimizer_of: Any) -> None:
    """A step without a gradient leaves no trace: afterwards all is as with a new optimizer for that part."""
    net, x = subject.constrained(method), batch()
    twin = copy.deepcopy(net)
    optimizer = optimizer_of(net)
    for _ in range(3):
        optimizer.zero_grad()
        net.head(torch.ones(2, 8)).square().sum().backward()
        optimizer.step()
    assert same(weights(net), weights(twin))
    twin.head.load_state_dict(net.head.state_dict())
    other = optimizer_of(twin)
    train(net, optimizer, x)
    train(twin, other, x)
    assert distance(weights(net), weights(twin)) < 1e-6
    assert residual(net) < 1e-5


# Schedules and groups ---------------------------------------------------------------------------------------------


SCHEDULES = {
    "lambda": (lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)), [1, 1 / 2, 1 / 3, 1 / 4]),
    "step": (lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.1), [1, 1, 0.1, 0.1]),
    "linear": (lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.25, 1.0, 3), [0.25, 0.5, 0.75, 1]),
}


@each
@engine
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_sets_the_rate_of_each_step(subject: Subject, method: Method, schedule: str) -> None:
    make, factors = SCHEDULES[schedule]
    net, x = subject.constrained(method), batch()
    twin = copy.deepcopy(net)
    optimizer, other = adam(net, 0.1), adam(twin, 0.1)
    scheduler = make(optimizer)
    for factor in factors:
        for group in other.param_groups:
            group["lr"] = 0.1 * factor
        train(net, optimizer, x)
        train(twin, other, x)
        scheduler.step()
    assert distance(weights(net), weights(twin)) < 1e-5


@each
@engine
def test_a_rate_of_zero_stands_still(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method), batch()
    optimizer = adam(net)
    train(net, optimizer, x)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = weights(net)
    train(net, optimizer, x)
    assert distance(weights(net), before) < 1e-6


def groups_of(net: Any) -> list[dict[str, Any]]:
    """Two groups: the core, as it is held, and the head."""
    return [*param_groups(net.core), {"params": list(net.head.named_parameters("head"))}]


@each
@engine
def test_groups_have_options_of_their_own(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method), batch()
    groups = groups_of(net)
    for group in groups[:-1]:
        group["lr"] = 0.0
    optimizer = RiemannianAdam(groups, lr=0.1)
    before, head = weights(net), net.head.weight.detach().clone()
    train(net, optimizer, x)
    assert distance(weights(net), before) < 1e-6
    assert (net.head.weight - head).abs().max() > 1e-2


@each
@engine
def test_a_group_added_later_is_trained_from_then_on(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method), batch()
    *core, head = groups_of(net)
    optimizer = RiemannianSGD([head], lr=0.1, momentum=0.9)
    before = weights(net)
    train(net, optimizer, x)
    assert same(weights(net), before)
    for group in core:
        optimizer.add_param_group(group)
    train(net, optimizer, x)
    assert not same(weights(net), before)
    assert residual(net) < 1e-5


@each
@engine
def test_the_state_of_an_optimizer_comes_back_bit_for_bit(subject: Subject, method: Method) -> None:
    """A run that is stopped, saved to a file, loaded into new objects and continued is the run that was not."""
    net, x = subject.constrained(method), batch()
    optimizer = adam(net)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for _ in range(3):
        train(net, optimizer, x)
        scheduler.step()
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    other = subject.constrained(method, seed=9)
    second = adam(other)
    third = torch.optim.lr_scheduler.ExponentialLR(second, 0.9)
    for loaded, state in zip((other, second, third), states, strict=True):
        loaded.load_state_dict(state)
    for _ in range(4):
        train(net, optimizer, x)
        scheduler.step()
        train(other, second, x)
        third.step()
    assert same(bits(other), bits(net))


# Hooks and closures -----------------------------------------------------------------------------------------------


@each
@engine
def test_step_hooks_are_called_around_the_step(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method), batch()
    optimizer = adam(net)
    seen: list[tuple[str, dict[str, Tensor]]] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(("before", weights(net))))
    optimizer.register_step_post_hook(lambda *_: seen.append(("after", weights(net))))
    first = weights(net)
    train(net, optimizer, x)
    assert [name for name, _ in seen] == ["before", "after"]
    assert same(seen[0][1], first)
    # the base of a trivialization may follow after that, and the weight stays to rounding
    assert distance(seen[1][1], weights(net)) <= 32 * torch.finfo(torch.float32).eps
    assert distance(seen[0][1], seen[1][1]) > 1e-4


@each
@engine
def test_a_step_in_the_backward_pass(subject: Subject, method: Method) -> None:
    """One optimizer for each tensor, stepped as soon as its gradient is there."""
    net, x = subject.constrained(method), batch()
    twin = copy.deepcopy(net)
    for group in param_groups(net):
        for _, p in group["params"]:
            options = [{"params": [p], "manifold": group["manifold"]}]
            optimizer = RiemannianSGD(options, lr=0.1)
            p.register_post_accumulate_grad_hook(lambda _, o=optimizer: o.zero_grad(o.step() is None))
    objective(net, x).backward()
    assert all(p.grad is None for p in net.parameters())
    train(twin, sgd(twin, 0.1), x)
    assert distance(weights(net), weights(twin)) < 1e-6


@each
@engine
@optimizers
def test_a_closure_is_a_step(subject: Subject, method: Method, optimizer_of: Any) -> None:
    net, x = subject.constrained(method), batch()
    twin = copy.deepcopy(net)
    optimizer, other = optimizer_of(net), optimizer_of(twin)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(net, x)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(3)]
    assert losses == [train(twin, other, x) for _ in range(3)]
    assert same(bits(net), bits(twin))


@each
def test_lbfgs_trains_coordinates(subject: Subject) -> None:
    net, x = subject.constrained(Trivialization()), batch(16)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(net, x)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert residual(net) < 1e-5


@each
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS, torch.optim.RMSprop])
def test_an_optimizer_that_would_leave_the_manifold_is_refused(subject: Subject, kind: Any) -> None:
    net, x = subject.constrained(Riemannian()), batch()
    optimizer = kind(net.parameters(), lr=0.1)
    before = bits(net)
    objective(net, x).backward()
    with pytest.raises(ValueError, match=r"held on .*constraints\.optim\.Riemannian\w+\(model\)"):
        optimizer.step(lambda: objective(net, x))
    assert same(bits(net), before)


DECAYING: list[Any] = [
    kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and "weight_decay" in inspect.signature(kind).parameters
    and name not in ("SparseAdam", "Muon")
]


@each
@pytest.mark.parametrize("kind", [*DECAYING, RiemannianAdam, RiemannianSGD])
def test_decay_on_coordinates_is_said_once_by_every_optimizer(subject: Subject, kind: Any) -> None:
    """Also of a copy, never without decay, and not of a tensor that is let go."""
    net, x = copy.deepcopy(subject.constrained(Trivialization())), batch()
    coordinates = [e.coordinates.original for e in held(net) if e.coordinates is not None]
    for decay in (0, 0.1):
        extra = {"manifold": None} if kind in (RiemannianAdam, RiemannianSGD) else {}
        optimizer = kind([{"params": coordinates, **extra}], lr=1e-3, weight_decay=decay)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(3):
                train(net, optimizer, x)
        assert [w.category for w in said if "param_groups" in str(w.message)] == [UserWarning] * (decay != 0)
        assert all(
            w.filename == __file__.replace("test_training", "subjects") for w in said if "base" in str(w.message)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, torch.optim.AdamW(param_groups(net), lr=1e-3, weight_decay=0.1), x)
        unconstrain(net, [e.name for e in held(net)])
        train(net, torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1), x)


# Writing into a weight --------------------------------------------------------------------------------------------


@each
@engine
@pytest.mark.parametrize(
    "rule", [nn.init.normal_, nn.init.zeros_, nn.init.xavier_uniform_, nn.init.kaiming_normal_, nn.init.trunc_normal_]
)
def test_an_initializer_is_never_silently_lost_or_off_the_manifold(subject: Subject, method: Method, rule: Any) -> None:
    net, x = subject.constrained(method), batch()
    optimizer = adam(net)
    train(net, optimizer, x)
    for e in held(net):
        rule(getattr(e.owner, e.attribute))
    with pytest.raises(ValueError, match=r"was changed"):
        train(net, optimizer, x)


@each
@engine
def test_an_assigned_point_is_used(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method), batch()
    points = {e.name: e.manifold.random(*e.weight.shape) for e in held(net)}
    for e in held(net):
        if riemannian(net):
            with torch.no_grad():
                getattr(e.owner, e.attribute).copy_(points[e.name])
        else:
            setattr(e.owner, e.attribute, points[e.name])
    assert distance(weights(net), points) < 1e-6
    train(net, adam(net), x)
    assert residual(net) < 1e-5


# Rebasing ---------------------------------------------------------------------------------------------------------


@each
@engine
@optimizers
def test_rebasing_keeps_the_weights_and_momentum_moves_on(subject: Subject, method: Method, optimizer_of: Any) -> None:
    options: dict[str, Any] = {} if optimizer_of is adam else {"momentum": 0.9}
    net, x = subject.constrained(method), batch()
    optimizer = optimizer_of(net, **options)
    for _ in range(3):
        train(net, optimizer, x)
    before, output = weights(net), net(x).detach()
    done = rebase(net, optimizer)
    assert {row.momentum for row in done} <= {"carried"}
    assert [row.name for row in done] == ([] if riemannian(net) else list(before))
    assert distance(weights(net), before) < 1e-5
    torch.testing.assert_close(net(x), output, rtol=1e-5, atol=1e-5)
    if not riemannian(net):
        optimizer.zero_grad()
        for e in held(net):
            original = e.owner.get_parameter(f"parametrizations.{e.attribute}.original")
            original.grad = torch.zeros_like(original)
        before = weights(net)
        optimizer.step()
        assert distance(weights(net), before) > 1e-6  # what is carried is not dropped
    train(net, optimizer, x)
    assert residual(net) < 1e-5


@each
def test_rebasing_by_itself_while_training(subject: Subject) -> None:
    net, x = subject.constrain(subject.plain(), Trivialization(rebase_every=3)), batch(32)
    optimizer = adam(net)
    losses = [train(net, optimizer, x) for _ in range(21)]
    assert losses[-1] < losses[0]
    assert residual(net) < 1e-5
    for e in held(net):
        original = e.owner.get_parameter(f"parametrizations.{e.attribute}.original")
        assert original.count_nonzero() == 0
