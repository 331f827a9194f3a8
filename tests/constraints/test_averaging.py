"""Averages of constrained models: the nearest point to the average of the weights, under both engines."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.optim.swa_utils import get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from constraints import AveragedModel, Riemannian, Trivialization, constrain, rebase, report, unconstrain
from constraints.method import Method
from constraints.optim import RiemannianAdam
from manifolds import Euclidean, SpecialOrthogonal, Stiefel

METHODS = [Trivialization(), Trivialization(rebase_every=2), Riemannian()]
both = pytest.mark.parametrize("method", METHODS, ids=repr)
X = torch.arange(40.0).reshape(8, 5).sin()

FUNCTIONS: dict[str, dict[str, Any]] = {
    "swa": {},
    "ema": {"avg_fn": get_ema_avg_fn(0.7)},
    "multi ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.7)},
    "multi swa": {"multi_avg_fn": get_swa_multi_avg_fn()},
    "ema with buffers": {"avg_fn": get_ema_avg_fn(0.7), "use_buffers": True},
}


def network(method: Method, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 4))
    constrain(net, "0.weight", Stiefel, method)
    constrain(net, "3.weight", SpecialOrthogonal, method, init="haar")
    constrain(net, "4.weight", Euclidean * Stiefel, method)
    return net


def train(net: Any, steps: int) -> Any:
    """Yields after each step."""
    optimizer = RiemannianAdam(net, lr=0.1)
    target = torch.arange(32.0).reshape(8, 4).cos()
    for _ in range(steps):
        optimizer.zero_grad()
        (net(X) - target).square().sum().backward()
        optimizer.step()
        yield


def polar(a: Tensor) -> Tensor:
    w, _, vh = torch.linalg.svd(a, full_matrices=False)
    return w @ vh


@both
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_average_is_the_nearest_point_to_that_of_the_weights(function: str, method: Method) -> None:
    """Step by step against averages taken by hand, across moves of the base."""
    net = network(method)
    average: Any = swa_utils.AveragedModel(net, **FUNCTIONS[function])
    expected: list[Tensor] = []
    for n, _ in enumerate(train(net, 6)):
        average.update_parameters(net)
        weights = [net[0].weight, net[3].weight, net[4].weight[:2], net[4].weight[2:], net[4].bias]
        weights = [w.detach().clone() for w in weights]
        share = 0.3 if "ema" in function else 1 / (n + 1)
        if n:
            weights = [old + share * (new - old) for old, new in zip(expected, weights, strict=True)]
            weights = [w if i in (2, 4) else polar(w) for i, w in enumerate(weights)]
        expected = weights
        mine = average.module
        found = [mine[0].weight, mine[3].weight, mine[4].weight[:2], mine[4].weight[2:], mine[4].bias]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.detach(), other, rtol=0, atol=2e-5)
        assert all(max(row.residuals) < 2e-5 for row in report(average))
    assert (expected[0] - net[0].weight).abs().max() > 1e-2


@both
def test_a_far_average_is_brought_back_at_once(method: Method) -> None:
    one, other = network(method, 0), network(method, 1)
    average = AveragedModel(one)
    average.update_parameters(one)
    average.update_parameters(other)
    middle = polar((one[0].weight + other[0].weight).detach() / 2)
    torch.testing.assert_close(average.module[0].weight.detach(), middle, rtol=0, atol=1e-5)
    assert all(max(row.residuals) < 1e-5 for row in report(average))


@both
def test_the_model_is_left_alone_and_nothing_is_shared(method: Method) -> None:
    net = network(method)
    average = AveragedModel(net, avg_fn=get_ema_avg_fn(0.5))
    for _ in train(net, 2):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        average.update_parameters(net)
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name])
    mine = {t.data_ptr() for t in net.state_dict().values()}
    assert mine.isdisjoint(t.data_ptr() for t in average.module.state_dict().values())


@both
def test_it_is_used_like_that_of_torch(method: Method) -> None:
    """update_bn, SWALR, state dicts, copies, pickle, baking back."""
    net = network(method)
    average: Any = swa_utils.AveragedModel(net)
    for _ in train(net, 2):
        average.update_parameters(net)
    swa_utils.update_bn([X], average)
    average.eval()
    other: Any = AveragedModel(network(method, 1)).eval()
    other.load_state_dict(average.state_dict())
    copies = [other, copy.deepcopy(average), pickle.loads(pickle.dumps(average))]
    for each in copies:
        assert int(each.n_averaged) == 2
        assert torch.equal(each(X), average(X))
        each.update_parameters(net)
    output = average(X)
    unconstrain(average, "*")
    assert torch.equal(average(X), output)


def test_a_half_precision_weight_is_averaged_in_float32() -> None:
    """As a float32 copy of the model is: nothing is rounded on the way."""
    net = nn.Sequential(nn.Linear(8, 8))
    constrain(net.bfloat16(), "0.weight", Stiefel, init="identity")
    points = []
    for dtype in (torch.bfloat16, torch.float32):
        first, other = copy.deepcopy(net).to(dtype), copy.deepcopy(net).to(dtype)
        with torch.no_grad():
            other[0].parametrizations.weight.original.copy_(torch.ones(8, 8).triu(1))  # type: ignore[union-attr]
        average: Any = AveragedModel(first, avg_fn=get_ema_avg_fn(0.99))
        for model in (first, *(other,) * 20):
            average.update_parameters(model)
        held = average.module[0].parametrizations.weight
        points.append(held[0].evaluate(held.original))
        assert average.module[0].weight.dtype == dtype
    torch.testing.assert_close(*points, rtol=0, atol=1e-5)
    assert (points[0] - torch.eye(8)).abs().max() > 0.02


def test_manual_rebase_and_assignment_between_updates() -> None:
    net = network(Trivialization())
    average: Any = swa_utils.AveragedModel(net, avg_fn=get_ema_avg_fn(0.5))
    average.update_parameters(net)
    first = net[3].weight.detach().clone()
    for _ in train(net, 2):
        pass
    rebase(net)
    average.update_parameters(net)
    expected = polar(first + net[3].weight.detach())
    torch.testing.assert_close(average.module[3].weight.detach(), expected, rtol=0, atol=1e-5)


@both
def test_what_cannot_be_averaged_changes_nothing(method: Method) -> None:
    net = constrain(nn.Sequential(nn.Linear(4, 4)), "0.weight", Stiefel, method, init="identity")
    average: Any = AveragedModel(net)
    average.update_parameters(net)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    opposite = constrain(nn.Sequential(nn.Linear(4, 4)), "0.weight", Stiefel, method, init=lambda w: -torch.eye(4))
    plain = nn.Sequential(nn.Linear(4, 4))
    engine = Riemannian() if isinstance(method, Trivialization) else Trivialization()
    for other, words in (
        (opposite, "the average of 0.weight.*no point is nearest"),
        (plain, "the model nothing: they must be constrained alike"),
        (constrain(copy.deepcopy(plain), "0.weight", Stiefel, engine), "must be constrained alike"),
        (constrain(copy.deepcopy(plain), "0.weight", Stiefel**2, method), "must be constrained alike"),
    ):
        with pytest.raises(ValueError, match=words):
            average.update_parameters(other)
        for name, value in average.state_dict().items():
            assert torch.equal(value, before[name])


@both
@pytest.mark.parametrize("which", ["model", "average"])
def test_an_average_made_before_one_of_them_was_constrained_is_refused(which: str, method: Method) -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4))
    average: Any = swa_utils.AveragedModel(net)
    average.update_parameters(net)
    before = copy.deepcopy(average.state_dict())
    constrain(net if which == "model" else average.module, "0.weight", Stiefel, method)
    state = copy.deepcopy(average.state_dict())
    with pytest.raises(ValueError, match=r"constrained alike.*Make a new AveragedModel after constraining"):
        average.update_parameters(net)
    assert all(torch.equal(value, state[name]) for name, value in average.state_dict().items())
    assert int(average.n_averaged) == int(before["n_averaged"]) == 1


@both
def test_an_average_and_a_model_that_were_constrained_alike_later_are_averaged(method: Method) -> None:
    net = nn.Sequential(nn.Linear(5, 4))
    average: Any = swa_utils.AveragedModel(net)
    for each in (net, average.module):
        constrain(each, "0.weight", Stiefel, method)
    for _ in range(2):
        average.update_parameters(net)
    torch.testing.assert_close(average.module[0].weight, net[0].weight)
    assert report(average)[0].ok


@both
def test_a_class_derived_from_that_of_torch_averages_points(method: Method) -> None:
    class Mine(swa_utils.AveragedModel):
        def update_parameters(self, model: nn.Module) -> None:
            super().update_parameters(model)

    one, other = network(method, 0), network(method, 1)
    average: Any = Mine(one)
    for net in (one, other):
        average.update_parameters(net)
    middle = polar((one[0].weight + other[0].weight).detach() / 2)
    torch.testing.assert_close(average.module[0].weight.detach(), middle, rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("function", FUNCTIONS)
def test_many_weights_of_one_shape_are_averaged_each_by_itself(function: str, method: Method) -> None:
    """Also where one of them is far from its average and the others are near."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 6), nn.Linear(6, 4))
    constrain(net, "*.weight", Stiefel, method, init="haar")
    average: Any = AveragedModel(net, **FUNCTIONS[function])
    average.update_parameters(net)
    first = [layer.weight.detach().clone() for layer in net]  # type: ignore[union-attr,operator]
    with torch.no_grad():
        value = SpecialOrthogonal().random(4, 4) @ first[0]
        net[0].weight.copy_(value) if isinstance(method, Riemannian) else setattr(net[0], "weight", value)
    average.update_parameters(net)
    share = 0.3 if "ema" in function else 0.5
    expected = [polar(first[0] + share * (value - first[0])), *first[1:]]
    for layer, point in zip(average.module, expected, strict=True):
        torch.testing.assert_close(layer.weight.detach(), point, rtol=0, atol=1e-5)
    pointers = {t.untyped_storage().data_ptr() for t in average.module.state_dict().values()}
    assert len(pointers) == len(average.module.state_dict())


