"""Code that walks over parameters() or a state dict, for every family and both engines: right or refused, not silent.

Refused is a ValueError by the walker, or by the next use: a forward pass, `report` or a step of an optimizer.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import manifolds
from constraints import Riemannian, Trivialization, constrain, rebase, report, unconstrain
from constraints.method import Method
from constraints.optim import RiemannianAdam
from manifolds import (
    BlockSpec,
    Euclidean,
    Manifold,
    Oblique,
    Orthogonal,
    ProductManifold,
    Skew,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
    Symmetric,
    retractions,
)

FAMILIES: dict[str, tuple[Any, tuple[int, int]]] = {
    "Stiefel tall": (Stiefel(), (6, 3)),
    "Stiefel wide": (Stiefel("canonical", retractions.exp), (3, 6)),
    "Orthogonal": (Orthogonal(), (4, 4)),
    "SpecialOrthogonal": (SpecialOrthogonal(retractions.exp), (4, 4)),
    "Sphere": (Sphere(), (3, 5)),
    "Euclidean": (Euclidean(), (3, 5)),
    "Oblique": (Oblique(), (5, 3)),
    "Symmetric": (Symmetric(), (4, 4)),
    "Skew": (Skew(), (4, 4)),
    "Stiefel**3": (Stiefel**3, (12, 4)),
    "mixed": (Orthogonal * Sphere * Euclidean, (12, 4)),
    "pattern": (ProductManifold((Stiefel(),) * 2, BlockSpec.pattern("(p k) q -> k p q", k=2)), (8, 3)),
}
FLAT = ("Euclidean", "Symmetric", "Skew")
each_family = pytest.mark.parametrize("family", FAMILIES)
each_engine = pytest.mark.parametrize("method", [Trivialization(), Riemannian()], ids=repr)
each_base = pytest.mark.parametrize("method", [Trivialization(), Trivialization(3), Riemannian()], ids=repr)


def test_every_family_is_here() -> None:
    public = [getattr(manifolds, name) for name in manifolds.__all__]
    concrete = {each for each in public if isinstance(each, type) and issubclass(each, Manifold)}
    concrete -= {each for each in concrete if getattr(each, "__abstractmethods__", None)}
    tried = {type(manifold) for manifold, _ in FAMILIES.values()}
    missing = {each.__name__ for each in concrete if not any(issubclass(kind, each) for kind in tried)}
    # an average of points of a convex set is a point: that of bases and coordinates by hand is not seen, see limits
    convex = {"PositiveDefinite", "Positive", "Correlation", "Simplex", "DoublyStochastic", "PoincareBall"}
    assert missing == convex | {"Hyperboloid", "FixedRank", "Grassmann"}


# Two models, each from a start of its own and trained ---------------------------------------------------------------


def plain(family: str, seed: int) -> Any:
    torch.manual_seed(seed)
    out, into = FAMILIES[family][1]
    return nn.Sequential(nn.Linear(into, out).double(), nn.Linear(out, 2).double())


@functools.cache
def _trained(family: str, method: Method, seed: int) -> Any:
    net = constrain(plain(family, seed), "0.weight", FAMILIES[family][0], method, init="haar")
    train(net, 4)
    return net


def trained(family: str, method: Method, seed: int) -> Any:
    return copy.deepcopy(_trained(family, method, seed))


def optimizer_of(net: Any) -> Any:
    plain = "weight" in net[0]._parameters
    return RiemannianAdam(net, lr=0.02) if plain else torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)


def inputs(net: Any) -> Tensor:
    return torch.linspace(-1, 1, 5 * net[0].in_features, dtype=torch.float64).reshape(5, -1).sin()


def train(net: Any, steps: int) -> None:
    optimizer, x = optimizer_of(net), inputs(net)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - 1).square().sum().backward()
        optimizer.step()


def use(net: Any) -> Tensor:
    """Everything that looks at a weight; ValueError by any of it is a refusal. The weight."""
    weight: Tensor = net[0].weight.detach().clone()
    (row,) = report(net)
    if not row.ok:
        raise ValueError("report says so")
    net.zero_grad()
    optimizer_of(net).step()  # which moves nothing without gradients, and looks
    return weight


# What people write --------------------------------------------------------------------------------------------------


@torch.no_grad()
def hard_data(net: Any, target: Any) -> None:
    for p, q in zip(net.parameters(), target.parameters(), strict=True):
        q.data.copy_(p.data)


@torch.no_grad()
def hard_copy(net: Any, target: Any) -> None:
    for p, q in zip(net.parameters(), target.parameters(), strict=True):
        q.copy_(p)


def hard_assign(net: Any, target: Any) -> None:
    for p, q in zip(net.parameters(), target.parameters(), strict=True):
        q.data = p.data.clone()


def hard_load(net: Any, target: Any) -> None:
    target.load_state_dict({key: value.clone() for key, value in net.state_dict().items()})


def vector(net: Any, target: Any) -> None:
    vector_to_parameters(parameters_to_vector(net.parameters()), target.parameters())


COPIES: list[Callable[[Any, Any], None]] = [hard_data, hard_copy, hard_assign, hard_load, vector]


@each_family
@each_base
def test_a_copy_of_all_parameters_is_the_model(family: str, method: Method) -> None:
    net, target = (trained(family, method, seed) for seed in (0, 1))
    x = inputs(net)
    for copies in COPIES:
        copies(net, target)
        assert torch.equal(target(x), net(x))
        assert torch.equal(use(target), use(net))
        train(net, 2)
        assert not torch.equal(use(target), use(net))  # they share nothing


@torch.no_grad()
def polyak(net: Any, target: Any) -> None:
    for p, q in zip(net.parameters(), target.parameters(), strict=True):
        q.data.mul_(0.7).add_(0.3 * p.data)


@torch.no_grad()
def soup(net: Any, target: Any) -> None:
    states = net.state_dict(), copy.deepcopy(target.state_dict())
    average = {k: (v + states[1][k]) / 2 if v.is_floating_point() else v for k, v in states[0].items()}
    target.load_state_dict(average)


@torch.no_grad()
def soup_in_place(net: Any, target: Any) -> None:
    """As EMA over state dicts is written: the tensors of a state dict are those of the model."""
    mine, theirs = target.state_dict(), net.state_dict()
    for key, value in mine.items():
        if value.is_floating_point():
            value.copy_(value * 0.7 + theirs[key] * 0.3)


@torch.no_grad()
def average_of_vectors(net: Any, target: Any) -> None:
    v, w = parameters_to_vector(net.parameters()), parameters_to_vector(target.parameters())
    vector_to_parameters((v + w) / 2, target.parameters())


AVERAGES: dict[str, Callable[[Any, Any], None]] = {
    each.__name__: each for each in (polyak, soup, soup_in_place, average_of_vectors)
}


@each_family
@each_engine
@pytest.mark.parametrize("averages", AVERAGES)
def test_an_average_over_parameters_of_other_bases_is_right_or_refused(
    family: str, method: Method, averages: str
) -> None:
    """Right: flat blocks are the average of the weights. What is curved has none of its own, entry by entry."""
    net, target = (trained(family, method, seed) for seed in (0, 1))
    share = 0.5 if averages in ("soup", "average_of_vectors") else 0.3
    expected = (1 - share) * use(target) + share * use(net)
    flat = family in FLAT
    try:
        AVERAGES[averages](net, target)
        weight = use(target)
    except ValueError:
        assert not flat
        return
    assert flat
    torch.testing.assert_close(weight, expected)


@each_family
@each_base
@pytest.mark.parametrize("averages", AVERAGES)
def test_an_average_with_a_copy_near_by_is_between_or_refused(family: str, method: Method, averages: str) -> None:
    """A target network, or the slow weights of Lookahead, that were the model some steps before."""
    net = trained(family, method, 0)
    target = copy.deepcopy(net)
    for steps in (1, 1, 3):
        train(net, steps)
        gap = (use(net) - use(target)).norm()
        try:
            AVERAGES[averages](net, target)
            now = use(target)
        except ValueError:
            assert family not in FLAT
            return
        assert (use(net) - now).norm() < gap


@each_family
@each_base
def test_lookahead_is_between_or_refused(family: str, method: Method) -> None:
    """Slow weights of every Parameter, to which the fast ones return: by the optimizer's groups, as it is published."""
    net = trained(family, method, 0)
    optimizer = optimizer_of(net)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slow = [p.detach().clone() for p in parameters]
    before, x = use(net), inputs(net)
    try:
        for step in range(8):
            optimizer.zero_grad()
            (net(x) - 1).square().sum().backward()
            optimizer.step()
            if step % 4 == 3:
                far = (net[0].weight.detach() - before).norm()
                with torch.no_grad():
                    for p, q in zip(parameters, slow, strict=True):
                        q.lerp_(p, 0.5)
                        p.copy_(q)
                now = use(net)
                assert (now - before).norm() < far
                before = now
    except ValueError:
        assert family not in FLAT


