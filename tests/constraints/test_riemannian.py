"""The Riemannian engine: a plain Parameter, and a record of its manifold that nothing loses."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import constraints
import manifolds
from constraints import Riemannian, Trivialization, constrain, optim, param_groups, records, report, unconstrain, watch
from constraints.optim import RiemannianAdam, RiemannianSGD
from constraints.records import manifold_of, name_of
from manifolds import Euclidean, Manifold, Orthogonal, PositiveDefinite, SpecialOrthogonal, Sphere, Stiefel

X = torch.arange(30.0).reshape(3, 2, 5).sin()


def constrained_gru() -> nn.GRU:
    torch.manual_seed(1)
    return constrain(nn.GRU(5, 4), "weight_hh_l0", Stiefel**3, Riemannian())


def swapped(module: nn.Module) -> nn.Module:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return module.to(torch.float64).to(torch.float32)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def overwritten(module: nn.Module) -> nn.Module:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return module.to(torch.float64).to(torch.float32)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def assigned(module: nn.Module) -> nn.Module:
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)
    return module


def after_a_pass(module: nn.Module) -> nn.Module:
    module(X)[0].sum().backward()
    return copy.deepcopy(module)


WAYS: list[Callable[[Any], Any]] = [
    lambda m: m,
    copy.copy,
    copy.deepcopy,
    lambda m: copy.deepcopy(copy.deepcopy(m)),
    lambda m: pickle.loads(pickle.dumps(m)),
    lambda m: m.to(torch.float64),
    lambda m: m.half().float(),
    swapped,
    overwritten,
    assigned,
    after_a_pass,
    lambda m: copy.deepcopy(nn.Sequential(m))[0],
    lambda m: m.requires_grad_(False).requires_grad_(True),
]


# Plain ------------------------------------------------------------------------------------------------------------


def test_the_module_stays_plain() -> None:
    """Same class, keys, parameters and order; no hook in the forward pass; the memory of the old weight."""
    plain = nn.GRU(5, 4)
    parameters = list(plain.named_parameters())
    place = plain.weight_hh_l0.data_ptr()
    constrain(plain, "weight_hh_l0", Stiefel**3, Riemannian())
    assert type(plain) is nn.GRU
    assert [(name, id(p)) for name, p in plain.named_parameters()] == [(name, id(p)) for name, p in parameters]
    assert list(plain.state_dict()) == list(nn.GRU(5, 4).state_dict())
    assert plain.weight_hh_l0.data_ptr() == place
    assert plain._flat_weights[1] is plain.weight_hh_l0
    assert not plain._forward_pre_hooks
    assert not plain._forward_hooks


# The record -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_the_record_stays_with_the_module(way: int) -> None:
    module = WAYS[way](constrained_gru())
    assert manifold_of(module.weight_hh_l0) == Stiefel**3
    assert name_of(module.weight_hh_l0) == "weight_hh_l0"
    assert manifold_of(module.weight_ih_l0) is None
    (constrained,) = [group for group in param_groups(module) if group["manifold"] is not None]
    assert [name for name, _ in constrained["params"]] == ["weight_hh_l0"]
    assert constrained["params"][0][1] is module.weight_hh_l0


@pytest.mark.parametrize("way", [2, 4])
def test_copies_have_records_of_their_own(way: int) -> None:
    module = constrained_gru()
    other = WAYS[way](module)
    unconstrain(other, "weight_hh_l0")
    assert manifold_of(other.weight_hh_l0) is None
    assert manifold_of(module.weight_hh_l0) == Stiefel**3


def test_a_record_dies_with_its_module() -> None:
    gc.collect()  # of what the tests before have left
    before = len(records._live)
    module = constrained_gru()
    assert len(records._live) == before + 1
    del module
    gc.collect()
    assert len(records._live) == before


def test_threads_constrain_and_look_at_once() -> None:
    """Each sees its own constraints, whatever others add in the meantime."""
    interval = sys.getswitchinterval()
    failures: list[BaseException] = []
    alive: list[nn.Module] = []

    def work() -> None:
        try:
            for _ in range(40):
                alive.append(constrain(nn.Linear(2, 2), "weight", Stiefel, Riemannian(), init="identity"))
                net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
                constrain(net, "*.weight", Stiefel, Riemannian(), init="identity")
                assert len(param_groups(net)) == 2
                assert manifold_of(net[0].weight) == Stiefel()
                net(torch.ones(2)).sum().backward()
                with pytest.raises(ValueError, match="would leave the manifold"):
                    torch.optim.SGD(net.parameters(), lr=0.1).step()
        except BaseException as error:
            failures.append(error)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures


def test_a_tensor_that_was_never_constrained() -> None:
    constrained_gru()
    assert manifold_of(torch.zeros(3)) is None
    assert name_of(nn.Parameter(torch.zeros(3))) is None


# param_groups -----------------------------------------------------------------------------------------------------


def test_groups_hold_every_parameter_once() -> None:
    """One group a manifold, one for coordinates of trivializations, one for the rest; ties once; dotted names."""
    model = nn.ModuleDict({k: nn.Linear(4, 4) for k in "abcde"})
    model["e"].weight = model["a"].weight
    constrain(model, "[ab].weight", Orthogonal, Riemannian())
    constrain(model, "c.weight", SpecialOrthogonal, Riemannian())
    constrain(model, "d.weight", Orthogonal, Trivialization())
    groups = {
        (group["manifold"], group.get("weight_decay")): [name for name, _ in group["params"]]
        for group in param_groups(model)
    }
    assert groups == {
        (Orthogonal(), None): ["a.weight", "b.weight"],
        (SpecialOrthogonal(), None): ["c.weight"],
        (None, 0.0): ["d.parametrizations.weight.original"],
        (None, None): [f"{k}.bias" for k in "abcde"],
    }
    every = [p for group in param_groups(model) for _, p in group["params"]]
    assert sorted(id(p) for p in model.parameters() if p.requires_grad) == sorted(id(p) for p in every)


def test_coordinates_are_the_last_group_wherever_they_are_in_the_model() -> None:
    """So that `free, coordinates = param_groups(model)` gives each its rate, also where the first weight is held."""
    first = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    free, coordinates = param_groups(constrain(first, "0.weight", Stiefel))
    assert [name for name, _ in free["params"]] == ["1.weight", "1.bias"]
    assert [name for name, _ in coordinates["params"]] == ["0.parametrizations.weight.original"]
    assert coordinates["weight_decay"] == 0.0


def test_groups_hold_frozen_parameters_too() -> None:
    """As model.parameters() does: what is unfrozen later is trained."""
    module = constrained_gru().requires_grad_(False)
    assert sum(len(group["params"]) for group in param_groups(module)) == 4


# Steps of other optimizers ----------------------------------------------------------------------------------------


class Subclass(torch.optim.Adam):
    """Of a module that is not torch's."""


