"""Checks: dtypes, autocast, scaled losses."""

from __future__ import annotations

import torch

from .common import build, check, equal, expect, expect_on, loss, moves, off, train
from .entrants import Entrant


@check("`.double()`")
def double(entrant: Entrant) -> None:
    net = build(entrant).double()
    moves(entrant, net)
    expect(net.first.weight.dtype == torch.float64, "another dtype")


@check("`.bfloat16()`, and 30 small steps")
def bfloat16(entrant: Entrant) -> None:
    net = build(entrant).bfloat16()
    before = net.first.weight.detach().clone()
    optimizer = entrant.adam(net, 1e-3)
    for _ in range(30):
        train(net, optimizer)
    expect(net.first.weight.dtype == torch.bfloat16, "another dtype")
    expect(off(net.first.weight) < 4 * torch.finfo(torch.bfloat16).eps, "the weight is off the manifold")
    expect(not equal(net.first.weight, before, 0), "the steps are lost")


@check("autocast, `backward` in it too")
def autocast(entrant: Entrant) -> None:
    net = build(entrant)
    optimizer = entrant.adam(net)
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            optimizer.zero_grad()
            loss(net).backward()
            expect_on(net, 1e-4)
            optimizer.step()
    expect_on(net, 1e-5)


@check("`GradScaler` leaves out an infinite step")
def scaler(entrant: Entrant) -> None:
    net = build(entrant)
    optimizer, scale = entrant.adam(net), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for i in range(3):
        optimizer.zero_grad()
        scale.scale(loss(net)).backward()
        before = net.first.weight.detach().clone()
        if i == 1:
            gradients = [p.grad for p in net.first.parameters() if p.grad is not None]
            gradients[0].flatten()[0] = torch.inf
        scale.step(optimizer)
        scale.update()
        expect(equal(net.first.weight, before, 1e-7) == (i == 1), "the wrong step is left out")
    expect_on(net)
