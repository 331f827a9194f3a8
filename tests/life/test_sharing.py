"""One weight read many times: tied tensors, caches, RNNs that look at each weight often, other parametrizations."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from constraints import Riemannian, Trivialization, constrain, export_state_dict, report, unconstrain
from constraints.held import held
from constraints.method import Method
from constraints.trivialization import Trivialized
from manifolds import Euclidean, Orthogonal, Sphere, Stiefel

from .subjects import (
    Subject,
    adam,
    batch,
    bits,
    each,
    engine,
    objective,
    residual,
    same,
    train,
    weights,
)


class Pair(nn.Module):
    """Two models whose cores have the same constrained Parameters."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.first, self.second = subject.plain(0), subject.plain(1)
        for name in names(subject):
            owner, _, attribute = name.rpartition(".")
            setattr(self.second.get_submodule(owner), attribute, self.first.get_parameter(name))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + 2 * self.second(x)  # type: ignore[no-any-return]


def names(subject: Subject) -> list[str]:
    net = subject.constrain(subject.plain(), Riemannian())
    return list(weights(net))


def tied(subject: Subject, method: Method) -> Any:
    pair = Pair(subject)
    for name, manifold, layout in subject.constraints:
        constrain(pair, f"*.{name}", manifold, method, layout=layout)
    return pair


# Ties -------------------------------------------------------------------------------------------------------------


@each
@engine
def test_tied_weights_stay_tied(subject: Subject, method: Method) -> None:
    pair, x = tied(subject, method), batch()
    free = sum(p.numel() for p in Pair(subject).parameters())
    assert sum(p.numel() for p in pair.parameters() if p.requires_grad) == free
    optimizer = adam(pair)
    before = weights(pair.first)
    for _ in range(3):
        train(pair, optimizer, x)
        first, second = weights(pair.first), weights(pair.second)
        assert same(first, second)
        assert residual(pair) < 1e-5
    assert not same(first, before)
    twin = copy.deepcopy(pair)
    train(twin, adam(twin), x)
    assert same(weights(twin.first), weights(twin.second))
    assert same(weights(pair.first), first)


@each
@engine
def test_tied_weights_have_the_gradients_of_both(subject: Subject, method: Method) -> None:
    pair, x = tied(subject, method).double(), batch().double()
    apart = copy.deepcopy(pair.first), copy.deepcopy(pair.second)
    (apart[0](x).detach() + 2 * apart[1](x)).square().sum().backward()
    (apart[0](x) + 2 * apart[1](x).detach()).square().sum().backward()
    pair(x).square().sum().backward()
    for name, p in pair.first.core.named_parameters():
        g = p.grad
        if not p.requires_grad:
            assert g is None
            continue
        parts = [net.core.get_parameter(name).grad for net in apart]
        shared = p is pair.second.core.get_parameter(name)
        torch.testing.assert_close(g, parts[0] + parts[1] if shared else parts[0], rtol=1e-9, atol=1e-12)


@each
@engine
def test_a_tied_model_is_exported_and_comes_back_tied(subject: Subject, method: Method) -> None:
    pair, x = tied(subject, method), batch()
    output = pair(x).detach()
    plain = Pair(subject)
    plain.load_state_dict(export_state_dict(pair), strict=True)
    assert torch.equal(plain(x), output)
    unconstrain(pair, "*")
    for name in names(subject):
        assert pair.first.get_parameter(name) is pair.second.get_parameter(name)
    assert torch.equal(pair(x), output)


@each
@engine
@pytest.mark.parametrize("place", ["inside", "outside", "one by one"])
def test_a_tied_tensor_is_constrained_and_let_go_at_all_its_places(
    subject: Subject, method: Method, place: str
) -> None:
    """Named at one of its places, in the module that has all of them or in another; also while an optimizer has it."""
    pair, x = Pair(subject), batch()
    for p in pair.parameters():
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.Adam(pair.parameters())
    optimizer.step()
    for name, manifold, layout in subject.constraints:
        if place == "inside":
            constrain(pair, f"first.{name}", manifold, method, layout=layout)
        else:
            constrain(pair.first, name, manifold, method, layout=layout)
        if place == "one by one":
            constrain(pair.second, name, manifold, method, layout=layout)
    train(pair, adam(pair), x)
    assert same(weights(pair.first), {name: read(pair.second, name) for name in names(subject)})
    assert residual(pair) < 1e-5
    twin = copy.deepcopy(pair)
    train(twin, adam(twin), x)
    for name in names(subject):
        assert torch.equal(read(twin.first, name), read(twin.second, name))
        assert not torch.equal(read(twin.first, name), read(pair.first, name))
    before = weights(pair.first)
    for name, _, _ in subject.constraints:
        unconstrain(pair.first, name)
    assert report(pair) == []
    for name in names(subject):
        assert pair.second.get_parameter(name) is pair.first.get_parameter(name)
        assert torch.equal(pair.second.get_parameter(name), before[name])
        assert read(twin.second, name) is not pair.second.get_parameter(name)
    assert [*pair.first.state_dict()] == [*subject.plain().state_dict()]
    assert optimizer.param_groups