class OwnStep(torch.optim.SGD):
    """With a step around that of torch."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class FromScratch(torch.optim.Optimizer):
    """Sign descent, as the many that are published as one file."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad.sign())


class Around(torch.optim.Optimizer):
    """Calls another one, and is no optimizer of its own to torch: no hook of its step is called."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


FOREIGN: dict[str, Callable[[Any], Any]] = {
    "Adam": torch.optim.Adam,
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "AdamW": torch.optim.AdamW,
    "LBFGS": torch.optim.LBFGS,
    "a subclass": Subclass,
    "a step of its own": lambda p: OwnStep(p, lr=0.1),
    "from scratch": FromScratch,
    "around another": lambda p: Around(Subclass(p)),
    "Adam of geoopt": lambda p: pytest.importorskip("geoopt").optim.RiemannianAdam(p),
    "SGD of geoopt": lambda p: pytest.importorskip("geoopt").optim.RiemannianSGD(p, lr=0.1),
}
HELD: dict[str, Callable[[], tuple[Any, str, Any, torch.Tensor]]] = {
    "packed": lambda: (nn.GRU(5, 4), "weight_hh_l0", Stiefel**3, X),
    "mixed": lambda: (nn.GRU(5, 4), "weight_hh_l0", Stiefel * Euclidean**2, X),
    "double": lambda: (nn.Linear(5, 4).double(), "weight", Sphere, X.double()),
    "half": lambda: (nn.Linear(5, 8).bfloat16(), "weight", Stiefel, X.bfloat16()),
    "within": lambda: (nn.Sequential(nn.Linear(5, 5)), "0.weight", SpecialOrthogonal, X),
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("given", ["parameters", "groups"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_step_of_another_optimizer_is_refused(name: str, given: str, held: str) -> None:
    """The first one, and nothing moves, whatever class the optimizer is of and whatever it is given."""
    module, weight, manifold, x = HELD[held]()
    constrain(module, weight, manifold, Riemannian())
    before = [p.detach().clone() for p in module.parameters()]
    if name == "LBFGS" and given == "groups":
        pytest.skip("LBFGS takes one group")
    optimizer = FOREIGN[name](module.parameters() if given == "parameters" else param_groups(module))

    def loss() -> torch.Tensor:
        out = module(x)
        total: torch.Tensor = (out[0] if isinstance(out, tuple) else out).square().sum()
        total.backward()
        return total

    loss()
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{weight} of shape .* is held on .*optim\.Rie.*keeps_manifolds = T"):
            optimizer.step(loss)
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


TORCHS = [
    each for each in vars(torch.optim).values() if isinstance(each, type) and issubclass(each, torch.optim.Optimizer)
]
TORCHS.remove(torch.optim.Optimizer)


@pytest.mark.parametrize("kind", TORCHS, ids=lambda kind: kind.__name__)
def test_each_way_out_of_a_foreign_step_trains_the_whole_model(kind: type[torch.optim.Optimizer]) -> None:
    """What the error tells to write is run as it is written, for every optimizer of torch, biases and all."""
    model = constrain(nn.GRU(5, 4), "weight_hh_l0", Stiefel**3, Riemannian())

    def loss() -> torch.Tensor:
        total: torch.Tensor = model(X)[0].square().sum()
        total.backward()
        return total

    loss()
    made: Any = kind
    with pytest.raises(ValueError, match="would leave the manifold") as refused:
        made([model.weight_hh_l0], lr=1e-2).step(loss)
    found = re.search(r"Use (.*), or constrain it with", str(refused.value))
    assert found is not None
    ways = found.group(1).split(" or ")
    assert ways[0].startswith("constraints.optim.Riemannian")
    names = {
        **vars(torch.optim),
        **vars(optim),
        "constraints": constraints,
        "model": model,
        "param_groups": param_groups,
    }
    for way in ways:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = eval(way, names)
        loss()
        optimizer.step(loss if kind is torch.optim.LBFGS else None)
        assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())
        assert report(model)[0].ok


class Ours(RiemannianAdam):
    """A subclass of ours, with a step of its own."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Knowing(torch.optim.Optimizer):
    """An optimizer of somebody else that does what the groups say."""

    keeps_manifolds = True

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"manifold": None})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if group["manifold"] is None:
                    p.sub_(p.grad)
                else:
                    p.copy_(group["manifold"].retract(p, -group["manifold"].gradient(p, p.grad)))