INITIALIZERS: dict[str, Callable[[Tensor], Any]] = {
    "xavier_uniform_": nn.init.xavier_uniform_,
    "orthogonal_": nn.init.orthogonal_,
    "trunc_normal_ on data": lambda p: nn.init.trunc_normal_(p.data, std=0.02),
}


@each_family
@each_engine
@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_an_initializer_over_parameters_draws_a_point_or_is_refused(
    family: str, method: Method, initializer: str
) -> None:
    net = trained(family, method, 0)
    old = use(net)
    for p in net.parameters():
        if p.dim() > 1:
            INITIALIZERS[initializer](p)
    try:
        weight = use(net)
    except ValueError:
        assert family != "Euclidean"
        return
    # what is drawn has nothing of the old weight
    cosine = (weight * old).sum() / (weight.norm() * old.norm()).clamp_min(1e-12)
    assert cosine.abs() < 0.8


@each_family
@each_base
@pytest.mark.parametrize("init", [None, "haar"])
def test_to_constrain_again_takes_what_an_initializer_drew(family: str, method: Method, init: Any) -> None:
    """The point nearest to it, or a random one where it is asked for; never a model without a weight, unsaid."""
    net = trained(family, method, 0)
    for p in net.parameters():
        if p.dim() > 1:
            nn.init.normal_(p)
    manifold, drawn = report(net)[0].manifold, [p.detach().clone() for p in net.parameters()]
    try:
        constrain(net, "0.weight", manifold, method, init=init)
    except ValueError:  # as for a multiple of a reflection
        assert init is None
        assert all(map(torch.equal, net.parameters(), drawn))
        return
    use(net)
    assert report(net)[0].ok


