"""Checks: copies and files."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch

from .common import Net, X, bits, build, check, equal, expect, moves, off, recurrent
from .entrants import Entrant


@check("each gate of a GRU is orthogonal")
def gates(entrant: Entrant) -> None:
    net = recurrent(entrant)
    expect(max(off(gate) for gate in net.first.weight_hh_l0.chunk(3)) < 1e-4, "the stack is, no gate is")


def _copied(entrant: Entrant, copied: Callable[[Any], Any]) -> None:
    net = build(entrant)
    twin, output = copied(net), net(X).detach()
    expect(equal(twin(X), output), "the copy computes something else")
    moves(entrant, twin)
    expect(equal(net(X), output, 0), "training the copy changes the original")
    other = copied(net)
    entrant.release(net)
    moves(entrant, other)


@check("`copy.deepcopy`")
def deepcopy(entrant: Entrant) -> None:
    _copied(entrant, copy.deepcopy)


@check("`copy.deepcopy` of a GRU after a forward pass")
def deepcopy_gru(entrant: Entrant) -> None:
    net = recurrent(entrant)
    output = net(X)
    expect(equal(copy.deepcopy(net)(X), output), "the copy computes something else")


@check("`pickle`")
def pickled(entrant: Entrant) -> None:
    _copied(entrant, lambda net: pickle.loads(pickle.dumps(net)))


@check("`torch.save(model)`")
def saved(entrant: Entrant) -> None:
    def through_a_file(net: Any) -> Any:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    _copied(entrant, through_a_file)


@check("`state_dict`, strict, into the same model")
def state_dict(entrant: Entrant) -> None:
    net, other = build(entrant), build(entrant, seed=1)
    other.load_state_dict(net.state_dict(), strict=True)
    expect(equal(other(X), net(X)), "it computes something else")
    moves(entrant, other)


@check("a plain checkpoint into a constrained model")
def plain_in(entrant: Entrant) -> None:
    net, other = build(entrant), build(entrant, seed=1)
    output = net(X)
    entrant.release(net)
    other.load_state_dict(net.state_dict(), strict=True)
    expect(equal(other(X), output), "it computes something else")
    moves(entrant, other)


@check("the weights into a plain model, strict")
def plain_out(entrant: Entrant) -> None:
    net, plain = build(entrant), Net()
    output = net(X)
    plain.load_state_dict(entrant.export(net), strict=True)
    expect(equal(plain(X), output), "it computes something else")


@check("let go and held again: the same weight")
def again(entrant: Entrant) -> None:
    net = build(entrant)
    output = net(X)
    entrant.release(net)
    expect(equal(net(X), output), "letting go changes the weight")
    entrant.hold(net, "first.weight")
    expect(equal(net(X), output), "holding it again changes the weight")


@check("a checkpoint with NaN is refused")
def nan_in(entrant: Entrant) -> None:
    _bad_checkpoint(entrant, torch.nan, "NaN is loaded")


@check("a checkpoint off the manifold is refused")
def off_in(entrant: Entrant) -> None:
    _bad_checkpoint(entrant, 0.5, "the weight is off the manifold")


def _bad_checkpoint(entrant: Entrant, what: float, says: str) -> None:
    net, other = build(entrant), build(entrant, seed=1)
    state = net.state_dict()
    held = [key for key in state if key.startswith(("first.weight", "first.parametrizations"))]
    key = next((key for key in held if key.endswith(("base", "base_point"))), held[0])
    state[key] = state[key] + what
    before = bits(other)
    try:
        other.load_state_dict(state)
    except (ValueError, RuntimeError):
        expect(all(map(torch.equal, before, bits(other))), "an error after it was loaded")
        return
    expect(off(other.first.weight) < 1e-4, says)