@pytest.mark.parametrize("kind", [RiemannianAdam, lambda p: RiemannianSGD(p, lr=0.1), Ours, Knowing])
def test_an_optimizer_that_keeps_manifolds_is_taken(kind: Any) -> None:
    """Ours, subclasses of ours, and any other class that says so; given no groups it is refused like the others."""
    gru = constrained_gru()
    before = gru.weight_hh_l0.detach().clone()
    optimizer = kind(param_groups(gru))
    gru(X)[0].sum().backward()
    optimizer.step()
    assert not torch.equal(gru.weight_hh_l0, before)
    assert bool((Stiefel**3).contains(gru.weight_hh_l0).all())
    with pytest.raises(ValueError, match="weight_hh_l0 of shape"):
        kind(gru.parameters()).step()


def test_a_point_of_another_library_is_not_ours() -> None:
    """geoopt's parameters under geoopt's optimizers, beside a constraint of ours in the same model."""
    geoopt = pytest.importorskip("geoopt")
    gru = constrained_gru()
    point = geoopt.ManifoldParameter(geoopt.Stiefel().random(4, 4))
    optimizer = geoopt.optim.RiemannianAdam([point, gru.weight_ih_l0, gru.bias_hh_l0])
    before = point.detach().clone()
    (gru(X)[0].sum() + point.sum()).backward()
    optimizer.step()
    assert not torch.equal(point.detach(), before)
    assert bool((Stiefel**3).contains(gru.weight_hh_l0).all())