@each_family
@each_engine
@pytest.mark.parametrize("resets", ["reset_parameters", "nn.init of the weight"])
def test_a_new_fold_is_a_new_weight_or_refused(family: str, method: Method, resets: str) -> None:
    net = trained(family, method, 0)
    old, optimizer, x = use(net), optimizer_of(net), inputs(net)
    torch.manual_seed(5)
    try:
        if resets == "reset_parameters":
            net[0].reset_parameters()
        else:
            nn.init.kaiming_uniform_(net[0].weight)
        weight = use(net)
        net(x).sum().backward()
        optimizer.step()
    except ValueError:
        return
    assert ((weight * old).sum() / (weight.norm() * old.norm())).abs() < 0.8


@each_family
@each_engine
def test_all_parameters_unfrozen_change_nothing(family: str, method: Method) -> None:
    """Nor does decay that reaches all, where there are no gradients: a base is trained by nothing."""
    net = trained(family, method, 0)
    other = copy.deepcopy(net)
    for p in net.parameters():
        p.requires_grad_(True)
    net.requires_grad_(True)
    for each in (net, other):
        train(each, 5)
    assert torch.equal(use(net), use(other))
    if isinstance(method, Trivialization):
        base = net[0].parametrizations.weight[0].base_point
        assert base.requires_grad
        assert base.grad is None


@each_family
@each_engine
def test_layers_that_share_one_parameter_are_one_weight(family: str, method: Method) -> None:
    """Constrained one by one, or only one of them, and let go."""
    manifold, _ = FAMILIES[family]
    first, second = plain(family, 0)[0], plain(family, 1)[0]
    second.weight = first.weight
    optimizer = torch.optim.SGD(nn.Sequential(first, second).parameters(), 1e-3)  # which has the Parameter, too
    constrain(first, "weight", manifold, method, init="haar")
    for _ in range(2):
        assert torch.equal(first.weight, second.weight)
        net = nn.Sequential(first, nn.Linear(first.out_features, 2).double())
        train(net, 2)
        assert torch.equal(first.weight, second.weight)
        constrain(second, "weight", manifold, method)
    before = first.weight.detach().clone()
    unconstrain(second, "weight")
    assert first.weight is second.weight
    assert torch.equal(first.weight, before)
    assert report(first) == report(second) == []
    assert optimizer.param_groups


# After an assignment ------------------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.LBFGS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("by", ["assignment", "reset_parameters"])
def test_momentum_of_before_an_assignment_is_not_carried(family: str, make: Any, by: str) -> None:
    net = trained(family, Trivialization(), 0)
    options = {"lr": 1e-3, **({"momentum": 0.9} if make is torch.optim.SGD else {})}
    optimizer, x = make(net.parameters(), **options), inputs(net)

    def step() -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (net(x) - 1).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    step()
    point = use(trained(family, Trivialization(), 1))
    if by == "assignment":
        net[0].weight = point
    else:
        net[0].reset_parameters()
    assert rebase(net, optimizer)[0].momentum == "reset"
    assert not optimizer.state.get(net[0].parametrizations.weight.original)
    step()
    expected = "reset" if make is torch.optim.LBFGS else "carried"
    assert rebase(net, optimizer)[0].momentum == expected
