"""What the optimizers refuse, and what they say; an optimizer that refuses parameters stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from constraints import param_groups, riemannian
from constraints.optim import RiemannianAdam, RiemannianAdamW, RiemannianMuon, RiemannianSGD
from manifolds import Orthogonal, SpecialOrthogonal, Sphere, Stiefel

ADAM: list[tuple[dict[str, Any], str]] = [
    ({"lr": -1.0}, "lr is at least 0; got -1.0"),
    ({"lr": float("nan")}, "lr is at least 0"),
    ({"lr": torch.ones(2)}, r"lr is a number or a tensor of one element; got shape \(2,\)"),
    ({"eps": -1e-8}, "eps is at least 0"),
    ({"betas": (1.0, 0.9)}, r"betas\[0\] .* in \[0, 1\); got 1.0"),
    ({"betas": (0.9, -0.1)}, r"betas\[1\]"),
    ({"weight_decay": -0.1}, "weight_decay is at least 0"),
]
SGD: list[tuple[dict[str, Any], str]] = [
    ({"lr": -1.0}, "lr is at least 0"),
    ({"momentum": -0.5}, "momentum is at least 0"),
    ({"weight_decay": -0.5}, "weight_decay is at least 0"),
    ({"nesterov": True}, "nesterov needs a momentum above 0"),
    ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "no dampening; got momentum=0.9 and dampening=0.1"),
]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [(RiemannianAdam, *case) for case in ADAM] + [(RiemannianSGD, *case) for case in SGD],
)
def test_options_out_of_range(kind: Any, options: dict[str, Any], message: str) -> None:
    """A ValueError, for the optimizer and for a single group."""
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=message):
        kind([p], **options)
    optimizer = kind([p])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [q], **options})
    assert len(optimizer.param_groups) == 1


NO_NUMBERS = {
    "lr": "1e-3",
    "weight_decay": None,
    "eps": [1e-8],
    "momentum": "0.9",
    "dampening": "0",
    "betas": (0.9, "1"),
}


@pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianAdamW, RiemannianSGD, RiemannianMuon])
def test_options_that_are_no_numbers(kind: Any) -> None:
    """A TypeError that says which, also for a group: what a configuration file gives may be a string."""
    options = kind([nn.Parameter(torch.ones(2))]).defaults
    for name in NO_NUMBERS.keys() & options.keys():
        with pytest.raises(TypeError, match=rf"{name}.* is a number or a tensor of one element; got "):
            kind([nn.Parameter(torch.ones(2))], **{name: NO_NUMBERS[name]})
        optimizer = kind([nn.Parameter(torch.ones(2))])
        with pytest.raises(TypeError, match=rf"{name}.* is a number or a tensor of one element; got "):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], name: NO_NUMBERS[name]})
        assert len(optimizer.param_groups) == 1
    if "betas" in options:
        with pytest.raises(TypeError, match=r"betas of .* are two numbers"):
            kind([nn.Parameter(torch.ones(2))], betas=0.9)
    with pytest.raises(TypeError, match=r"got '1e-3'. Convert it, as by float\('1e-3'\)"):
        kind([nn.Parameter(torch.ones(2))], lr="1e-3")


@pytest.fixture
def model() -> nn.Linear:
    """A layer whose weight is held on Stiefel."""
    layer = nn.Linear(3, 5)
    with torch.no_grad():
        layer.weight.copy_(Stiefel().random(5, 3))
    riemannian.record(layer, "weight", Stiefel(), "encoder.weight")
    return layer


@pytest.mark.parametrize("kind", [RiemannianAdam, RiemannianSGD])
def test_a_constrained_tensor_needs_its_manifold(kind: Any, model: nn.Linear) -> None:
    """A ValueError that names it and both ways out, however it comes."""
    ways_out = rf"without a manifold. Write {kind.__name__}\(model, ...\), or param_groups\(model\)"
    for params in (model.parameters(), [{"params": model.parameters()}]):
        with pytest.raises(ValueError, match=rf"encoder.weight of shape \(5, 3\) .* {ways_out}"):
            kind(params)
    with pytest.raises(ValueError, match=r"^weight of shape"):
        kind(model.named_parameters())
    with pytest.raises(ValueError, match="is constrained to Stiefel, but came in a group of Stiefel\\(metric"):
        kind([{"params": [model.weight], "manifold": Stiefel("canonical")}])
    optimizer = kind([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="without a manifold"):
        optimizer.add_param_group({"params": [model.weight]})
    assert len(optimizer.param_groups) == 1
    kind(model)
    kind(param_groups(model))


BAD: list[tuple[Any, Any, type[Exception], str]] = [
    (torch.ones(5, 3), Stiefel(), ValueError, r"w of shape \(5, 3\) is not on Stiefel. .*Riemannian\(\)"),
    (torch.full((2, 2), torch.nan), Stiefel(), ValueError, "is not on Stiefel"),
    (torch.eye(5, 3), Orthogonal(), ValueError, r"w does not hold points of Orthogonal: .*\(5, 3\)"),
    (torch.eye(7, 3), Stiefel() ** 2, ValueError, "w does not hold points of"),
    (torch.diag(torch.tensor([1.0, -1.0])), SpecialOrthogonal(), ValueError, "is not on SpecialOrthogonal"),
    (1.1 * torch.eye(8).bfloat16(), Stiefel(), ValueError, "is not on Stiefel"),
    (torch.eye(3).long(), Stiefel(), TypeError, "dtype torch.int64"),
    (torch.eye(3), "stiefel", TypeError, "\"manifold\" of a parameter group is a Manifold or None; got 'stiefel'"),
]


@pytest.mark.parametrize(("value", "manifold", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_a_group_that_does_not_fit(value: torch.Tensor, manifold: Any, error: type[Exception], message: str) -> None:
    """A value off the manifold, a shape or a dtype that has no points, a manifold that is none."""
    p = nn.Parameter(value, requires_grad=False)
    optimizer = RiemannianAdam([("free", nn.Parameter(torch.ones(1)))])
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": [("w", p)], "manifold": manifold})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_what_torch_refuses() -> None:
    """No parameters, a bare tensor, a tensor twice: as in torch."""
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="empty parameter list"):
        RiemannianAdam([])
    with pytest.raises(TypeError, match="iterable"):
        RiemannianAdam(p)
    with pytest.raises(ValueError, match="more than one parameter group"):
        RiemannianAdam([{"params": [p]}, {"params": [p]}])


def test_a_rounded_half_weight_is_on_its_manifold() -> None:
    """Rounding to bfloat16 or float16 is no reason to refuse a weight; neither is a manifold given as a class."""
    for dtype in (torch.bfloat16, torch.float16):
        for manifold in (Stiefel, Sphere):
            weights = [nn.Parameter(manifold().random(64, 32).to(dtype)) for _ in range(5)]
            optimizer = RiemannianAdam([{"params": weights, "manifold": manifold}])
            assert optimizer.param_groups[0]["manifold"] == manifold()
