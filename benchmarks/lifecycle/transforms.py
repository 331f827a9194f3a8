"""Checks: evaluations, function transforms, compilers, processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parametrize

from .common import LABELS, CostlyError, X, build, check, equal, expect, expect_on, loss, recurrent, train
from .entrants import Entrant, Ours, parametrizations
from .processes import joined, run


@check("a GRU computes its weight once per pass, train and eval")
def once(entrant: Entrant) -> None:
    net, counts = recurrent(entrant), [0]

    def counted(*_: Any) -> None:
        counts[0] += 1

    for _, inner in parametrizations(net):
        if isinstance(entrant, Ours):
            inner.evaluate = _before(inner.evaluate, counted)
        else:
            inner.register_forward_hook(counted)
    for training in (True, False):
        counts[0] = 0
        net.train(training)(X)
        if counts[0] > 1:
            raise CostlyError(f"{counts[0]} times")


def _before(function: Any, first: Callable[[], None]) -> Any:
    def both(*arguments: Any) -> Any:
        first()
        return function(*arguments)

    return both


@check("`parametrize.cached()`")
def cached(entrant: Entrant) -> None:
    net, other = build(entrant), build(entrant)
    with parametrize.cached():
        (loss(net) + loss(net)).backward()
    (loss(other) + loss(other)).backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        if p.requires_grad:
            expect(p.grad is not None and q.grad is not None and equal(p.grad, q.grad), "another gradient")


def _values(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in net.named_parameters()}


@check("`functional_call` and `torch.func.grad`")
def functional(entrant: Entrant) -> None:
    net = build(entrant)
    gradients = grad(lambda values: nn.functional.cross_entropy(functional_call(net, values, (X,)), LABELS))(
        _values(net)
    )
    loss(net).backward()
    for name, p in net.named_parameters():
        if p.requires_grad:
            expect(p.grad is not None and equal(gradients[name], p.grad), "another gradient")


@check("`vmap` over an ensemble")
def ensemble(entrant: Entrant) -> None:
    members = [build(entrant, seed=k) for k in range(3)]
    values, buffers = stack_module_state(members)

    def one(v: Any, b: Any) -> Any:
        return functional_call(members[0], (v, b), (X,))

    outputs = vmap(one)(values, buffers)
    for member, output in zip(members, outputs, strict=True):
        expect(equal(member(X), output), "another output")


@check("second derivatives")
def second(entrant: Entrant) -> None:
    net = build(entrant, dtype=torch.float64)
    values: list[nn.Parameter] = [p for p in net.first.parameters() if p.requires_grad]
    # along entries that have a gradient: what training moves
    along = [
        torch.randn_like(p) * (g != 0) for p, g in zip(values, torch.autograd.grad(loss(net), values), strict=True)
    ]

    def slope() -> Tensor:
        gradients = torch.autograd.grad(loss(net), values, create_graph=True)
        return sum(((g * d).sum() for g, d in zip(gradients, along, strict=True)), torch.zeros((), dtype=torch.float64))

    exact = sum(float((g * d).sum()) for g, d in zip(torch.autograd.grad(slope(), values), along, strict=True))
    ends = []
    for t in (1e-5, -2e-5):
        with torch.no_grad():
            for p, d in zip(values, along, strict=True):
                p.add_(d.as_subclass(Tensor), alpha=t)
        ends.append(float(slope().detach()))
    expect(abs(exact - (ends[0] - ends[1]) / 2e-5) < 1e-4 * (1 + abs(exact)), "another derivative")


@check("`torch.compile(model, fullgraph=True)`")
def compiled(entrant: Entrant) -> None:
    net = build(entrant)
    torch._dynamo.reset()
    fast: Any = torch.compile(net, fullgraph=True, backend="aot_eager")
    expect(equal(fast(X), net(X)), "another output")
    optimizer = entrant.adam(net)
    nn.functional.cross_entropy(fast(X), LABELS).backward()
    optimizer.step()
    expect(equal(fast(X), net(X)), "another output after a step")
    expect_on(net)


@check("a compiled optimizer step")
def compiled_step(entrant: Entrant) -> None:
    net, other = build(entrant), build(entrant)
    torch._dynamo.reset()
    optimizer, plain = entrant.adam(net), entrant.adam(other)

    def stepping() -> None:
        optimizer.step()

    step: Any = torch.compile(stepping, backend="eager")
    for _ in range(2):
        optimizer.zero_grad()
        loss(net).backward()
        step()
        train(other, plain)
    expect_on(net)
    expect(equal(net.first.weight, other.first.weight), "another step")


@check("`torch.export` once it is let go")
def export(entrant: Entrant) -> None:
    net = build(entrant)
    output = net(X)
    entrant.release(net)
    program = torch.export.export(net, (X,))
    expect(equal(program.module()(X), output), "another output")


@check("`DistributedDataParallel`, two processes, as one on the joined batch")
def distributed(entrant: Entrant) -> None:
    weights = run(entrant)
    expect(equal(weights[0], weights[1], 1e-9), "the processes differ")
    expect(equal(weights[0], joined(entrant), 1e-7), "another weight than one process has")
