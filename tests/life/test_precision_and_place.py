"""A model changes its dtype or its device, and trains under autocast and with a scaled loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from constraints import rebase
from constraints.method import Method

from .subjects import Subject, adam, batch, bits, each, engine, objective, residual, sgd, train, weights

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


@each
@engine
def test_to_double_and_back(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method), batch()
    before, output = weights(net), net(x).detach()
    assert net.double() is net
    assert {w.dtype for w in weights(net).values()} == {torch.float64}
    torch.testing.assert_close(net(x.double()).float(), output, rtol=1e-5, atol=1e-6)
    optimizer = adam(net)
    for _ in range(3):
        train(net, optimizer, x.double())
    assert residual(net) < 1e-5
    rebase(net)
    assert residual(net) < 1e-10
    net = subject.constrained(method).double().float()
    assert {w.dtype for w in weights(net).values()} == {torch.float32}
    for name, weight in weights(net).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-6)


@each
@engine
def test_double_from_the_start_is_as_good_as_double(subject: Subject, method: Method) -> None:
    net = subject.constrained(method, dtype=torch.float64)
    optimizer = adam(net)
    for _ in range(5):
        train(net, optimizer, batch().double())
    assert residual(net) < 1e-13


@each
@engine
@HALF
@pytest.mark.parametrize("way", ["to", "method"])
def test_half_precision_trains_and_rounds_a_point(
    subject: Subject, method: Method, dtype: torch.dtype, way: str
) -> None:
    """The weight is a point rounded once: never further off than the rounding of its entries."""
    net: Any = subject.constrained(method)
    single = copy.deepcopy(net)
    if way == "to":
        net.to(dtype)
    else:
        net = net.half() if dtype == torch.float16 else net.bfloat16()
    x = batch(16).to(dtype)
    optimizer, in_single = sgd(net, 0.3), sgd(single, 0.3)
    first = objective(single, x.float())
    assert objective(net, x).dtype == dtype
    for _ in range(40):
        train(net, optimizer, x)
        train(single, in_single, x.float())
        assert {w.dtype for w in weights(net).values()} == {dtype}
        assert residual(net) < 4 * torch.finfo(dtype).eps
    reached = objective(copy.deepcopy(net).float(), x.float())  # the loss in half precision is rounded, too
    assert first - reached > (first - objective(single, x.float())) / 2 > 0.01


@each
@engine
@HALF
def test_small_steps_are_not_lost_in_half_precision(subject: Subject, method: Method, dtype: torch.dtype) -> None:
    """Each step is below half a unit in the last place of most entries; only a float32 master adds them up."""
    net, exact = subject.constrained(method), subject.constrained(method)
    net.to(dtype)
    x, start = batch(), weights(exact)
    first, second = sgd(net, 1e-4), sgd(exact, 1e-4)
    torch.manual_seed(3)
    slopes = [torch.randn_like(p) for p in exact.parameters()]
    for _ in range(200):
        for model, optimizer in ((net, first), (exact, second)):
            for p, slope in zip(model.parameters(), slopes, strict=True):
                p.grad = slope.to(p.dtype) if p.requires_grad else None
            optimizer.step()
    for name, weight in weights(exact).items():
        moved = (weight - start[name]).norm()
        assert (weights(net)[name].float() - weight).norm() < 0.5 * moved
    net(x.to(dtype))


@each
@engine
def test_autocast_leaves_the_geometry_exact(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method), batch(16)
    optimizer = adam(net)
    for _ in range(10):
        with torch.autocast("cpu", torch.bfloat16):
            objective(net, x).backward()
            optimizer.step()
            inside = weights(net)
        optimizer.zero_grad()
        for name, weight in weights(net).items():
            torch.testing.assert_close(inside[name], weight, rtol=0, atol=1e-6)
        assert residual(net) < 1e-5
    assert {w.dtype for w in weights(net).values()} == {torch.float32}


@each
@engine
def test_a_scaled_loss_is_the_same_training(subject: Subject, method: Method) -> None:
    """A scale that is a power of two changes no bit; a step with an infinite gradient is left out."""
    net, plain, x = subject.constrained(method), subject.constrained(method), batch(16)
    optimizer, other = adam(net), adam(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i in range(4):
        optimizer.zero_grad()
        scaler.scale(objective(net, x)).backward()
        if i == 2:
            next(iter(net.core.parameters())).grad.flatten()[0] = torch.inf
            before = bits(net)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if i == 2:
            assert all(torch.equal(before[k], v) for k, v in bits(net).items())
        else:
            train(plain, other, x)
    assert scaler.get_scale() == 2.0**9
    for name, value in bits(plain).items():
        torch.testing.assert_close(bits(net)[name], value, rtol=1e-5, atol=1e-6)


@each
@engine
def test_to_meta_keeps_shapes_and_constraints(subject: Subject, method: Method) -> None:
    net = subject.constrained(method)
    shapes = {name: weight.shape for name, weight in weights(net).items()}
    net.to("meta")
    assert all(t.is_meta for t in [*net.parameters(), *net.buffers()])
    assert {name: weight.shape for name, weight in weights(net).items()} == shapes
    assert [row.is_meta for row in weights(net).values()] == [True] * len(shapes)


@each
@engine
def test_memory_without_values_may_hold_anything(
    subject: Subject, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = subject.constrained(method), batch()
    state, output = bits(net), net(x).detach()
    net.to("meta")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda t, **options: torch.full_like(t, torch.nan, **options))
        net.to_empty(device="cpu")
    assert net.head.weight.isnan().all()
    net.load_state_dict(state)
    assert torch.equal(net(x), output)


@each
@engine
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_to_cuda_and_back(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method), batch()
    output = net(x).detach()
    net.cuda()
    assert all(t.is_cuda for t in [*net.parameters(), *net.buffers()])
    torch.testing.assert_close(net(x.cuda()).cpu(), output, rtol=1e-3, atol=1e-4)
    train(net, adam(net), x.cuda())
    assert residual(net.cpu()) < 1e-5
    assert net(x).isfinite().all()


@each
@engine
def test_a_module_on_the_meta_device_is_refused(subject: Subject, method: Method) -> None:
    with torch.device("meta"):
        net = subject.plain()
    with pytest.raises(ValueError, match=r"has no value yet"):
        subject.constrain(net, method)


@each
@engine
def test_another_memory_format_keeps_the_weight(subject: Subject, method: Method) -> None:
    net: nn.Module = subject.constrained(method)
    x = batch()
    output = net(x).detach()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(net(x), output, rtol=1e-5, atol=1e-6)
    optimizer = adam(net)
    for _ in range(3):
        train(net, optimizer, x)
    assert residual(net) < 1e-5
