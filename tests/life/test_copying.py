"""A model is copied: at any time, and the copy is a model of its own."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from constraints import report, unconstrain
from constraints.method import Method

from .subjects import Subject, adam, batch, bits, each, engine, memory, objective, recurrent, residual, same, train


def deepcopied(net: nn.Module) -> Any:
    return copy.deepcopy(net)


def pickled(net: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(net))


def saved(net: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


ways = pytest.mark.parametrize("copied", [deepcopied, pickled, saved])


def after_nothing(net: Any, x: Tensor) -> None: ...


def after_forward(net: Any, x: Tensor) -> None:
    net(x)


def after_backward(net: Any, x: Tensor) -> None:
    objective(net, x).backward()


def after_evaluation(net: Any, x: Tensor) -> None:
    net.eval()
    with torch.no_grad():
        net(x)
    net.train()


def after_a_cache(net: Any, x: Tensor) -> None:
    with parametrize.cached():
        net(x)


moments = pytest.mark.parametrize(
    "moment", [after_nothing, after_forward, after_backward, after_evaluation, after_a_cache]
)


@each
@engine
@ways
@moments
def test_a_copy_is_equal_and_its_own(subject: Subject, method: Method, copied: Any, moment: Any) -> None:
    net, x = subject.constrained(method), batch()
    moment(net, x)
    twin = copied(net)
    before, output = bits(net), net(x).detach()
    assert same(bits(twin), before)
    assert torch.equal(twin(x), output)
    assert not memory(net) & memory(twin)
    optimizer = adam(twin)
    for _ in range(3):
        train(twin, optimizer, x)
    assert residual(twin) < 1e-5
    assert not torch.equal(twin(x), output)
    assert same(bits(net), before)
    assert torch.equal(net(x), output)


@each
@engine
@ways
def test_a_copy_is_constrained_for_itself(subject: Subject, method: Method, copied: Any) -> None:
    net, x = subject.constrained(method), batch()
    twin = copied(net)
    rows = [row.name for row in report(net)]
    assert [row.name for row in report(twin)] == rows
    unconstrain(net, "*")
    assert [row.name for row in report(twin)] == rows
    train(twin, adam(twin), x)
    assert residual(twin) < 1e-5


@each
@engine
def test_a_model_and_its_optimizer_copied_together_go_on_alike(subject: Subject, method: Method) -> None:
    net, x = subject.constrained(method), batch()
    optimizer = adam(net)
    train(net, optimizer, x)
    twin, other = copy.deepcopy((net, optimizer))
    for _ in range(3):
        train(net, optimizer, x)
        train(twin, other, x)
    assert same(bits(twin), bits(net))
    assert not memory(net) & memory(twin)


@recurrent
@engine
def test_a_copy_of_a_bare_rnn_after_a_pass(subject: Subject, method: Method) -> None:
    """torch's own deepcopy of an RNN fails after a pass if one of its flat weights has a graph."""
    core, x = subject.constrained(method).core, batch()
    y = core(x)[0]
    twin = copy.deepcopy(core)
    assert torch.equal(twin(x)[0], y)
    y.sum().backward()
    assert all(p.grad is None for p in twin.parameters())


@each
@engine
def test_a_frozen_copy_stays_frozen(subject: Subject, method: Method) -> None:
    net = subject.constrained(method).requires_grad_(False)
    twin = copy.deepcopy(net)
    assert not any(p.requires_grad for p in twin.parameters())
    assert not twin(batch()).requires_grad