def read(net: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    return getattr(net.get_submodule(owner), attribute)  # type: ignore[no-any-return]


@each
def test_a_tied_module_that_is_gone_is_no_tie(subject: Subject) -> None:
    pair = Pair(subject)
    pair.second.itself = pair.second  # a cycle, which only the collector finds
    owner, _, attribute = names(subject)[0].rpartition(".")
    parametrize.register_parametrization(pair.second.get_submodule(owner), attribute, nn.Identity())
    pair.second = nn.Identity()
    net = subject.constrain(pair.first, Trivialization())
    train(net, adam(net), batch())
    assert residual(net) < 1e-5


def test_what_a_tied_module_cannot_take_is_refused_and_changes_nothing() -> None:
    """A tie through another parametrization, or to a tensor that is held in another way."""
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    parametrize.register_parametrization(second, "weight", nn.Identity())
    with pytest.raises(ValueError, match=r"weight of Linear.*tied.*Identity.*remove_parametrizations"):
        constrain(first, "weight", Stiefel)
    assert type(first) is nn.Linear
    parametrize.remove_parametrizations(second, "weight")
    constrain(first, "weight", Stiefel)
    before = second.weight.detach().clone()
    for manifold, method in ((Orthogonal, Trivialization()), (Stiefel, Trivialization(7)), (Stiefel, Riemannian())):
        with pytest.raises(ValueError, match=r"constrained already, to Stiefel by Trivialization.*unconstrain"):
            constrain(second, "weight", manifold, method, init="haar")
    assert torch.equal(first.weight, before)
    constrain(second, "weight", Stiefel, init="haar")
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, before)


@each
@pytest.mark.parametrize("leave", [True, False])
def test_what_torch_removes_is_left_as_the_weight_at_all_places(subject: Subject, leave: bool) -> None:
    """remove_parametrizations: never coordinates in the place of the weight, and no place that computes with it."""
    pair, x = tied(subject, Trivialization()), batch()
    train(pair, adam(pair), x)
    before, output = weights(pair.first), pair(x).detach()
    for name in names(subject):
        owner, _, attribute = name.rpartition(".")
        parametrize.remove_parametrizations(pair.first.get_submodule(owner), attribute, leave_parametrized=leave)
    assert not any(parametrize.is_parametrized(module) for module in pair.modules())
    for name in names(subject):
        assert pair.second.get_parameter(name) is pair.first.get_parameter(name)
        assert torch.equal(pair.first.get_parameter(name), before[name])
    assert torch.equal(pair(x), output)
    optimizer = torch.optim.AdamW(pair.parameters(), weight_decay=0.1)
    train(pair, optimizer, x)
    for name, manifold, layout in subject.constraints:
        constrain(pair.second, name, manifold, layout=layout)
    train(pair, adam(pair), x)
    assert residual(pair) < 1e-5


@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_what_torch_removes_with_a_parametrization_on_top(leave: bool, dtype: torch.dtype) -> None:
    layer: Any = constrain(nn.Linear(4, 4, dtype=dtype), "weight", Stiefel, init="haar")
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    point = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Double())
    assert torch.equal(layer.weight, 2 * point)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=leave)
    assert type(layer) is nn.Linear
    assert torch.equal(layer.weight, 2 * point if leave else point)


class Double(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


# Evaluations ------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the weights that were computed, once for each time."""
    computed: list[str] = []
    evaluate = Trivialized.evaluate

    def counted(self: Trivialized, original: Tensor) -> Tensor:
        computed.append(self.name)
        return evaluate(self, original)

    monkeypatch.setattr(Trivialized, "evaluate", counted)
    return computed


@each
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("gradients", [True, False], ids=["grad", "no_grad"])
def test_each_constraint_is_evaluated_once_per_pass(
    subject: Subject, training: bool, cached: bool, gradients: bool, evaluations: list[str]
) -> None:
    net, x = subject.constrained(Trivialization()).train(training), batch()
    own = [e.owner.parametrizations[e.attribute][0].name for e in held(net) if e.owner is net.core]
    for _ in range(2):
        evaluations.clear()
        with parametrize.cached() if cached else nullcontext(), torch.set_grad_enabled(gradients):
            net(x)
        # the attention looks at the weight of its output layer, outside of the pass of that layer
        assert [name for name in evaluations if "QuantizableLinear" not in name] == own
    for _ in range(2):
        evaluations.clear()
        with parametrize.cached() if cached else nullcontext():
            objective(net, x).backward()
        assert [name for name in evaluations if "QuantizableLinear" not in name] == own


@each
def test_a_cache_shares_one_weight_among_passes(subject: Subject, evaluations: list[str]) -> None:
    net, x = subject.constrained(Trivialization(), dtype=torch.float64), batch().double()
    count = len(weights(net))
    twin = copy.deepcopy(net)
    evaluations.clear()
    with parametrize.cached():
        (objective(net, x) + objective(net, 2 * x)).backward()
    assert len(evaluations) == count
    (objective(twin, x) + objective(twin, 2 * x)).backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    optimizer = adam(net)
    for _ in range(2):
        with parametrize.cached():
            before = train(net, optimizer, x)
        assert before > objective(net, x)
    assert residual(net) < 1e-12


@each
def test_a_riemannian_weight_is_not_evaluated(subject: Subject, evaluations: list[str]) -> None:
    net, x = subject.constrained(Riemannian()), batch()
    assert not any(parametrize.is_parametrized(m) for m in net.modules())
    objective(net, x).backward()
    assert evaluations == []


# Other parametrizations -------------------------------------------------------------------------------------------


OTHERS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": lambda module, name: parametrize.register_parametrization(module, name, nn.Tanh()),
}