@both
@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_of_ones_own_sees_each_weight_once_and_no_coordinates(method: Method, use_buffers: bool) -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    constrain(net, "0.weight", Stiefel, method)
    seen: list[tuple[int, ...]] = []

    def mean(average: Tensor, weight: Tensor, count: Tensor | int) -> Tensor:
        seen.append(tuple(weight.shape))
        if weight.shape == (4, 5):
            assert bool(Stiefel().contains(weight).all())
            assert bool(Stiefel().contains(average).all())
        return average + (weight - average) / (count + 1)

    average = AveragedModel(net, avg_fn=mean, use_buffers=use_buffers)
    for count in range(1, 4):
        with torch.no_grad():
            if isinstance(method, Riemannian):
                net[0].weight.copy_(Stiefel().random(4, 5))
            else:
                net[0].weight = Stiefel().random(4, 5)
            net[2].bias.fill_(count)
            net[1].running_mean.fill_(count)
        average.update_parameters(net)
        assert int(average.n_averaged) == count
    free = [(4,), (4,), (4,), (3, 4), (3,)]
    buffers = [(4,), (4,), ()] if use_buffers else []
    assert sorted(seen) == sorted(2 * [(4, 5), *free, *buffers])
    torch.testing.assert_close(average.module[2].bias.detach(), torch.full((3,), 2.0))
    torch.testing.assert_close(average.module[1].running_mean, torch.full((4,), 2.0 if use_buffers else 3.0))
    assert report(average)[0].ok


@both
def test_a_model_of_constrained_tensors_only_is_averaged(method: Method) -> None:
    net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4, affine=False))
    constrain(net, "0.weight", Stiefel, method)
    average = AveragedModel(net)
    for count in (1, 2):
        net[1].running_mean.fill_(count)
        average.update_parameters(net)
        assert int(average.n_averaged) == count
        assert float(average.module[1].running_mean[0]) == count
    torch.testing.assert_close(average.module[0].weight, net[0].weight)


def test_a_model_without_constraints_is_averaged_as_by_torch() -> None:
    net = nn.Linear(5, 4)
    mine, torchs = AveragedModel(net), swa_utils.AveragedModel(net)
    for _ in range(2):
        with torch.no_grad():
            net.weight.normal_()
        mine.update_parameters(net)
        torchs.update_parameters(net)
    assert torch.equal(mine.module.weight, torchs.module.weight)
