"""Checks: a training loop and what belongs to it."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from .common import Net, build, check, equal, expect, expect_on, loss, moves, train
from .entrants import Entrant


@check("frozen, and trained again")
def freeze(entrant: Entrant) -> None:
    net = build(entrant)
    optimizer = entrant.adam(net)
    net.first.requires_grad_(False)
    before = net.first.weight.detach().clone()
    train(net, optimizer)
    expect(equal(net.first.weight, before, 0), "a frozen weight moves")
    net.first.requires_grad_(True)
    moves(entrant, net)


@check("gradients accumulate")
def accumulate(entrant: Entrant) -> None:
    net = build(entrant, dtype=torch.float64)
    whole = build(entrant, dtype=torch.float64)
    loss(whole).backward()
    (loss(net) / 2).backward()
    (loss(net) / 2).backward()
    for one in (net, whole):
        entrant.adam(one).step()
    expect(equal(net.first.weight, whole.first.weight, 1e-9), "another weight than in one step")


@check("`clip_grad_norm_` bounds the step")
def clip(entrant: Entrant) -> None:
    net = build(entrant)
    (1e3 * loss(net)).backward()
    nn.utils.clip_grad_norm_(net.first.parameters(), 1e-6)
    before = net.first.weight.detach().clone()
    entrant.adam(net, 1.0, eps=1.0).step()
    expect(0 < (net.first.weight - before).norm() < 1e-5, "the step is not bounded")


@check("a schedule, groups, a group added later")
def groups(entrant: Entrant) -> None:
    net = build(entrant)
    kind: Any = type(entrant.adam(net))
    optimizer = kind([{"params": list(net.last.parameters())}], lr=0.05)
    before = net.first.weight.detach().clone()
    train(net, optimizer)
    expect(equal(net.first.weight, before, 0), "it is moved by an optimizer that does not have it")
    for p in net.first.parameters():
        optimizer.add_param_group(entrant.group(p, net.first))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: float(k == 0))
    train(net, optimizer)
    expect(not equal(net.first.weight, before, 1e-4), "a group added later is not trained")
    schedule.step()
    before = net.first.weight.detach().clone()
    train(net, optimizer)
    expect(equal(net.first.weight, before, 1e-6), "it moves at rate 0")
    expect_on(net)


@check("a run resumed from files is the run, bit for bit")
def resume(entrant: Entrant) -> None:
    net, other = build(entrant), build(entrant, seed=1)
    optimizer, second = entrant.adam(net), entrant.adam(other)
    for _ in range(3):
        train(net, optimizer)
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    other.load_state_dict(states[0])
    second.load_state_dict(states[1])
    for _ in range(3):
        train(net, optimizer)
        train(other, second)
    expect(equal(net.first.weight, other.first.weight, 1e-3), "the run goes another way")
    expect(equal(net.first.weight, other.first.weight, 0), "equal to rounding only")


@check("step hooks and a closure")
def hooks(entrant: Entrant) -> None:
    net = build(entrant)
    seen: list[str] = []
    optimizer = entrant.adam(net)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> Any:
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        seen.append("closure")
        return value

    value: Any = optimizer.step(closure)
    expect(value is not None and seen == ["before", "closure", "after"], "called in another order")
    expect_on(net)


@check("a first gradient that comes late")
def late(entrant: Entrant) -> None:
    net = build(entrant)
    optimizer = entrant.adam(net)
    for _ in range(2):
        optimizer.zero_grad()
        net.last(torch.ones(2, 10)).sum().backward()
        before = net.first.weight.detach().clone()
        optimizer.step()
        expect(equal(net.first.weight, before, 0), "it moves without a gradient")
    train(net, optimizer)
    expect_on(net)


@check("a plain `torch.optim.AdamW`, with decay")
def foreign(entrant: Entrant) -> None:
    net = build(entrant)
    optimizer = torch.optim.AdamW(net.parameters(), 0.05, weight_decay=0.5)
    for _ in range(20):
        train(net, optimizer)
    expect_on(net)


@check("`torch.nn.init` on the weight")
def init(entrant: Entrant) -> None:
    net = build(entrant)
    before = net.first.weight.detach().clone()
    nn.init.normal_(net.first.weight)
    optimizer = entrant.adam(net, 0.0)
    train(net, optimizer)
    expect(not equal(net.first.weight, before, 1e-3), "nothing happens")
    expect_on(net)


@check("two layers with one weight")
def tied(entrant: Entrant) -> None:
    net = Net()
    net.other = nn.Linear(6, 10)
    net.other.weight = net.first.weight
    entrant.hold(net, "first.weight")
    expect(equal(net.first.weight, net.other.weight, 1e-6), "the tie is cut")


@check("another parametrization is there already")
def weight_norm(entrant: Entrant) -> None:
    net = Net()
    nn.utils.parametrizations.weight_norm(net.first)
    entrant.hold(net, "first.weight")
    expect_on(net)


@check("the base moves, and the weight does not")
def rebase(entrant: Entrant) -> None:
    net = build(entrant)
    optimizer = entrant.adam(net)
    for _ in range(3):
        train(net, optimizer)
    before = net.first.weight.detach().clone()
    entrant.rebase(net, optimizer)
    expect(equal(net.first.weight, before), "the weight changes")
    train(net, optimizer)
    expect_on(net)


@check("an `AveragedModel` (EMA) is on the manifold")
def average(entrant: Entrant) -> None:
    net = build(entrant)
    mean: Any = AveragedModel(net, avg_fn=get_ema_avg_fn(0.8))
    optimizer = entrant.adam(net, 0.3)
    for _ in range(5):
        train(net, optimizer)
        mean.update_parameters(net)
    expect_on(mean.module)