@each
@engine
@pytest.mark.parametrize("other", OTHERS)
def test_a_parametrization_that_is_there_already_is_an_error_with_the_way_out(
    subject: Subject, method: Method, other: str
) -> None:
    net = subject.plain()
    name = names(subject)[0]
    owner, _, attribute = name.rpartition(".")
    OTHERS[other](net.get_submodule(owner), attribute)
    before = bits(net)
    glob, manifold, layout = subject.constraints[0]
    with pytest.raises(ValueError, match=r"another parametrization.*remove_parametrizations\(module"):
        constrain(net, glob, manifold, method, layout=layout)
    assert same(bits(net), before)
    assert report(net) == []
    parametrize.remove_parametrizations(net.get_submodule(owner), attribute)
    subject.constrain(net, method)
    train(net, adam(net), batch())
    assert residual(net) < 1e-5


@each
@engine
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_the_old_weight_norm_is_an_error_with_the_way_out(subject: Subject, method: Method) -> None:
    net = subject.plain()
    name = names(subject)[0]
    owner, _, attribute = name.rpartition(".")
    nn.utils.weight_norm(net.get_submodule(owner), attribute)
    with pytest.raises(ValueError, match="remove_weight_norm"):
        constrain(net, name, Stiefel, method)


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


@each
def test_a_parametrization_on_top_of_a_trivialization_composes(subject: Subject) -> None:
    net, x = subject.constrained(Trivialization()), batch()
    before = weights(net)
    name = names(subject)[0]
    owner, _, attribute = name.rpartition(".")
    parametrize.register_parametrization(net.get_submodule(owner), attribute, Doubled())
    torch.testing.assert_close(getattr(net.get_submodule(owner), attribute).detach(), 2 * before[name])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    train(net, optimizer, x)
    assert not torch.equal(getattr(net.get_submodule(owner), attribute), 2 * before[name])
    parametrization = net.get_submodule(owner).parametrizations[attribute][0]
    point = parametrization.evaluate(net.get_submodule(owner).parametrizations[attribute].original)
    assert parametrization.manifold.residual(point).max() < 1e-5


@each
def test_a_parametrization_on_top_of_a_riemannian_weight_is_never_a_silent_loss(subject: Subject) -> None:
    """The Parameter has another name from then on: its steps stay on the manifold, or are refused."""
    net, x = subject.constrained(Riemannian()), batch()
    name = names(subject)[0]
    owner, _, attribute = name.rpartition(".")
    parametrize.register_parametrization(net.get_submodule(owner), attribute, Doubled())
    with pytest.raises(ValueError, match="parametriz"):
        train(net, adam(net), x)


# Memory -----------------------------------------------------------------------------------------------------------


@each
@engine
def test_weights_lie_in_memory_as_a_parameter_does(subject: Subject, method: Method) -> None:
    """Computed, exported and let go: `.view(-1)`, safetensors and LBFGS ask for it."""
    net = subject.constrained(method)
    train(net, adam(net), batch())
    exported = export_state_dict(net)
    for e in list(held(net)):
        assert getattr(e.owner, e.attribute).is_contiguous()
        assert exported[e.name].is_contiguous()
    names = [e.name for e in held(net)]
    assert names
    unconstrain(net, names)
    assert all(net.get_parameter(name).is_contiguous() for name in names)
    torch.nn.utils.parameters_to_vector(net.parameters())


@engine
@pytest.mark.parametrize("shape", [(4, 10), (10, 4), (4, 4)])
@pytest.mark.parametrize("manifold", [Stiefel, Sphere, Euclidean])
def test_wide_and_tall_weights_lie_in_memory_as_a_parameter_does(manifold: Any, shape: Any, method: Method) -> None:
    linear: Any = constrain(nn.Linear(shape[1], shape[0]), "weight", manifold, method)
    assert linear.weight.is_contiguous()
    assert export_state_dict(linear)["weight"].is_contiguous()
    assert unconstrain(linear, "weight").weight.is_contiguous()
