"""Averages of weights, for evaluation: they stay on the manifold under both engines, also across moves of the base."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from constraints import Riemannian, Trivialization, export_state_dict
from constraints.method import Method

from .subjects import Subject, adam, batch, each, residual, train, weights

engines = pytest.mark.parametrize("method", [Trivialization(), Trivialization(rebase_every=3), Riemannian()], ids=repr)
FUNCTIONS = {
    "swa": {},
    "ema": {"avg_fn": get_ema_avg_fn(0.8)},
    "multi": {"multi_avg_fn": get_ema_multi_avg_fn(0.8)},
    "buffers": {"avg_fn": get_ema_avg_fn(0.8), "use_buffers": True},
}


@each
@engines
@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_average_of_a_run_is_on_the_manifold_and_between_its_weights(
    subject: Subject, method: Method, function: str
) -> None:
    net, x = subject.constrain(subject.plain(), method), batch(16)
    average = AveragedModel(net, **FUNCTIONS[function])
    optimizer = adam(net, 0.1)
    first = weights(net)
    for _ in range(7):
        train(net, optimizer, x)
        average.update_parameters(net)
        assert residual(average) < 1e-5
        assert residual(net) < 1e-5
    for (name, last), mean in zip(weights(net).items(), weights(average).values(), strict=True):
        assert 0 < (mean - last).norm() < (first[name] - last).norm()
        assert (mean - first[name]).norm() > 0.1 * (first[name] - last).norm()
    plain = subject.plain(4)
    plain.load_state_dict(export_state_dict(average.module))
    torch.testing.assert_close(plain(x), average(x), rtol=1e-5, atol=1e-6)


@each
@engines
def test_an_average_lives_like_a_model(subject: Subject, method: Method) -> None:
    net, x = subject.constrain(subject.plain(), method), batch(16)
    average = AveragedModel(net, avg_fn=get_ema_avg_fn(0.8))
    optimizer = adam(net, 0.1)
    schedule = SWALR(optimizer, 0.05)
    for _ in range(4):
        train(net, optimizer, x)
        average.update_parameters(net)
        schedule.step()
    twin = copy.deepcopy(average)
    other = AveragedModel(subject.constrain(subject.plain(3), method), avg_fn=get_ema_avg_fn(0.8))
    other.load_state_dict(average.state_dict(), strict=True)
    for each_one in (twin, other):
        assert torch.equal(each_one(x), average(x))
        each_one.update_parameters(net)
        assert residual(each_one) < 1e-5
    assert not torch.equal(twin(x), average(x))