def test_a_constraint_after_the_first_step_is_seen() -> None:
    gru = nn.GRU(5, 4)
    optimizer = torch.optim.SGD(gru.parameters(), lr=0.1)
    gru(X)[0].sum().backward()
    optimizer.step()
    constrain(gru, "weight_hh_l0", Stiefel**3, Riemannian())
    with pytest.raises(ValueError, match="held on"):
        optimizer.step()
    unconstrain(gru, "weight_hh_l0")
    optimizer.step()


def test_a_group_that_is_added_later_is_seen() -> None:
    gru, linear = constrained_gru(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    optimizer.step()
    optimizer.add_param_group({"params": [gru.weight_hh_l0]})
    with pytest.raises(ValueError, match="held on"):
        optimizer.step()


def test_others_are_not_disturbed() -> None:
    """Optimizers of other tensors, of trivialized ones, and of the free parameters of a constrained module."""
    gru = constrained_gru()
    free, trivialized = [gru.weight_ih_l0, gru.bias_hh_l0], constrain(nn.Linear(4, 4), "weight", Stiefel)
    for tensors in (free, list(trivialized.parameters())):
        before = [p.detach().clone() for p in tensors]
        for p in tensors:
            p.grad = torch.ones_like(p) if p.requires_grad else None
        torch.optim.Adam(tensors).step()
        assert all(torch.equal(p, b) != p.requires_grad for p, b in zip(tensors, before, strict=True))


def test_a_look_is_taken_once_per_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    gru = constrained_gru()
    optimizer = RiemannianSGD(gru, lr=0.1)
    looks: list[int] = []
    check = watch._check_point

    def counted(*arguments: Any) -> None:
        looks.append(1)
        check(*arguments)

    monkeypatch.setattr(watch, "_check_point", counted)
    for _ in range(5):
        optimizer.zero_grad()
        gru(X)[0].sum().backward()
        optimizer.step()
    assert len(looks) == 1


# Values written past the constraint -------------------------------------------------------------------------------


@pytest.fixture(params=["new", "stepped"])
def trained(request: pytest.FixtureRequest) -> tuple[nn.GRU, Any]:
    gru = constrained_gru()
    optimizer = RiemannianAdam(gru, lr=1e-2)
    gru(X)[0].square().sum().backward()
    if request.param == "stepped":
        optimizer.step()
    return gru, optimizer


@pytest.mark.parametrize("rule", [nn.init.normal_, nn.init.zeros_, nn.init.orthogonal_, lambda w: w.data.mul_(0) / 0])
def test_a_value_off_the_manifold_is_seen_at_the_next_step(trained: tuple[nn.GRU, Any], rule: Any) -> None:
    """orthogonal_ among them: it makes the stack orthonormal, and none of the gates."""
    gru, optimizer = trained
    with torch.no_grad():
        gru.weight_hh_l0.mul_(1)
        rule(gru.weight_hh_l0)
    before = gru.weight_hh_l0.detach().clone()
    with pytest.raises(ValueError, match=r"weight_hh_l0 of shape \(12, 4\).*not on Stiefel\*\*3"):
        optimizer.step()
    torch.testing.assert_close(gru.weight_hh_l0.detach(), before, rtol=0, atol=0, equal_nan=True)


def test_a_write_to_data_is_seen_at_the_first_step() -> None:
    gru = constrained_gru()
    optimizer = RiemannianAdam(gru, lr=1e-2)
    gru.weight_hh_l0.data.normal_()
    gru(X)[0].square().sum().backward()
    with pytest.raises(ValueError, match=r"weight_hh_l0 of shape \(12, 4\).*not on Stiefel\*\*3"):
        optimizer.step()


def test_a_write_to_data_of_a_weight_without_a_gradient_is_seen_within_a_hundred_steps() -> None:
    linear = constrain(nn.Linear(2, 2), "weight", Orthogonal, Riemannian())
    optimizer = RiemannianSGD(linear, lr=1e-2)
    linear.weight.grad = torch.zeros(2, 2)
    optimizer.step()
    linear.weight.data.zero_()
    linear.weight.grad = None
    for _ in range(99):
        optimizer.step()
    with pytest.raises(ValueError, match=r"weight of shape \(2, 2\).*not on Orthogonal"):
        optimizer.step()


def test_looks_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at a hundred steps costs nothing beside them; one at each would."""
    linear = constrain(nn.Linear(2, 2), "weight", Orthogonal, Riemannian())
    optimizer = RiemannianSGD(linear, lr=1e-2)
    looks: list[int] = []
    monkeypatch.setattr(watch, "_check_point", lambda *_: looks.append(1))
    for _ in range(200):
        optimizer.step()
    assert len(looks) == 2


def test_a_point_may_be_written(trained: tuple[nn.GRU, Any]) -> None:
    gru, optimizer = trained
    with torch.no_grad():
        gru.weight_hh_l0.copy_((Stiefel**3).random(12, 4))
    optimizer.step()
    for gate in gru.weight_hh_l0.detach().chunk(3):
        assert (gate @ gate.mT - torch.eye(4)).abs().max() < 1e-5


class Doubled(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return 2 * w


TAKEN: dict[str, Callable[[Any], Any]] = {
    "parametrize": lambda m: parametrize.register_parametrization(m, "weight_hh_l0", Doubled()),
    "prune": lambda m: prune.random_unstructured(m, "weight_hh_l0", 0.5),
    "spectral_norm": lambda m: nn.utils.parametrizations.spectral_norm(m, "weight_hh_l0"),
    "weight_norm": lambda m: nn.utils.parametrizations.weight_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: nn.utils.parametrizations.orthogonal(m, "weight_hh_l0"),
    "the older spectral_norm": lambda m: nn.utils.spectral_norm(m, "weight_hh_l0"),
    "the older weight_norm": lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
}
COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda m: m,
    "a deepcopy": copy.deepcopy,
    "beside a trivialized weight": lambda m: constrain(m, "weight_hh_l1", Stiefel**3),
    "its deepcopy": lambda m: copy.deepcopy(constrain(m, "weight_hh_l1", Stiefel**3)),
    "its pickle": lambda m: pickle.loads(pickle.dumps(constrain(m, "weight_hh_l1", Stiefel**3))),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("way", TAKEN)
def test_a_parameter_that_others_take_is_not_moved_by_any_optimizer(way: str, copied: str) -> None:
    """What they compute the weight from is a Parameter that no manifold keeps: the first step is refused."""
    net = COPIES[copied](constrain(nn.GRU(5, 4, num_layers=2), "weight_hh_l0", Stiefel**3, Riemannian()))
    TAKEN[way](net)
    before = [p.detach().clone() for p in net.parameters()]
    net(X)[0].sum().backward()
    for kind in (torch.optim.Adam, Subclass, FromScratch, lambda p: RiemannianSGD(p, lr=0.1)):
        with pytest.raises(ValueError, match=r"weight_hh_l0 was held on Stiefel\*\*3 by Riemannian.*parametrization"):
            kind(net.parameters()).step()
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("way", ["parametrize", "prune"])
def test_a_parameter_that_others_take_is_not_lost_silently(way: str) -> None:
    """It has another name and no manifold then: nothing that looks for constraints goes on as if there were none."""
    gru = constrained_gru()
    optimizer = RiemannianSGD(gru, lr=0.1)
    gru(X)[0].sum().backward()
    optimizer.step()
    before = gru.weight_hh_l0.detach().clone()
    TAKEN[way](gru)
    for use in (optimizer.step, lambda: RiemannianAdam(gru), lambda: param_groups(gru), lambda: report(gru)):
        with pytest.raises(ValueError, match=r"weight_hh_l0 was held on Stiefel\*\*3 by Riemannian.*parametrization"):
            use()
    if way == "parametrize":
        parametrize.remove_parametrizations(gru, "weight_hh_l0", leave_parametrized=False)
        optimizer.step()
        assert not torch.equal(gru.weight_hh_l0, before)


def test_a_parameter_that_was_deleted_is_gone() -> None:
    net = constrain(nn.Sequential(nn.Linear(4, 4)), "0.weight", Stiefel, Riemannian())
    del net[0].weight
    assert len(report(net)) == 0
    assert [group["manifold"] for group in param_groups(net)] == [None]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_step_is_looked_at_too() -> None:
    torch._dynamo.reset()
    gru = constrained_gru()
    gru(X)[0].sum().backward()
    optimizer = torch.optim.SGD(gru.parameters(), lr=0.1)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    before = gru.weight_hh_l0.detach().clone()
    with pytest.raises(ValueError, match="held on"):
        step()
    assert torch.equal(gru.weight_hh_l0, before)


@pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianSGD])
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("then", [None, Sphere()], ids=str)
def test_an_optimizer_does_not_outlive_the_constraint(kind: Any, steps: int, then: Manifold | None) -> None:
    """A weight that was freed, or held elsewhere, after the optimizer was made: an error, and nothing moves."""
    linear = nn.Linear(4, 4)
    constrain(linear, "weight", Stiefel, Riemannian())
    optimizer = kind(linear, lr=0.1)
    linear(torch.ones(3, 4)).square().sum().backward()
    for _ in range(steps):
        optimizer.step()
    unconstrain(linear, "weight")
    if then is not None:
        constrain(linear, "weight", then, Riemannian())
    linear.zero_grad()
    optimizer.step()  # nothing to move
    linear(torch.ones(3, 4)).square().sum().backward()
    before = [p.detach().clone() for p in linear.parameters()]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"shape \(4, 4\) is (not|now) .*Make a new optimizer"):
            optimizer.step()
    assert all(torch.equal(p, x) for p, x in zip(linear.parameters(), before, strict=True))
    new = kind(linear, lr=0.1)
    new.step()
    assert then is None or bool(then.contains(linear.weight).all())
    assert not torch.equal(linear.weight, before[0])


def test_an_optimizer_goes_on_where_the_constraint_comes_back() -> None:
    """Freed and held on the same manifold again before the next step."""
    linear = nn.Linear(4, 4)
    constrain(linear, "weight", Stiefel, Riemannian())
    optimizer = RiemannianAdam(linear)
    unconstrain(linear, "weight")
    constrain(linear, "weight", Stiefel, Riemannian())
    linear(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    assert bool(Stiefel().contains(linear.weight).all())


def test_a_group_may_keep_a_tensor_that_no_module_holds() -> None:
    """A group with a "manifold" of its own, for a weight that was freed before and for one that never was held; and
    a model that is gone does not take the constraint with it."""
    linear = nn.Linear(4, 4)
    constrain(linear, "weight", Stiefel, Riemannian())
    unconstrain(linear, "weight")
    free = nn.Parameter(Stiefel().random(5, 3))
    optimizer = RiemannianAdam([{"params": [linear.weight, free], "manifold": Stiefel}])
    other = nn.Linear(4, 4)
    constrain(other, "weight", Stiefel, Riemannian())
    left = other.weight
    optimizer.add_param_group({"params": [left], "manifold": Stiefel})
    del other
    constrain(nn.Linear(4, 4), "weight", Stiefel, Riemannian())  # everything is looked at again
    for _ in range(2):
        for p in (linear.weight, free, left):
            p.grad = torch.randn_like(p)
        optimizer.step()
    for p in (linear.weight, free, left):
        assert bool(Stiefel().contains(p.detach()).all())


def _set(p: nn.Parameter) -> None:
    p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p.dtype)


WRITES: dict[str, Callable[[nn.Parameter], None]] = {
    "another tensor": _set,
    "scaled a little": lambda p: p.data.mul_(1.1),
    "shrunk": lambda p: p.data.mul_(1e-6),
    "a column of zeros": lambda p: p.data[..., 0].zero_(),
    "NaN": lambda p: p.data.fill_(float("nan")),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("manifold", [Stiefel(), Sphere(), Stiefel() ** 2], ids=str)
@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_data_is_an_error_at_the_next_step(write: str, manifold: Manifold, dtype: torch.dtype) -> None:
    """On CPU; no step is made, also of free tensors, and a gradient that is not finite then is not blamed."""
    layer = constrain(nn.Linear(3, 8), "weight", manifold, Riemannian()).to(dtype)
    optimizer = RiemannianAdam(layer, lr=0.01)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    for _ in range(4):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    WRITES[write](layer.weight)
    layer.zero_grad()
    layer(x).square().mean().backward()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"weight of shape \(8, 3\) was changed to a value that is not on"):
        optimizer.step()
    torch.testing.assert_close(layer.bias, before["bias"], rtol=0, atol=0)
    torch.testing.assert_close(layer.weight.data, before["weight"], rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        layer.weight.copy_(manifold.random(8, 3))
    layer.zero_grad()
    layer(x).square().mean().backward()
    optimizer.step()


OPEN: dict[str, tuple[Manifold, str | None]] = {
    "nearest": (Stiefel(), None),
    "packed": (Stiefel() ** 2, None),
    "open": (PositiveDefinite(), "haar"),
}


@pytest.mark.parametrize("name", OPEN)
def test_each_way_out_of_a_write_is_right_as_it_is_written(name: str) -> None:
    """A point by .copy_, and the same constrain once more, with an init where there is no nearest point."""
    manifold, init = OPEN[name]
    layer = constrain(nn.Linear(4, 4), "weight", manifold, Riemannian(), init=init)  # type: ignore[arg-type]
    optimizer = RiemannianAdam(layer, lr=0.01)

    def refusal() -> str:
        with torch.no_grad():
            layer.weight.copy_(2 * torch.eye(4) - torch.ones(4, 4))
        layer(torch.ones(2, 4)).sum().backward()
        with pytest.raises(ValueError, match="was changed to a value that is not on") as error:
            optimizer.step()
        return str(error.value)

    found = re.search(r"by \.copy_\((.*)\) under torch", refusal())
    assert found is not None
    with torch.no_grad():
        layer.weight.copy_(eval(found.group(1), {**vars(manifolds), "value": layer.weight}))
    optimizer.step()
    assert ("takes the nearest point" in refusal()) == (init is None)
    constrain(layer, "weight", manifold, Riemannian(), init=init)  # type: ignore[arg-type]
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert report(layer)[0].ok


def test_a_point_written_to_data_is_taken() -> None:
    layer = constrain(nn.Linear(4, 4), "weight", Stiefel, Riemannian())
    optimizer = RiemannianSGD(layer, lr=0.0)
    point = Stiefel().random(4, 4)
    for _ in range(2):
        layer(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        layer.weight.data.copy_(point)
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), point, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, RiemannianAdam])
def test_coordinates_do_not_decay_in_groups_that_were_made_of_a_model(kind: Any) -> None:
    """Decay would pull the weight towards its base; without it, and without a gradient, the weight stays."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    constrain(net, "0.weight", Stiefel)
    coordinates = net[0].parametrizations.weight.original
    with torch.no_grad():
        coordinates.normal_()
    before, free = net[0].weight.detach().clone(), net[1].weight.detach().clone()
    optimizer = kind(param_groups(net), lr=0.1, weight_decay=0.1)
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 1]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    # to rounding: the base may follow the coordinates, which are long
    torch.testing.assert_close(net[0].weight.detach(), before, rtol=0, atol=32 * torch.finfo(torch.float32).eps)
    assert not torch.equal(net[1].weight, free)
