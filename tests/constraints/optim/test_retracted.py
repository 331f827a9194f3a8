"""Retracted: any optimizer of torch's kind, on manifolds."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from constraints import Riemannian, constrain, param_groups, report
from constraints.optim import Retracted, RiemannianAdam, RiemannianSGD
from constraints.optim.step import bucket
from manifolds import (
    BlockSpec,
    Euclidean,
    Manifold,
    Oblique,
    Orthogonal,
    PositiveDefinite,
    ProductManifold,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    retractions,
)

PATTERN = BlockSpec.pattern("(head qkv d) e -> (head qkv) d e", head=2, qkv=3)
HELD: dict[str, tuple[Any, tuple[int, ...]]] = {
    "gates": (Stiefel() ** 3, (12, 4)),
    "tall": (Stiefel(), (9, 4)),
    "wide": (Stiefel(), (4, 9)),
    "qr": (Stiefel(retraction=retractions.qr), (9, 4)),
    "canonical": (Stiefel(metric="canonical"), (9, 4)),
    "mixed": (Stiefel * Euclidean**2, (12, 4)),
    "pattern": (ProductManifold((Stiefel, Sphere, Euclidean) * 2, PATTERN), (12, 4)),
    "stack": (SpecialOrthogonal(), (5, 3, 3)),
    "many tiny": (SpecialOrthogonal(), (1024, 3, 3)),
    "rows": (Sphere(), (6, 3)),
    "columns": (Oblique(), (6, 3)),
    "definite": (PositiveDefinite(), (3, 3)),
}
KINDS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.02),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.02, momentum=0.5),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.005, t0=2),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
}


class Lion(Optimizer):
    """x <- x - lr (sign(b1 m + (1 - b1) g) + lambda x), m <- b2 m + (1 - b2) g; Chen et al. (2023), algorithm 2."""

    def __init__(self, params: Any, lr: float = 0.01, decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.add_((0.9 * m + 0.1 * p.grad).sign(), alpha=-group["lr"])
                    m.lerp_(p.grad, 0.01)


class ScheduleFree(Optimizer):
    """z <- z - lr g, x the mean of the z, trained at y = 0.1 z + 0.9 x; Defazio et al. (2024), equations 5 to 7."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "k": 1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                x = (p - 0.1 * z) / 0.9
                z.sub_(p.grad, alpha=group["lr"])
                x.lerp_(z, 1 / (group["k"] + 1))
                p.copy_(0.1 * z + 0.9 * x)
            group["k"] += 1

    @torch.no_grad()
    def eval(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_((p - 0.1 * self.state[p]["z"]) / 0.9)

    @torch.no_grad()
    def train(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(0.9 * p + 0.1 * self.state[p]["z"])


def point(
    manifold: Manifold, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0
) -> nn.Parameter:
    return nn.Parameter(manifold.random(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def groups(manifold: Manifold, *points: nn.Parameter) -> list[dict[str, Any]]:
    return [{"params": list(points), "manifold": manifold}]


def steps(optimizer: Any, params: list[nn.Parameter], first: int, last: int) -> None:
    for i in range(first, last):
        generator = torch.Generator().manual_seed(i)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


@pytest.mark.parametrize("kind", [*KINDS.values(), Lion], ids=[*KINDS, "Lion"])
def test_free_tensors_move_as_the_optimizer_moves_them(kind: Any) -> None:
    """Bit for bit, beside held ones."""
    start = [torch.randn(4, 3), torch.randn(5, dtype=torch.float64), torch.randn(2, 2).bfloat16()]
    ours, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    held = point(Stiefel(), (4, 4))
    optimizer = Retracted(kind([*groups(Stiefel(), held), {"params": ours}]))
    steps(optimizer, [*ours, held], 0, 10)
    steps(kind(theirs), theirs, 0, 10)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("said", [{"foreach": True}, {"foreach": False}, {"fused": False}], ids=str)
def test_the_way_of_an_update_is_chosen_where_nothing_is_said(kind: Any, said: dict[str, bool]) -> None:
    """Adam of held tensors on CPU is the fused one, which is another by rounding; options and state are as without."""
    x = point(Stiefel(), (3, 5, 4), torch.float32)
    ways: list[tuple[nn.Parameter, Any]] = []
    for options in ({}, {"fused": True}, said):
        p = nn.Parameter(x.detach().clone())
        optimizer = Retracted(kind(groups(Stiefel(), p), lr=0.1, **options))
        steps(optimizer, [p], 0, 8)
        assert optimizer.param_groups[0]["fused"] is options.get("fused")
        ways.append((p, optimizer.state[p]))
    (chosen, state), (one, _), (other, others) = ways
    assert torch.equal(chosen, one)
    assert not torch.equal(chosen, other)
    # m and v are a few roundings off, and what of a gradient nearly cancels is divided by its own size
    torch.testing.assert_close(chosen, other, rtol=0, atol=1e-5)
    assert {key: (v.dtype, v.shape) for key, v in state.items()} == {
        key: (v.dtype, v.shape) for key, v in others.items()
    }


def test_an_error_leaves_what_was_said_of_the_way() -> None:
    """And state that was counted in float64 goes on as it was."""
    p = point(Stiefel(), (5, 4), torch.float32)
    optimizer = Retracted(torch.optim.AdamW(groups(Stiefel(), p), lr=0.1))
    seen = []

    def fail(inner: Optimizer, *_: Any) -> None:
        seen.append(inner.param_groups[0]["fused"])
        raise RuntimeError("no")

    hook = optimizer.inner.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        steps(optimizer, [p], 0, 1)
    hook.remove()
    assert (seen, optimizer.param_groups[0]["fused"]) == ([True], None)
    steps(optimizer, [p], 0, 1)
    optimizer.state[p]["step"] = optimizer.state[p]["step"].double()
    steps(optimizer, [p], 1, 2)
    assert optimizer.state[p]["step"].dtype == torch.float64


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True, "maximize": True}, {"momentum": 0.9, "dampening": 0.3}],
    ids=str,
)
def test_sgd_retracted_is_riemannian_sgd(held: str, options: dict[str, Any]) -> None:
    """x <- R_x(-lr m), m the transported momentum: one formula, two ways."""
    manifold, shape = HELD[held]
    ours, theirs = point(manifold, shape), point(manifold, shape)
    steps(Retracted(torch.optim.SGD(groups(manifold, ours), lr=0.02, **options)), [ours], 0, 4)
    steps(RiemannianSGD(groups(manifold, theirs), lr=0.02, **options), [theirs], 0, 4)
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("held", HELD)
def test_a_step_is_projected_and_retracted(held: str) -> None:
    """x <- R_x(P_x(x' - x)), whatever the optimizer: here RMSprop, of the Riemannian gradient."""
    manifold, shape = HELD[held]
    if held in ("gates", "stack", "many tiny", "definite"):
        pytest.skip("in coordinates, by another map: the row above, and test_own_metric.py")
    x = point(manifold, shape)
    old, free = x.detach().clone(), nn.Parameter(x.detach().clone())
    x.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    free.grad = manifold.gradient(old, x.grad)
    torch.optim.RMSprop([free], lr=0.01, eps=1.0).step()
    Retracted(torch.optim.RMSprop(groups(manifold, x), lr=0.01, eps=1.0)).step()
    expected = manifold.retract(old, manifold.project(old, free.detach() - old))
    torch.testing.assert_close(x.detach(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("kind", ["AdamW", "RMSprop", "ASGD"])
def test_residual_is_rounding_after_many_steps(held: str, kind: str) -> None:
    """Whatever the optimizer adds to the weights. The bound: the error of a step or a polish, a few sqrt(n) eps."""
    manifold, shape = HELD[held]
    p = point(manifold, shape, torch.float32)
    steps(Retracted(KINDS[kind](groups(manifold, p))), [p], 0, 20 if held == "many tiny" else 200)
    assert manifold.residual(p.detach()).max() <= 32 * torch.finfo(p.dtype).eps


def test_complex_points() -> None:
    p = point(Orthogonal(), (3, 4, 4), torch.complex64)
    steps(Retracted(torch.optim.AdamW(groups(Orthogonal(), p), lr=0.02)), [p], 0, 50)
    assert Orthogonal().residual(p.detach()).max() <= 32 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("kind", [*KINDS.values(), Lion, ScheduleFree], ids=[*KINDS, "Lion", "ScheduleFree"])
def test_state_is_that_of_the_point(kind: Any) -> None:
    """First moments are tangent, a second point is a point, `.grad` is what it was."""
    manifold = Stiefel()
    p = point(manifold, (6, 3))
    optimizer = Retracted(kind(groups(manifold, p)))
    steps(optimizer, [p], 0, 5)
    expected = torch.randn(p.shape, generator=torch.Generator().manual_seed(4), dtype=p.dtype)
    assert torch.equal(p.grad, expected)
    for key, value in optimizer.state[p].items():
        if key in ("exp_avg", "momentum_buffer"):
            torch.testing.assert_close(manifold.project(p.detach(), value), value, rtol=1e-12, atol=1e-13)
        if key in ("z", "ax"):
            assert manifold.residual(value).max() < 1e-12


def build(kind: Any) -> tuple[nn.Module, Retracted]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 6), nn.Linear(4, 4))
    constrain(net, "0.weight_hh_l0", Orthogonal**3, Riemannian(), init="haar")
    constrain(net, ["1.weight", "2.weight"], Stiefel(), Riemannian())
    return net, Retracted(kind(param_groups(net)))


def through_a_file(net: nn.Module, optimizer: Retracted, kind: Any) -> tuple[nn.Module, Retracted]:
    stream = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    again, other = build(kind)
    again.load_state_dict(saved["net"])
    other.load_state_dict(saved["optimizer"])
    return again, other


WAYS: dict[str, Any] = {
    "file": through_a_file,
    "deepcopy": lambda net, optimizer, kind: copy.deepcopy((net, optimizer)),
    "pickle": lambda net, optimizer, kind: pickle.loads(pickle.dumps((net, optimizer))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_bit_for_bit(kind: str, way: str) -> None:
    net, optimizer = build(KINDS[kind])
    steps(optimizer, list(net.parameters()), 0, 4)
    again, other = WAYS[way](net, optimizer, KINDS[kind])
    for each, by in ((net, optimizer), (again, other)):
        steps(by, list(each.parameters()), 4, 8)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert all(record.ok for record in report(again))


# Steps of papers -----------------------------------------------------------------------------------------------------


def test_stella() -> None:
    """Algorithm 1 of arXiv 2510.01938, written out: U <- polar(U + P_U(U' - U)), U' by Adam of G - U G^T U."""
    start = point(Stiefel(), (8, 3)).detach()
    u, ours = start.clone(), nn.Parameter(start.clone())
    canonical = Stiefel(metric="canonical", retraction=retractions.polar)
    optimizer = Retracted(torch.optim.Adam(groups(canonical, ours), lr=0.05), carry=False)
    m = v = torch.zeros_like(u)
    for t in range(1, 21):
        g = torch.randn(u.shape, generator=torch.Generator().manual_seed(t), dtype=u.dtype)
        ours.grad = g.clone()
        optimizer.step()
        h = g - u @ g.T @ u
        m, v = 0.9 * m + 0.1 * h, 0.999 * v + 0.001 * h**2
        d = -0.05 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        tangent = d - u @ (u.T @ d + d.T @ u) / 2
        left, _, right = torch.linalg.svd(u + tangent, full_matrices=False)
        u = left @ right
    torch.testing.assert_close(ours.detach(), u, rtol=1e-11, atol=1e-12)


def hyperball(manifold: Manifold, x: Tensor, d: Tensor, lr: float) -> Tensor:
    """R normalize(x + lr R normalize(d))."""
    r = manifold.radius  # type: ignore[attr-defined]
    return manifold.nearest(x + lr * r * d / d.norm(dim=(-2, -1), keepdim=True))  # type: ignore[attr-defined]


def test_hyperball() -> None:
    """arXiv 2606.16899: W <- R normalize(W - eta R normalize(u)), u of Adam, R = |W_0|."""
    start = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    r = start.norm().item()
    w, ours, theirs = start.clone(), nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ball = Sphere(radius=r, ndim=2)
    optimizer = Retracted(
        torch.optim.Adam(groups(ball, ours), lr=0.03), gradient=lambda manifold, x, g: g, move=hyperball, carry=False
    )
    adam = torch.optim.Adam([theirs], lr=1.0)
    for t in range(20):
        g = torch.randn(w.shape, generator=torch.Generator().manual_seed(t), dtype=w.dtype)
        ours.grad, theirs.grad = g.clone(), g.clone()
        optimizer.step()
        before = theirs.detach().clone()
        adam.step()
        u = before - theirs.detach()
        w = w - 0.03 * r * u / u.norm()
        w = r * w / w.norm()
    torch.testing.assert_close(ours.detach(), w, rtol=1e-12, atol=1e-12)


# What trains uses ----------------------------------------------------------------------------------------------------


def test_schedule_free_has_two_points() -> None:
    """The trained one and the mean, both on the manifold; `train` comes back bit for bit."""
    p, free = point(Sphere(), (4, 3)), nn.Parameter(torch.ones(3))
    optimizer = Retracted(ScheduleFree([*groups(Sphere(), p), {"params": [free]}]))
    steps(optimizer, [p, free], 0, 8)
    trained = p.detach().clone()
    optimizer.eval()
    assert not torch.equal(p.detach(), trained)
    assert Sphere().contains(p.detach()).all()
    optimizer.train()
    assert torch.equal(p.detach(), trained)


def test_closures_schedulers_and_scalers() -> None:
    torch.manual_seed(0)
    net = constrain(nn.Linear(6, 4), "weight", Stiefel(), Riemannian())
    optimizer = Retracted(torch.optim.AdamW(param_groups(net), lr=0.1))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=10)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = net(torch.eye(6)).square().sum() + net.bias.sum()
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]
    scheduler.step()
    assert optimizer.inner.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] < 0.05
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = net.weight.detach().clone()
    optimizer.zero_grad()
    scaler.scale(net(torch.eye(6)).tanh().sum() * torch.tensor(float("inf"))).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(net.weight.detach(), before)
    optimizer.zero_grad()
    scaler.scale(net(torch.eye(6)).tanh().sum()).backward()
    scaler.step(optimizer)
    assert not torch.equal(net.weight.detach(), before)
    assert report(net)[0].ok


@pytest.mark.parametrize("held", ["gates", "tall", "many tiny", "mixed", "definite"])
def test_nothing_moves_at_rate_zero(held: str) -> None:
    manifold, shape = HELD[held]
    p = point(manifold, shape)
    before = p.detach().clone()
    steps(Retracted(torch.optim.AdamW(groups(manifold, p), lr=0.0)), [p], 0, 3)
    assert torch.equal(p.detach(), before)


def test_coordinates_follow_as_under_the_optimizer_alone() -> None:
    """The base of a trivialization moves with the moments of torch's optimizer, once."""
    weights = []
    for wrap in (lambda optimizer: optimizer, Retracted):
        torch.manual_seed(0)
        net = constrain(nn.Linear(4, 4), "weight", Orthogonal(), init="haar")
        optimizer = wrap(torch.optim.Adam(param_groups(net), lr=0.3))
        for _ in range(12):
            optimizer.zero_grad()
            (net.weight * torch.arange(16.0).view(4, 4)).sum().backward()
            optimizer.step()
        weights.append((net.weight.detach(), net.parametrizations.weight[0].base.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("held", ["tall", "rows", "gates"])
def test_where_looking_would_stall_a_bad_factor_is_left(held: str, monkeypatch: Any) -> None:
    """As on an accelerator: it stays where it is, is counted, and moves on with the next gradient."""
    manifold, shape = HELD[held]
    monkeypatch.setattr(bucket, "can_look", lambda device: False)
    p = point(manifold, shape, torch.float32)
    optimizer = Retracted(torch.optim.AdamW(groups(manifold, p), lr=0.02))
    steps(optimizer, [p], 0, 2)
    before = p.detach().clone()
    p.grad[0, 0] = float("nan")
    optimizer.step()
    whole = held == "tall"
    assert torch.equal(p.detach()[:1], before[:1])
    assert torch.equal(p.detach(), before) == whole
    assert optimizer.skipped == copy.deepcopy(optimizer).skipped == 1
    steps(optimizer, [p], 3, 5)
    assert not torch.equal(p.detach()[:1], before[:1])
    assert manifold.contains(p.detach()).all()


# Refusals ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_wrapped() -> None:
    net, _ = build(KINDS["SGD"])
    with pytest.raises(TypeError, match=r"Retracted takes an optimizer.*got a Sequential\."):
        Retracted(net)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got the class AdamW\."):
        Retracted(torch.optim.AdamW)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Write RiemannianLBFGS\(model\)\."):
        Retracted(torch.optim.LBFGS(list(net.parameters())))
    with pytest.raises(ValueError, match="RiemannianAdam keeps manifolds by itself"):
        Retracted(RiemannianAdam(net))
    hiding = type("ZeroRedundancyOptimizer", (torch.optim.SGD,), {})  # torch's needs processes
    with pytest.raises(ValueError, match=r"Cut the model by fully_shard and take RiemannianAdam\(model\)"):
        Retracted(hiding(param_groups(net)))
    with pytest.raises(ValueError, match=r"without a manifold\. Write Retracted\(AdamW\(param_groups\(model\)\)\)"):
        Retracted(torch.optim.AdamW(net.parameters()))
    with pytest.raises(ValueError, match="is not on Stiefel"):
        Retracted(torch.optim.SGD(groups(Stiefel(), nn.Parameter(torch.ones(3, 2)))))


def test_an_optimizer_may_take_its_options_by_any_names() -> None:
    class Given(torch.optim.SGD):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)

    net, _ = build(KINDS["SGD"])
    Retracted(Given(param_groups(net), lr=1e-2))
    with pytest.warns(UserWarning, match="weight_decay does nothing on"):
        Retracted(Given(param_groups(net), lr=1e-2, weight_decay=0.1))


def test_half_precision_is_refused_by_name() -> None:
    net, _ = build(KINDS["SGD"])
    net.bfloat16()
    with pytest.raises(ValueError, match=r"0\.weight_hh_l0 has dtype torch\.bfloat16.*Keep the model in float32"):
        Retracted(torch.optim.SGD(param_groups(net)))
    net, optimizer = build(KINDS["SGD"])
    net.bfloat16()
    with pytest.raises(ValueError, match="float32 master"):
        steps(optimizer, list(net.parameters()), 0, 1)


def test_what_is_wrong_with_a_gradient_changes_nothing() -> None:
    net, optimizer = build(KINDS["AdamW"])
    steps(optimizer, list(net.parameters()), 0, 2)
    before, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    net[1].weight.grad[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"gradient of 1\.weight, shape \(6, 4\), has NaN"):
        optimizer.step()
    net[1].weight.grad = net[1].weight.detach().to_sparse(1)
    with pytest.raises(ValueError, match=r"sparse layout.*RiemannianAdam"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    torch.testing.assert_close(state["state"], optimizer.state_dict()["state"], rtol=0, atol=0)


class Fails(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        super().step()
        raise KeyError("late")


def test_an_error_of_the_optimizer_leaves_points_and_gradients() -> None:
    p = point(Stiefel(), (5, 2))
    before = p.detach().clone()
    with pytest.raises(KeyError):
        steps(Retracted(Fails(groups(Stiefel(), p), lr=0.1)), [p], 0, 1)
    assert torch.equal(p.detach(), before)
    assert torch.equal(p.grad, torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=p.dtype))


def test_the_optimizer_alone_is_refused_and_added_groups_are_checked() -> None:
    net, optimizer = build(KINDS["SGD"])
    steps(optimizer, list(net.parameters()), 0, 1)
    with pytest.raises(ValueError, match="a step of SGD would leave the manifold"):
        optimizer.inner.step()
    with pytest.raises(ValueError, match="is not on Sphere"):
        optimizer.add_param_group({"params": [("off", nn.Parameter(torch.ones(3)))], "manifold": Sphere})
    optimizer.add_param_group({"params": [("added", added := point(Sphere(), (3,)))], "manifold": Sphere})
    steps(optimizer, [*net.parameters(), added], 0, 3)
    assert Sphere().contains(added.detach())
    other = Retracted(torch.optim.SGD(groups(Sphere(), added), lr=0.1))
    with pytest.raises(ValueError, match="group 0 holds its parameters on Sphere"):
        Retracted(torch.optim.SGD(groups(Sphere(2.0), point(Sphere(2.0), (3,))))).load_state_dict(other.state_dict())
